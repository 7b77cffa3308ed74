"""A real beat and two real workers: what a periodic LockedTask does, from the tick to the release."""

from __future__ import annotations

from fleet import assert_whole_story, names, stories
from servers import wait_until


def test_a_beat_fires_locked_tasks_at_two_workers_and_each_run_tells_one_story(pair, witness, key):
    short, long = f"{key}-short", f"{key}-long"
    beat = pair.beat(
        "beat",
        {
            "short": {"task": "hold", "schedule": 0.5, "args": [short, 0.05], "options": {"queue": pair.queue}},
            # one and a half of these runs is due while the one before goes on
            "long": {"task": "hold", "schedule": 1.0, "args": [long, 2.5], "options": {"queue": pair.queue}},
        },
    )
    # Each worker has had its part in both, and the long one went on beside others of its kind.
    wait_until(
        lambda: (
            len(witness.entered(short)) >= 8
            and len(witness.lines(long, "leave")) >= 2
            and all(worker.events(lock_key=short, event="task_finished") for worker in pair.processes[:2])
            and len(pair.events(lock_key=long, event="task_skipped")) >= 3
        ),
        timeout=40,
        message="both workers have run what the beat fires",
    )
    beat.kill()

    def all_over() -> bool:
        ours = [event for event in pair.events() if event.get("lock_key") in (short, long)]
        return names(ours).count("task_started") == names(ours).count("task_finished")

    wait_until(all_over, message="all runs have ended")
    assert witness.never_overlapped(short)
    assert witness.never_overlapped(long)
    told = [event for event in pair.events() if event.get("lock_key") in (short, long)]
    runs = stories(told)
    for run in runs.values():
        assert_whole_story(run)
        skipped = "task_skipped" in names(run)
        # each run takes its lock, and releases it
        assert names(run).count("lock_acquired") == names(run).count("lock_released") == (not skipped)
        if skipped:
            assert run[-2]["reason"] == "locked"
            assert "@tests pid " in run[-2]["holder"]
    # each message was one run, and each body that the witness has seen was one that was told as a success
    assert len({run[0]["task_id"] for run in runs.values()}) == len(runs)
    for each in (short, long):
        succeeded = [event for event in told if event["lock_key"] == each and event["event"] == "task_succeeded"]
        assert len(succeeded) == len(witness.entered(each))
        tokens = [line["token"] for line in witness.entered(each)]
        assert tokens == sorted(set(tokens))


def test_an_entry_with_a_task_id_of_its_own_runs_at_each_tick_and_a_copy_of_one_tick_does_not(pair, witness, key):
    options = {"task_id": f"always-{key}", "queue": pair.queue}
    beat = pair.beat("beat", {"mine": {"task": "tick", "schedule": 0.5, "args": [key], "options": options}})
    wait_until(lambda: len(witness.lines(key, "tick")) >= 4, timeout=40, message="it has run four times")
    beat.terminate()
    ticks = witness.lines(key, "tick")
    assert {line["id"] for line in ticks} == {options["task_id"]}
    assert [line["run"] for line in ticks] == list(range(1, len(ticks) + 1))
    assert len({line["claim"] for line in ticks}) == len(ticks)
    # as another beat sends it, that takes over what this one has sent and not settled
    told = {name: ticks[1][name] for name in ("entry", "run", "claim")}
    headers = {"lockbeat": told, "lockbeat_nonce": told["claim"]}
    pair.send("tick", key, anew=True, task_id=options["task_id"], headers=headers)
    wait_until(
        lambda: [event for event in pair.events(lock_key=key, event="task_skipped") if event["reason"] == "duplicate"],
        message="the copy is skipped",
    )
    assert [line["run"] for line in witness.lines(key, "tick")] == [line["run"] for line in ticks]
