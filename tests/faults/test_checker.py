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
                    # their ticks may be as near to each other as a test has them
                    "few": {**entry, "every": 0.001, "kind": "wait", "key": "f", "limit": 2},
                    "both": {**entry, "every": 0.001, "kind": "wait", "key": "x y"},
                    "left": {**entry, "every": 0.001, "kind": "wait", "key": "x"},
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

    def body(self, key: str, task_id: str, begun: float, ended: float, *, token: int = 0) -> None:
        """One that wrote at its end, and released its lock, of one key or of several."""
        name, pid = f"{task_id}-{begun}", {"k": 9, "m": 10, "e": 11, "s": 12}.get(key, 13)
        told = {"body": name, "id": task_id, "retries": 0, "key": key, "token": token or int(begun * 1000), "pid": pid}
        told["tokens"] = dict.fromkeys(key.split(" "), told["token"])
        self.add("begin", begun, **told)
        self.add("belief", ended, body=name, until=ended)
        self.add("write", ended, **told, accepted=True)
        self.add("over", ended + 0.01, id=task_id, retries=0, pid=pid, body=name, state="SUCCESS", reason=None)
        self.record(ended, "task_succeeded", id=task_id, token=told["token"], pid=pid)
        looks = [int(begun * 20), int(ended * 20)]
        for each in told["tokens"]:
            lease = {"key": each, "token": told["token"], "pid": pid, "run": f"{task_id}:0:0"}
            self.add("lease", begun, **lease, after=begun - 0.05, since=begun, until=ended + 0.02, looks=looks[:])
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


# -- keys that several may have ----------------------------------------------------------------------------------------


def few(past: Past, run: int, begun: float, ended: float, *, at: float = 0.0, **more: int) -> None:
    past.tick("few", run, at or begun - 0.1)
    past.claimed["few"] = max(run, past.claimed.get("few", 0))
    past.body("f", f"few-{run}", begun, ended, **more)


def test_as_many_as_may_have_a_key_at_a_time_and_one_more_overlaps(past):
    few(past, 1, 5.0, 7.0)
    few(past, 2, 5.5, 6.0)
    few(past, 3, 6.1, 7.5)
    assert past.found() == set()
    few(past, 4, 7.0, 7.2)
    found = [each for each in check(past.history()) if each.rule == "overlap"]
    assert len(found) == 1
    assert "few-4" in found[0].text
    assert {"f", "few-1", "few-3", "few-4"} <= found[0].about
    past.change("belief", {"until": 6.9}, body="few-1-5.0")
    assert past.found() == set(), "the first knew that it has it no more"


def test_two_bodies_of_one_run_overlap_though_two_may_have_the_key(past):
    few(past, 1, 5.0, 7.0)
    past.body("f", "few-1", 5.5, 6.5)
    assert "overlap" in past.found()


def test_of_those_that_have_a_key_together_either_token_may_be_the_greater_and_whoever_comes_later_has_a_greater_one(
    past,
):
    few(past, 1, 5.0, 6.0, token=5100)
    few(past, 2, 5.02, 6.1, token=5000)
    assert past.found() == set()
    few(past, 3, 6.08, 6.3, token=5050)
    assert past.found() == {"token"}
    past.change("lease", {"after": 5.99}, token=5050)
    assert past.found() == set(), "it may have been granted before the first had left"
    past.change("lease", {"after": 6.03}, token=5050)
    past.change("begin", {"tokens": {"f": 6050}}, id="few-3")
    past.change("write", {"tokens": {"f": 6050}}, id="few-3")
    assert past.found() == set()
    past.change("begin", {"tokens": {"f": 5100}}, id="few-2")
    past.change("write", {"tokens": {"f": 5100}}, id="few-2")
    assert past.found() == {"token"}, "two holders with one token"


def test_of_those_that_are_called_at_once_either_begins_first_and_who_is_passed_over_for_long_is_found(past):
    for run, since, begun in (1, 5.0, 7.0), (2, 6.0, 6.5):
        few(past, run, begun, begun + 0.1, at=since - 0.1)
        told = {"execution": f"waits-{run}", "id": f"few-{run}", "pid": 13, "errors": []}
        past.add("story", since, **told, events=["task_waiting"])
    assert past.found() == set()
    past.change("begin", {"at": 8.0}, id="few-1")
    assert "order" in past.found()


# -- several keys ------------------------------------------------------------------------------------------------------


def both(past: Past, run: int, begun: float, ended: float) -> str:
    past.tick("both", run, begun - 0.1)
    past.claimed["both"] = max(run, past.claimed.get("both", 0))
    past.body("x y", f"both-{run}", begun, ended)
    return f"both-{run}"


