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
