"""The checker finds each violation that is planted in a history without one, and nothing in one without."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faults.checker import check, counts
from faults.history import Body, History, without
from faults.moments import CELLS
from faults.report import picture, table_of_moments, window

# it runs nothing of the package
pytestmark = pytest.mark.no_cover

TTL = 2.0


class Past:
    """A history of 30 s: a beat, a worker, and an entry of each kind, all well. Tests plant in it what should not be."""

    def __init__(self) -> None:
        entry = {"every": 1.0, "marks": False, "kind": "once", "key": "k", "ttl": TTL}
        self.lines = [
            {
                "what": "setting",
                "at": 0.0,
                "seed": 7,
                "started": 0.0,
                "ended": 30.0,
                "wall": 1000.0,
                "claim_ttl": 1.5,
                "slack": 1.0,
                "grace": 3.0,
                "entries": {
                    "one": entry,
                    "marked": {**entry, "marks": True, "every": 2, "key": "m"},
                    "early": {**entry, "kind": "early", "key": "e"},
                    "skip": {**entry, "kind": "skip", "key": "s"},
                    "other": {**entry, "key": "other"},
                    "line": {**entry, "kind": "wait", "key": "l"},
                },
            }
        ]
        self.add("up", 0.0, name="beat", pid=1, entries=["one", "marked", "early", "skip"])
        self.add("up", 0.0, name="worker", pid=2, entries=[])
        self.claimed = {"one": 29, "marked": 15, "early": 29, "skip": 29}
        for n in range(1, 30):
            for entry, key in ("one", "k"), ("early", "e"), ("skip", "s"):
                self.tick(entry, n, n + 0.0)
                self.body(key, f"{entry}-{n}", n + 0.1, n + 0.5)
        for n in range(1, 16):
            self.tick("marked", n, 2.0 * n)
            self.body("m", f"marked-{n}", 2 * n + 0.1, 2 * n + 0.5)
        self.left = {"pending": [], "held": [], "lasting": [], "processes": [], "unanswered": []}

    def add(self, what: str, at: float, **fields: object) -> None:
        self.lines.append({"what": what, "at": at, **fields})

    def tick(self, entry: str, run: int, at: float, **fields: object) -> None:
        line = {"entry": entry, "run": run, "due": 1000 + at, "id": f"{entry}-{run}", "pid": 1, **fields}
        self.add("message", at, **line)
        self.record(at, "tick_published", id=line["id"], entry=entry, run=run, pid=1)

    def record(self, at: float, event: str, **fields: object) -> None:
        told = {"id": None, "token": None, "execution": None, "pid": None, "entry": None, "run": None, "count": None}
        self.add("record", at, written=at + 0.5, event=event, **{**told, **fields})

    def body(self, key: str, task_id: str, begun: float, ended: float) -> None:
        """One that wrote at its end, and released its lock."""
        name, pid = f"{task_id}-{begun}", {"k": 9, "m": 10, "e": 11, "s": 12}.get(key, 13)
        told = {"body": name, "id": task_id, "retries": 0, "key": key, "token": int(begun * 1000), "pid": pid}
        self.add("begin", begun, **told)
        self.add("belief", ended, body=name, until=ended)
        self.add("write", ended, **told, accepted=True)
        self.add("over", ended + 0.01, id=task_id, retries=0, pid=pid, body=name, state="SUCCESS", reason=None)
        self.record(ended, "task_succeeded", id=task_id, token=told["token"], pid=pid)
        self.add("lease", begun, key=key, token=told["token"], pid=pid, since=begun, until=ended + 0.02)
        events = ["task_started", "lock_acquired", "task_succeeded", "task_finished"]
        self.add("story", begun, execution=name, id=task_id, pid=pid, events=events, errors=[])

    def drop(self, what: str, **fields: object) -> None:
        """Take away what is so."""
        before = len(self.lines)
        self.lines = [
            line
            for line in self.lines
            if line["what"] != what or any(line.get(name) != value for name, value in fields.items())
        ]
        assert len(self.lines) < before

    def change(self, what: str, changed: dict[str, object], **fields: object) -> None:
        found = [
            line
            for line in self.lines
            if line["what"] == what and all(line.get(name) == value for name, value in fields.items())
        ]
        assert found
        for line in found:
            line.update(changed)

    def fault(self, at: float, kind: str, target: str, **fields: object) -> None:
        self.add("fault", at, kind=kind, target=target, **{"until": at, **fields})

    def history(self) -> History:
        setting, *lines = copy.deepcopy(self.lines)
        # each witness writes in order of time; "over" comes after what it is the end of
        lines.sort(key=lambda line: line["at"])
        return History([setting, *lines, {"what": "end", "at": 40.0, "claimed": self.claimed, **self.left}])

    def found(self) -> set[str]:
        return {each.rule for each in check(self.history())} - {"journal"}

    def lacks(self) -> bool:
        """Whether the journal is not what it should be."""
        return "journal" in {each.rule for each in check(self.history())}


@pytest.fixture
def past() -> Past:
    return Past()


def test_a_history_without_a_violation_has_none(past):
    assert check(past.history()) == []
    told = counts(past.history())
    assert told["bodies ended"] == 3 * 29 + 15
    assert told["marks of the clock that had to have a run"] >= 12


# -- lines -------------------------------------------------------------------------------------------------------------


def wait(past: Past, run: int, since: float, begun: float) -> None:
    past.tick("line", run, since - 0.1)
    past.claimed["line"] = max(run, past.claimed.get("line", 0))
    told = {"execution": f"waits-{run}", "id": f"line-{run}", "pid": 13, "errors": []}
    past.add("story", since, **told, events=["task_waiting"])
    past.body("l", f"line-{run}", begun, begun + 0.1)


def test_those_that_waited_begin_in_their_order(past):
    wait(past, 1, 5.0, 7.0)
    wait(past, 2, 6.0, 7.5)
    assert "order" not in past.found()
    wait(past, 3, 8.0, 10.0)
    wait(past, 4, 9.0, 9.5)
    assert "order" in past.found()
    # who was called may have been frozen, and be passed over
    past.fault(9.0, "freeze worker", "worker", until=9.6, harms=["worker"], frozen=[13])
    assert "order" not in past.found()


# -- exclusion, tokens -------------------------------------------------------------------------------------------------


def test_two_bodies_that_both_believe_in_one_key_overlap(past):
    past.body("k", "one-5", 5.2, 5.3)
    assert "overlap" in past.found()


def test_an_overlap_with_a_body_that_began_long_before_is_found(past):
    past.change("belief", {"until": 9.2}, body="one-5-5.1")
    assert "overlap" in past.found()


def test_a_body_that_goes_on_after_it_knew_that_its_lock_is_lost_does_not_overlap(past):
    """It was frozen: its write is refused, and its run begins again."""
    past.drop("write", body="one-5-5.1")
    past.change("belief", {"until": 5.2}, body="one-5-5.1")
    past.change("over", {"at": 8.9, "state": "Retry"}, body="one-5-5.1")
    past.add("write", 8.8, body="one-5-5.1", id="one-5", retries=0, key="k", token=5100, pid=9, accepted=False)
    past.body("k", "one-5", 9.6, 9.7)
    past.change("lease", {"until": 7.2}, key="k", token=5100)
    assert past.found() == set()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 3), st.floats(0.001, 5)), min_size=2, max_size=20), st.data()
)
def test_however_bodies_follow_each_other_only_the_one_that_comes_too_early_overlaps(spans, data):
    past = Past()
    at, bodies = 31.0, []
    for wait, long, pause in spans:
        bodies.append((at + wait, at + wait + long))
        at += wait + long + pause
    for n, (begun, ended) in enumerate(bodies):
        past.body("other", f"other-{n}", begun, ended)
    assert "overlap" not in past.found()
    begun, ended = data.draw(st.sampled_from(bodies))
    past.body("other", "planted", data.draw(st.floats(begun, ended)), ended)
    assert "overlap" in past.found()


def test_a_token_that_does_not_grow_is_found(past):
    for what in "begin", "write":
        past.change(what, {"token": 100}, body="one-5-5.1")
    assert "token" in past.found()


def test_a_write_under_an_older_token_that_was_accepted_is_found(past):
    past.add("write", 9.8, body="one-5-5.1", id="one-5", retries=0, key="k", token=5100, pid=9, accepted=True)
    assert "token" in past.found()


# -- ticks -------------------------------------------------------------------------------------------------------------


def test_a_tick_that_was_claimed_and_never_published_is_lost(past):
    past.drop("message", id="one-12")
    past.claimed["one"] = 30
    found = [each for each in check(past.history()) if each.rule == "lost tick"]
    assert [each.text.split()[1] for each in found] == ["12", "30"]


def test_what_the_last_beat_handed_over_is_not_lost(past):
    past.claimed["one"] = 30
    past.left["handed_over"] = [["one", 30]]
    assert past.found() == set()


def test_a_run_that_was_never_claimed_is_found(past):
    past.tick("one", 30, 30.0)
    past.body("k", "one-30", 30.1, 30.2)
    assert past.found() == {"doubled tick"}


def test_a_tick_under_two_ids_is_doubled_and_one_that_is_repeated_is_not(past):
    past.tick("one", 12, 12.2)
    assert past.found() == set()
    past.tick("one", 12, 12.2, id="another")
    past.body("k", "another", 12.6, 12.7)
    assert past.found() == {"doubled tick"}


def test_two_runs_under_one_id_are_found(past):
    past.change("message", {"id": "one-11"}, id="one-12")
    assert "doubled tick" in past.found()


def test_a_mark_of_the_clock_with_two_runs_is_doubled(past):
    past.claimed["marked"] = 16
    past.tick("marked", 16, 6.1)
    past.body("m", "marked-16", 6.7, 6.8)
    assert past.found() == {"doubled tick"}


def test_a_mark_of_the_clock_without_a_run_is_lost_if_a_beat_was_at_work(past):
    for n in range(5, 16):
        past.change("message", {"run": n - 1}, id=f"marked-{n}")
    past.drop("message", id="marked-4")
    past.claimed["marked"] = 14
    assert past.found() == {"lost tick"}
    past.fault(6.0, "freeze store", "store", until=7.5, harms=["store"])
    assert past.found() == set()


def test_ticks_that_fail_to_come_while_a_beat_is_at_work_are_late(past):
    for n in range(10, 20):
        past.drop("message", id=f"one-{n}")
    for n in range(20, 30):
        past.change("message", {"run": n - 10}, id=f"one-{n}")
    past.claimed["one"] = 19
    assert past.found() == {"late tick"}
    for at in 9.0, 15.0:
        past.fault(at, "kill broker", "broker", until=at + 3.0, harms=["broker"])
    assert past.found() == set()


def test_a_beat_that_does_not_know_an_entry_is_not_late_with_it(past):
    past.add("down", 9.5, name="beat", pid=1)
    past.add("up", 9.6, name="beat", pid=4, entries=["marked", "early", "skip"])
    past.add("down", 19.0, name="beat", pid=4)
    past.add("up", 19.1, name="beat", pid=6, entries=["one", "marked", "early", "skip"])
    for n in range(10, 20):
        past.drop("message", id=f"one-{n}")
    for n in range(20, 30):
        past.change("message", {"run": n - 10}, id=f"one-{n}")
    past.claimed["one"] = 19
    assert past.found() == set()


def test_that_one_of_two_beats_is_dead_excuses_no_late_tick(past):
    past.add("up", 0.0, name="other", pid=3, entries=["one"])
    past.add("down", 8.0, name="other", pid=3)
    past.fault(8.0, "kill beat", "other", harms=["other"], killed=[3])
    for n in range(10, 20):
        past.drop("message", id=f"one-{n}")
    for n in range(20, 30):
        past.change("message", {"run": n - 10}, id=f"one-{n}")
    past.claimed["one"] = 19
    assert past.found() == {"late tick"}


def test_ticks_of_an_interval_that_are_too_near_to_each_other_are_doubled(past):
    past.change("message", {"due": 1012.5}, id="one-13")
    assert past.found() == {"doubled tick"}
    past.add("shift", 12.2, name="beat", seconds=-0.5)
    past.add("shift", 15.2, name="beat", seconds=0.0)
    assert past.found() == set()


def test_what_is_published_while_it_is_paused_is_found_unless_it_was_on_its_way(past):
    past.add("pause", 9.7, entry="one", acknowledged=9.9, until=10.8)
    assert past.found() == set(), "nobody may know yet that it is paused"
    past.add("pause", 19.7, entry="one", acknowledged=19.8, until=21.3)
    assert past.found() == {"published while paused"}
    past.fault(15.0, "freeze beat", "beat", frozen=[1], until=16.0)
    past.fault(19.0, "kill beat", "beat", killed=[1])
    assert "published while paused" in past.found()
    for kind, target, more in (
        ("freeze beat", "beat", {"frozen": [1]}),
        ("freeze broker", "broker", {"harms": ["broker"]}),
        ("delay", "beat broker", {"harms": ["beat"]}),
    ):
        other = Past()
        other.add("pause", 19.7, entry="one", acknowledged=19.8, until=21.3)
        other.fault(18.0, kind, target, until=20.0, **more)
        assert "published while paused" not in other.found()


def test_that_a_clock_was_wrong_long_before_excuses_nothing(past):
    past.add("shift", 2.2, name="beat", seconds=-0.5)
    past.add("shift", 4.2, name="beat", seconds=0.0)
    past.change("message", {"due": 1012.5}, id="one-13")
    assert past.found() == {"doubled tick"}


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["one", "early", "skip"])
def test_a_run_that_never_came_to_its_end_is_lost(past, entry):
    past.drop("write", id=f"{entry}-9")
    past.drop("over", id=f"{entry}-9")
    assert past.found() == {"lost run"}


def test_a_run_that_was_skipped_is_not_lost_where_it_may_be(past):
    for entry in "skip", "one":
        past.drop("write", id=f"{entry}-9")
        past.change("over", {"state": "TaskSkipped", "reason": "locked"}, id=f"{entry}-9")
        past.change("record", {"event": "task_skipped"}, id=f"{entry}-9", event="task_succeeded")
    found = check(past.history())
    assert [each.rule for each in found] == ["lost run"]
    assert "one-9" in found[0].text


def test_a_run_that_died_is_lost_unless_it_was_acknowledged_early(past):
    for entry in "early", "one":
        past.drop("write", id=f"{entry}-9")
        past.drop("over", id=f"{entry}-9")
        past.change("begin", {"pid": 5}, id=f"{entry}-9")
        past.change("record", {"event": "task_died"}, id=f"{entry}-9", event="task_succeeded")
    past.fault(9.3, "kill child", "worker", killed=[5])
    found = check(past.history())
    assert [each.rule for each in found] == ["lost run"]
    assert "one-9" in found[0].text


def test_a_run_that_was_killed_may_begin_again(past):
    past.drop("write", id="one-9")
    past.drop("over", id="one-9")
    for what in "begin", "story", "lease":
        past.change(what, {"pid": 5}, **({"key": "k", "token": 9100} if what == "lease" else {"id": "one-9"}))
    past.change("story", {"events": ["task_started", "lock_acquired"]}, id="one-9")
    past.fault(9.3, "kill child", "worker", killed=[5])
    past.body("k", "one-9", 9.6, 9.7)
    assert past.found() == set()


def test_a_run_that_ends_twice_is_doubled(past):
    past.body("k", "one-9", 9.6, 9.7)
    assert past.found() == {"doubled run"}


def test_a_run_that_begins_again_after_its_end_is_doubled_though_it_does_not_end(past):
    past.body("k", "one-9", 9.6, 9.7)
    past.drop("write", body="one-9-9.6")
    assert past.found() == {"doubled run"}


def test_a_run_may_end_again_if_nobody_was_left_to_tell_its_first_end(past):
    past.drop("over", id="one-9")
    past.body("k", "one-9", 9.6, 9.7)
    assert past.found() == set()


def test_a_run_may_end_again_if_the_store_could_not_be_told_its_first_end(past):
    past.body("k", "one-9", 9.6, 9.7)
    past.fault(9.4, "freeze store", "store", until=9.55, harms=["store"])
    assert past.found() == set()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_full_disk_keeps_the_end_of_a_run_from_the_memory_store_alone(past, in_memory):
    past.body("k", "one-9", 9.6, 9.7)
    past.fault(9.4, "full disk", "disk", until=9.55, harms=["disk"])
    past.lines[0]["entries"]["one"]["in_memory"] = in_memory
    assert past.found() == (set() if in_memory else {"doubled run"})


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_lock_that_outlives_its_run_is_an_orphan(past):
    past.change("lease", {"until": 12.0}, key="k", token=9100)
    assert past.found() == {"orphan lock"}


@pytest.mark.parametrize(
    ("killed", "freed", "orphan"),
    [
        pytest.param([5], 11.2, False, id="child in time"),
        pytest.param([5], 11.6, True, id="child too late"),
        pytest.param([2, 5], 11.6, False, id="worker in time"),
        pytest.param([2, 5], 12.6, True, id="worker too late"),
    ],
)
def test_a_dead_holders_lock_is_free_within_its_bound(past, killed, freed, orphan):
    past.drop("over", id="one-9")
    for n in 9, 10, 11, 12:
        past.drop("lease", key="k", token=n * 1000 + 100)
    past.add("lease", 9.1, key="k", token=9100, pid=5, since=9.1, until=freed)
    past.fault(9.3, "kill", "worker", killed=killed, harms=["worker"] if 2 in killed else [])
    assert past.found() == ({"orphan lock"} if orphan else set())


@pytest.mark.parametrize(
    "told",
    [
        ["task_started", "task_finished"],
        ["task_started", "task_succeeded"],
        ["task_succeeded", "task_started", "task_finished"],
        ["task_started", "task_succeeded", "task_failed", "task_finished"],
        ["task_started", "task_succeeded", "task_finished", "task_finished"],
    ],
)
def test_a_story_that_is_not_whole_or_not_in_order_is_found(past, told):
    past.change("story", {"events": told}, id="one-9")
    assert past.found() == {"story"}


def test_the_story_of_a_killed_process_may_break_off(past):
    past.change("story", {"events": ["task_started"], "pid": 5}, id="one-9")
    past.fault(9.55, "kill child", "worker", killed=[5])
    assert past.found() == set()


# -- the journal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "task_id"), [("tick_published", "one-5"), ("tick_published", "marked-3"), ("task_succeeded", "one-5")]
)
def test_what_the_journal_lacks_is_found(past, event, task_id):
    past.drop("record", event=event, id=task_id)
    assert past.lacks()


def test_a_journal_of_nothing_is_found(past):
    past.drop("record", entry=None)
    past.drop("record", event="tick_published")
    assert past.lacks()


def test_what_was_dropped_and_counted_is_not_missing(past):
    past.drop("record", event="task_succeeded", id="one-5")
    past.drop("record", event="tick_published", id="one-6")
    past.record(29.0, "records_dropped", count=1)
    assert past.lacks()
    past.record(29.0, "records_dropped", count=1)
    assert not past.lacks()


def test_a_kill_takes_a_second_of_it_along_and_not_more(past):
    past.drop("record", event="tick_published", id="one-5")
    past.fault(6.0, "kill beat", "beat", killed=(1,))
    past.add("up", 6.1, name="beat", pid=1, entries=["one", "marked", "early", "skip"])
    assert not past.lacks()
    past.drop("record", event="tick_published", id="one-2")
    assert past.lacks()


def test_a_start_without_an_end_is_missing_unless_its_process_was_killed(past):
    past.change("record", {"event": "task_started"}, event="task_succeeded", id="one-5")
    assert past.lacks()
    past.fault(6.0, "kill child", "worker", killed=(9,))
    assert not past.lacks()


def test_a_success_that_no_body_has_told_is_found(past):
    past.record(20.0, "task_succeeded", id="one-5", token=7, pid=9)
    assert past.lacks()
    past.change("record", {"event": "task_failed"}, token=7)
    assert not past.lacks()


def test_a_run_that_fails_of_what_nobody_did_is_found(past):
    past.change("story", {"errors": ["AttributeError"]}, id="one-9")
    assert past.found() == {"story"}


def test_what_does_not_come_about_is_a_hang(past):
    past.add("hang", 25.0, who="up: ['worker'] are not", bound=20)
    assert past.found() == {"hang"}


def test_a_process_that_ends_by_itself_is_a_hang_but_one_that_celery_ends_is_not(past):
    past.fault(9.0, "ended by Celery", "worker", killed=[5], why="kombu")
    assert past.found() == set()
    past.fault(9.0, "ended by itself", "worker", killed=[5], why="our own")
    assert past.found() == {"hang"}


def test_a_run_that_is_over_and_has_no_result_is_a_hang(past):
    past.left["unanswered"] = ["one-9"]
    assert past.found() == {"hang"}


@pytest.mark.parametrize(
    ("what", "rule"),
    [
        ("held", "orphan lock"),
        ("pending", "lost tick"),
        ("lasting", "key left behind"),
        ("processes", "process left behind"),
    ],
)
def test_what_is_left_behind_is_found(past, what, rule):
    past.left[what] = ["something"]
    assert past.found() == {rule}


# -- what is told ------------------------------------------------------------------------------------------------------


def test_the_window_of_a_violation_has_what_it_is_about_and_the_faults_of_its_time(past):
    past.body("k", "one-5", 5.2, 5.3)
    past.fault(4.0, "freeze child", "worker", until=5.4, frozen=[9])
    past.fault(20.0, "kill child", "worker", killed=[17])
    history = past.history()
    found = next(each for each in check(history) if each.rule == "overlap")
    lines = window(history, found)
    assert {line["what"] for line in lines} >= {"fault", "begin", "write"}
    assert all(3.0 < line["at"] < 7.0 for line in lines)
    assert not any(line.get("key") == "e" for line in lines)
    drawn = picture(history, found)
    assert drawn.count("====") >= 1
    assert "freeze child worker" in drawn
    assert "kill child" not in drawn


def test_a_history_that_was_saved_is_the_same(past, tmp_path: Path):
    history = past.history()
    history.save(tmp_path / "history.jsonl")
    assert History.load(tmp_path / "history.jsonl").lines == history.lines


def test_the_table_of_moments_has_a_place_for_each():
    moments = dict.fromkeys(CELLS, 0)
    for number, cell in enumerate(CELLS, 1000):
        moments[cell] = number
    table = table_of_moments(moments)
    assert all(str(number) in table for number in moments.values())


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted), max_size=6))
def test_holes_are_cut_out_of_spans(holes):
    left = without([(0, 20)], [tuple(hole) for hole in holes])
    for at in (n + 0.5 for n in range(20)):
        assert any(a < at < b for a, b in left) != any(a < at < b for a, b in holes)


def test_a_body_is_told_from_its_lines(past):
    body = next(each for each in past.history().bodies if each.id == "one-9")
    assert body == Body("one-9-9.1", "one-9", "k", 9100, 9, 9.1, 0, 9.5, 9.5, None, 9.51, "SUCCESS")