@pytest.mark.parametrize("key", ["x", "y", "y other"])
def test_two_bodies_that_share_one_of_their_keys_overlap(past, key):
    both(past, 1, 5.0, 5.5)
    past.body(key, "other-1", 5.6, 5.8)
    assert "overlap" not in past.found()
    past.body(key, "other-2", 5.4, 5.5)
    assert "overlap" in past.found()


def test_a_token_that_does_not_grow_is_found_of_each_of_several_keys(past):
    both(past, 1, 5.0, 5.5)
    past.body("y", "other-1", 5.6, 5.8, token=5001)
    assert "token" not in past.found()
    for what in "begin", "write":
        past.change(what, {"tokens": {"x": 5000, "y": 5001}}, id="both-1")
    assert "token" in past.found()


def test_a_write_with_one_token_that_is_too_old_is_to_be_refused(past):
    both(past, 1, 5.0, 5.5)
    past.body("y", "other-1", 5.6, 5.8)
    late = {"body": "both-1-5.0", "id": "both-1", "retries": 0, "key": "x y", "token": 5700, "pid": 13}
    past.add("write", 5.9, **late, tokens={"x": 5700, "y": 5000}, accepted=False)
    assert "token" not in past.found()
    past.change("write", {"accepted": True}, at=5.9)
    assert "token" in past.found()


def test_who_takes_its_keys_one_after_the_other_is_found(past):
    both(past, 1, 5.0, 5.5)
    assert past.found() == set()
    past.change("lease", {"looks": [102, 110]}, key="y", token=5000)
    assert past.found() == {"part of its keys"}
    # an attempt that was given back, and the next one
    past.drop("lease", key="y", token=5000)
    past.add("lease", 5.2, key="y", token=205000, pid=13, run="both-1:0:0", since=5.2, until=5.8, looks=[104, 116])
    past.change("lease", {"until": 5.1}, key="x", token=5000)
    assert past.found() == {"part of its keys"}, "it has the second alone"
    past.change("lease", {"until": 5.3}, token=205000)
    assert past.found() == set()


def test_who_keeps_a_part_of_its_keys_is_found_unless_nobody_could_give_the_others_back(past):
    both(past, 1, 5.0, 5.9)
    past.drop("lease", key="y", token=5000)
    assert past.found() == {"part of its keys"}
    past.fault(4.9, "delay", "worker store", until=5.2, harms=["worker", "worker's store"])
    assert past.found() == set()


@pytest.mark.parametrize("key", ["x", "y"])
def test_each_of_several_keys_of_a_dead_holder_is_free_within_its_bound(past, key):
    both(past, 1, 5.0, 5.5)
    past.change("lease", {"until": 9.0}, key=key, token=5000)
    assert past.found() == {"orphan lock"}


def test_a_run_of_several_keys_that_never_ran_is_lost(past):
    both(past, 1, 5.0, 5.5)
    for what in "begin", "write", "over", "lease", "belief":
        past.drop(what, **({"token": 5000} if what == "lease" else {"body": "both-1-5.0"}))
    past.drop("record", id="both-1", event="task_succeeded")
    past.drop("story", id="both-1")
    past.add("story", 5.0, execution="waits", id="both-1", pid=13, events=["task_waiting"], errors=[])
    assert past.found() == {"lost run"}


def test_a_run_of_several_keys_may_be_passed_while_it_waits(past):
    """It waits in the line of one key, and then in that of the other."""
    for run, since, begun in (1, 5.0, 7.0), (2, 6.0, 6.5):
        entry, key = ("both", "x y") if run == 1 else ("left", "x")
        past.tick(entry, run, begun - 0.1)
        past.body(key, f"{entry}-{run}", begun, begun + 0.1)
        told = {"execution": f"waits-{run}", "id": f"{entry}-{run}", "pid": 13, "errors": []}
        past.add("story", since, **told, events=["task_waiting"])
    past.claimed.update(both=1, left=2)
    past.tick("left", 1, 3.0)
    past.body("x", "left-1", 3.1, 3.2)
    assert past.found() == set()


def test_it_is_told_how_much_there_was_of_both(past):
    few(past, 1, 5.0, 7.0)
    few(past, 2, 5.5, 6.0)
    both(past, 1, 5.0, 5.5)
    past.add("story", 4.9, execution="waits", id="both-1", pid=13, events=["task_waiting"], errors=[])
    told = counts(past.history())
    assert told["bodies of a key that several may have"] == 2
    assert told["of these, begun beside another"] == 1
    assert told["bodies of several keys"] == 1
    assert told["of their runs, begun after they had waited"] == 1


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
        past.change(what, {"token": 100, "tokens": {"k": 100}}, body="one-5-5.1")
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
    assert body == Body("one-9-9.1", "one-9", "k", 9100, 9, 9.1, 0, 9.5, 9.5, None, 9.51, "SUCCESS", "", {"k": 9100})
