"""The verdict: pure functions over a history, one per promise; each returns the violations that it finds.

They share no code with the product, and excuse only what the promises themselves do:

- A body that is frozen goes on for a moment when it is thawed, whoever holds its key by then. So "overlap" is about what
  bodies *believe*: no two may believe at one moment that they hold one key; what the late one writes must be refused.
- A worker that dies between a body's last deed and the release of its lock leaves nobody who knows that it has ended: with
  ``acks_late`` that run begins, and may end, again. So "doubled" is a run that ends again though it was told to be over.
- Acknowledged early (Celery's default), a run dies with its worker: at most once, and lost only by a death.
- Ticks that come due while no beat is at work are one tick when one is, as in Celery.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from faults.history import Body, Fault, History, Message, grouped, healthy, without


@dataclass(frozen=True)
class Violation:
    """What must not be, when, and whom it is about (keys, entries, task ids, names and pids): its window of the history."""

    rule: str
    text: str
    since: float
    until: float
    about: frozenset[object]


def violation(rule: str, text: str, *moments: float, about: Iterator[object] | tuple[object, ...]) -> Violation:
    return Violation(rule, text, min(moments), max(moments), frozenset(about))


# -- P1: exclusion -----------------------------------------------------------------------------------------------------


def overlaps(history: History) -> Iterator[Violation]:
    """No more bodies than may have one key believe at one moment that they do, and no two of one run."""
    for key, bodies in history.by_key().items():
        limit, inside = history.limits.get(key, 1), []
        for body in bodies:
            inside = [each for each in inside if each.held_until >= body.begun]
            if len(inside) >= limit or any(each.id == body.id for each in inside):
                others = " and ".join(map(_told, inside))
                text = f"{key}: {_told(body)} began while {others} believed that it holds the key"
                about = {key, *(name for each in (*inside, body) for name in (each.key, each.id, each.pid))}
                yield violation("overlap", text, inside[0].begun, body.begun, about=tuple(about))
            inside.append(body)


#: Leases that one call has taken have tokens of one moment, microseconds.
TAKEN_AT_ONCE = 100_000

#: What is given back key by key, since its holder is dead, say, is so in parts for so long at most.
IN_PARTS = 0.5


def all_or_none(history: History) -> Iterator[Violation]:
    """Who has one of several keys has each of them from the same look on; and none alone, but while they are given back."""
    keys_of = {each.id: history.setting["entries"][each.entry]["key"].split(" ") for each in history.messages}
    runs = defaultdict(list)
    for line in history.of("lease"):
        if len(keys_of.get(_id_of(line), ())) > 1:
            runs[line["run"], line["pid"]].append(line)
    for (_, pid), leases in runs.items():
        for taken in _taken_at_once(leases):
            have, wanted = {line["key"] for line in taken}, set(keys_of[_id_of(taken[0])])
            since, until = min(line["since"] for line in taken), max(line["until"] for line in taken)
            in_parts = len({line["looks"][0] for line in taken}) > 1
            kept = have != wanted and until - since > IN_PARTS and not _is_harmed(history, pid, since, until)
            if in_parts or kept:
                how = "had not all of its keys from one look on" if in_parts else f"had {sorted(have)} alone"
                text = f"{taken[0]['run']} (pid {pid}) {how}, of {sorted(wanted)}"
                yield violation("part of its keys", text, since, until, about=(*wanted, _id_of(taken[0]), pid))


def _id_of(lease: dict[str, Any]) -> str:
    """The task id of the run that has a lease."""
    return str(lease.get("run", "")).partition(":")[0]


def _taken_at_once(leases: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    taken: list[dict[str, Any]] = []
    for line in sorted(leases, key=lambda line: line["token"]):
        if taken and line["token"] > taken[0]["token"] + TAKEN_AT_ONCE:
            yield taken
            taken = []
        taken.append(line)
    yield taken


def _is_harmed(history: History, pid: int, since: float, until: float) -> bool:
    """Whether the store, a worker's way there, or this process was."""
    grace = history.setting["grace"]
    return any(
        fault.at < until
        and fault.until + grace > since
        and ({"store", "worker", "worker's store"} & set(fault.harms) or pid in (*fault.killed, *fault.frozen))
        for fault in history.faults
    )


# -- lines -------------------------------------------------------------------------------------------------------------


def order(history: History) -> Iterator[Violation]:
    """Of those that wait for one key, who began to wait first begins first, unless something was harmed meanwhile."""
    keys = {
        key for told in history.setting["entries"].values() if told["kind"] == "wait" for key in told["key"].split(" ")
    }
    since: dict[str, float] = {}
    for line in history.of("story"):
        if "task_waiting" in line["events"]:
            since[line["id"]] = min(line["at"], since.get(line["id"], line["at"]))
    slack, grace = history.setting["slack"], history.setting["grace"]
    harmed = [(fault.at - slack, fault.until + grace + slack) for fault in history.faults]
    # those that need several wait in several lines, and are passed by others meanwhile
    for key in sorted(keys - history.of_several):
        first = {body.id: body for body in reversed(history.bodies) if body.key == key}
        waited = sorted(((since[each], first[each]) for each in since.keys() & first.keys()), key=lambda each: each[0])
        # of two that are called at once either may come first
        apart = slack if history.limits[key] > 1 else 0.0
        for (_, before), (at, after) in pairwise(waited):
            # told by two processes, at nearly the same time, they may have come the other way round
            if after.begun + apart < before.begun and at - since[before.id] > slack / 10:
                span = (since[before.id], before.begun)
                if not any(a < span[1] and span[0] < b for a, b in harmed):
                    text = f"{before.key}: {_told(after)} began before {_told(before)}, which had waited for longer"
                    yield violation("order", text, *span, about=(before.key, before.id, after.id))


# -- P5: tokens --------------------------------------------------------------------------------------------------------


def tokens(history: History) -> Iterator[Violation]:
    """Tokens only grow per key, and the guarded place refuses a write with an older one than it has seen."""
    for key, bodies in history.by_key().items():
        pairs = pairwise(bodies) if history.limits.get(key, 1) == 1 else _one_after_the_other(history, key, bodies)
        for before, after in pairs:
            if after.tokens[key] <= before.tokens[key]:
                text = f"{key}: {_told(after)} has token {after.tokens[key]}, after {before.tokens[key]} of {_told(before)}"
                yield violation("token", text, before.begun, after.begun, about=(key, after.key, before.id, after.id))
    yield from _writes(history)


def _one_after_the_other(history: History, key: str, bodies: list[Body]) -> Iterator[tuple[Body, Body]]:
    """Each body of a key that several may have, and the one of the greatest token that had left it when it was granted."""
    absent = {line["token"]: line["after"] for line in history.of("lease") if line["key"] == key}
    for body in bodies:
        # of those that have it together either may begin first; when one was granted is between two looks
        since = absent.get(body.tokens[key], float("-inf"))
        gone = [each for each in bodies if each.held_until < since]
        same = [each for each in bodies if each is not body and each.tokens[key] == body.tokens[key]]
        for before in [max(gone, key=lambda each: each.tokens[key]), *same] if gone else same:
            yield before, body


def _writes(history: History) -> Iterator[Violation]:
    seen: dict[tuple[str, str], int] = {}
    for line in history.lines:
        if line["what"] not in ("begin", "write"):
            continue
        told = line.get("tokens") or {line["key"]: line["token"]}
        # where several may have a key, each run has a place of its own to write to
        places = {(key, line["id"] if history.limits.get(key, 1) > 1 else ""): token for key, token in told.items()}
        current = all(token >= seen.get(place, 0) for place, token in places.items())
        if line["what"] == "write" and line["accepted"] != current:
            greatest = max(seen.get(place, 0) for place in places)
            text = f"{line['key']}: a write with token {line['token']} after {greatest} was {'accepted' if line['accepted'] else 'refused'}"
            yield violation("token", text, line["at"], about=(line["key"], line["id"]))
        if current:
            seen.update(places)


# -- P2: ticks ---------------------------------------------------------------------------------------------------------


def ticks_under_one_id(history: History) -> Iterator[Violation]:
    """Each run of an entry has one task id, and each task id one run."""
    ids: dict[tuple[str, int], Message] = {}
    runs: dict[str, Message] = {}
    for message in history.messages:
        first = ids.setdefault((message.entry, message.run), message)
        if first.id != message.id:
            text = f"run {message.run} of {message.entry} was published as {first.id} and as {message.id}"
            yield violation("doubled tick", text, first.at, message.at, about=(message.entry, first.id, message.id))
        first = runs.setdefault(message.id, message)
        if (first.entry, first.run) != (message.entry, message.run):
            text = f"{message.id} is run {first.run} of {first.entry} and run {message.run} of {message.entry}"
            yield violation("doubled tick", text, first.at, message.at, about=(message.entry, message.id))


def ticks_that_were_claimed(history: History) -> Iterator[Violation]:
    """Of the runs that were claimed, 1 to n of each entry, each has been published, or is there to be taken over."""
    kept = {(entry, run) for entry, run in history.end.get("handed_over", [])}
    for entry, count in history.end["claimed"].items():
        if history.setting["entries"].get(entry, {}).get("pauses"):
            continue  # what was passed over has a number, too
        first = {message.run: message for message in reversed(history.messages) if message.entry == entry}
        for run in range(1, count + 1):
            if run not in first and (entry, run) not in kept:
                near = [first[each].at for each in (run - 1, run + 1) if each in first] or [history.setting["started"]]
                yield violation(
                    "lost tick", f"run {run} of {entry} was claimed and never published", *near, about=(entry,)
                )
        for run in first.keys() - range(1, count + 1):
            text = f"run {run} of {entry} was published; it was claimed {count} times only"
            yield violation("doubled tick", text, first[run].at, about=(entry, first[run].id))


def marks(history: History) -> Iterator[Violation]:
    """Each mark of the clock that an entry is due at has one run; and has one if a beat was at work around it."""
    setting = history.setting
    for entry, told in setting["entries"].items():
        if not told["marks"]:
            continue
        every = told["every"]
        seen: dict[int, Message] = {}
        for message in _first_of_runs(history, entry):
            mark = round(message.due / every)
            known = seen.setdefault(mark, message)
            if known.run != message.run and _clocks_were_right(history, known, message):
                text = f"mark {mark * every} of {entry} has runs {known.run} and {message.run}"
                yield violation("doubled tick", text, known.at, message.at, about=(entry, known.id, message.id))
        for mark in marks_to_check(history, entry):
            if mark not in seen:
                at = mark * every - setting["wall"]
                text = f"mark {mark * every} of {entry} has no run, though a beat was at work"
                yield violation("lost tick", text, at, about=(entry,))


def marks_to_check(history: History, entry: str) -> list[int]:
    """The marks around which some beat that knows the entry was at work, undisturbed, with all clocks right."""
    setting = history.setting
    every, wall, slack = setting["entries"][entry]["every"], setting["wall"], setting["slack"]
    off = _clocks_off(history)
    spans = [
        span
        for name in _beats_that_know(history, entry)
        for span in without(healthy(history, name, entry), ((a - slack, b + slack + every) for a, b in off))
    ]
    first, last = (int((setting[each] + wall) / every) for each in ("started", "ended"))
    return [
        mark
        for mark in range(first, last + 1)
        if any(a <= mark * every - wall - every and mark * every - wall + slack <= b for a, b in spans)
    ]


def gaps(history: History) -> Iterator[Violation]:
    """While a beat is at work that knows an entry, it is due no later than its interval and the ttl of a claim allow."""
    setting = history.setting
    off = _clocks_off(history)
    for entry, told in setting["entries"].items():
        if told.get("pauses"):
            continue
        allowed = told["every"] + setting["claim_ttl"] + setting["slack"]
        arrivals = [message.at for message in history.messages if message.entry == entry]
        arrivals = [setting["started"], *arrivals, setting["ended"]]
        for name in _beats_that_know(history, entry):
            spans = without(healthy(history, name, entry), ((a, b + told["every"] + setting["slack"]) for a, b in off))
            for before, after in pairwise(arrivals):
                for a, b in spans:
                    if min(b, after) - max(a, before) > allowed:
                        text = f"{entry} was not published for {after - before:.1f} s, though beat {name} was at work"
                        yield violation("late tick", text, before, after, about=(entry, name))


def early_ticks(history: History) -> Iterator[Violation]:
    """No two ticks of an interval are nearer to each other than it is long."""
    for entry, told in history.setting["entries"].items():
        if told["marks"]:
            continue
        for before, after in pairwise(_first_of_runs(history, entry)):
            apart = after.due - before.due
            if apart < told["every"] * 0.75 and _clocks_were_right(history, before, after):
                text = f"runs {before.run} and {after.run} of {entry} were due within {apart:.2f} s of each other"
                yield violation("doubled tick", text, before.at, after.at, about=(entry, before.id, after.id))


def pauses(history: History) -> Iterator[Violation]:
    """Nothing of an entry is published from when its pause was acknowledged until somebody resumes it."""
    slack = history.setting["slack"]
    for pause in history.of("pause"):
        for message in history.messages:
            if message.entry != pause["entry"] or not pause["acknowledged"] + slack < message.at < pause["until"]:
                continue
            if not _was_on_its_way(history, pause["at"], message):
                text = f"run {message.run} of {message.entry} was published {message.at - pause['acknowledged']:.1f} s after its pause"
                about = (message.entry, message.id)
                yield violation("published while paused", text, pause["at"], message.at, about=about)


def _was_on_its_way(history: History, asked: float, message: Message) -> bool:
    """Whether it may have been sent before: a beat was frozen as it sent it, or the broker, or a way there, was harmed."""
    since = asked - history.setting["claim_ttl"]
    beats = _beats_that_know(history, message.entry)
    return any(
        fault.at < message.at
        and fault.until + history.setting["slack"] > since
        and ("broker" in fault.harms or fault.target.endswith(" broker") or (fault.frozen and fault.target in beats))
        for fault in history.faults
    )


# -- P2: runs ----------------------------------------------------------------------------------------------------------


def runs(history: History) -> Iterator[Violation]:
    """Each published tick is brought to its end at most once; and once, if its kind says so."""
    bodies, overs = grouped(history.bodies, "id"), defaultdict(list)
    for line in history.of("over"):
        overs[line["id"]].append(line)
    for message in {each.id: each for each in reversed(history.messages)}.values():
        told = history.setting["entries"][message.entry]
        yield from _ended_again(history, message, bodies.get(message.id, []))
        if any(body.ended for body in bodies.get(message.id, [])):
            continue
        states = [line["state"] for line in overs[message.id]]
        if told["kind"] == "skip" and "TaskSkipped" in states:
            continue
        if told["kind"] == "early" and _died(history, message, bodies.get(message.id, []), states):
            continue
        text = f"run {message.run} of {message.entry} ({message.id}) has not come to its end; told of it: {states}"
        yield violation("lost run", text, message.at, about=(message.entry, message.id, told["key"]))


def _ended_again(history: History, message: Message, bodies: list[Body]) -> Iterator[Violation]:
    for before, after in pairwise([body for body in bodies if body.ended is not None]):
        if before.state == "SUCCESS" and not _unheard(history, message, before):
            text = f"run {message.run} of {message.entry} ended in {_told(before)}, and again in {_told(after)}"
            yield violation(
                "doubled run", text, before.begun, after.ended or after.begun, about=(message.id, before.key)
            )
    for before in bodies:
        again = [body for body in bodies if before.over is not None and body.begun > before.over and body.ended is None]
        if before.state == "SUCCESS" and again and not _unheard(history, message, before):
            text = f"run {message.run} of {message.entry} was over, and {_told(again[0])} began all the same"
            yield violation("doubled run", text, before.begun, again[0].begun, about=(message.id, before.key))


def _unheard(history: History, message: Message, body: Body) -> bool:
    """Whether the store may not have heard that this body has ended: it, or the way to it, was harmed at that time."""
    since, until = body.ended or body.begun, body.over or body.begun
    ways = {"disk"} if history.setting["entries"][message.entry].get("in_memory") else {"store", "worker's store"}
    return any(
        # a release is not waited for until a replica has it
        fault.at < until + (1 if fault.kind.startswith("fail over") else 0)
        and fault.until + 1 > since
        and (ways & set(fault.harms) or body.pid in fault.frozen)
        for fault in history.faults
    )


def ended_again(history: History) -> list[Body]:
    """Those that had ended, in workers that could not tell so any more, before their runs began once more."""
    return [
        before
        for bodies in grouped(history.bodies, "id").values()
        for before, _ in pairwise([body for body in bodies if body.ended is not None])
    ]


def _died(history: History, message: Message, bodies: list[Body], states: list[str]) -> bool:
    """Whether a run that is acknowledged early may have been lost, by its worker's death or its own failure."""
    if any(body.pid in history.deaths for body in bodies) or set(states) - {"SUCCESS", "Ignore"}:
        return True
    # it may have died in a worker's hands before it began
    workers = {line["name"] for line in history.of("up") if not line["entries"]} | {"broker"}
    return not bodies and any(
        (fault.killed or "broker" in fault.harms)
        and workers & {fault.target, *fault.harms}
        and fault.until > message.at
        for fault in history.faults
    )


# -- P6: frees ---------------------------------------------------------------------------------------------------------


def frees(history: History) -> Iterator[Violation]:
    """A lock is free when its run is over, within a second of a pool child's death, and within the ttl of a worker's."""
    setting = history.setting
    ttls = {key: told["ttl"] for told in setting["entries"].values() for key in told["key"].split(" ")}
    over = {each: body for body in history.bodies if body.over is not None for each in body.tokens.items()}
    for line in history.of("lease"):
        key, token, pid, until = line["key"], line["token"], line["pid"], line["until"]
        body, death = over.get((key, token)), history.deaths.get(pid)
        if body is not None:
            at, worker, bound, how = body.over or 0.0, body.worker, 0.0, "its run was over"
        elif death is not None and death.at > line["since"] - 1:
            bound = 1.0 if len(death.killed) == 1 else ttls[key]
            at, worker, how = death.at, death.target, "its holder died"
        else:
            continue
        # what counts is the time in which somebody could have freed it
        free_to = without([(at, until)], _nobody_could_free(history, worker, at, death)) if until > at else []
        waited = sum(stop - start for start, stop in free_to)
        if waited > bound + setting["slack"] or until > at + ttls[key] + setting["grace"] + setting["slack"]:
            text = f"{key} was held {until - at:.1f} s after {how} (pid {pid}, token {token}); allowed: {bound:.1f} s"
            yield violation("orphan lock", text, at, until, about=(key, pid))


def _nobody_could_free(history: History, worker: str, at: float, but: Fault | None) -> list[tuple[float, float]]:
    """When the store was harmed, or who frees the locks of that worker; a worker that is dead does not free them later."""
    grace, forever = history.setting["grace"], float("inf")
    return [
        # one that was frozen looks at once when it is thawed; a call that hangs has its time
        (fault.at, forever if fault.killed else fault.until + (0 if fault.frozen else grace))
        for fault in history.faults
        if {"store", worker} & set(fault.harms)
        and fault is not but
        and not fault.target.endswith(" broker")
        and not (fault.killed and fault.at < at)  # another has taken its place since
    ]


# -- P7: stories -------------------------------------------------------------------------------------------------------

#: How an execution may fail in these runs.
EXPECTED = {"StoreUnavailable", "LockLost", "LockNotAcquired", "Reject", "WorkerLostError", "WorkerShutdown"}


def stories(history: History) -> Iterator[Violation]:
    """Each execution tells of its start, of one ending, and of its end, in this order; a killed one, of a part of it."""
    for line in history.of("story"):
        told = [name for name in line["events"] if name.startswith("task_")]
        if told == ["task_waiting"]:
            continue  # what follows is another execution, of another copy of its message
        wholes = [
            ["task_started", f"task_{how}", "task_finished"] for how in ("succeeded", "failed", "retried", "skipped")
        ]
        killed = line["pid"] in history.deaths
        if told not in wholes and not (killed and any(whole[: len(told)] == told for whole in wholes)):
            text = f"execution {line['execution']} of {line['id']} told {told}"
            yield violation("story", text, line["at"], about=(line["id"], line["pid"]))
        for error in set(line["errors"]) - EXPECTED:
            yield violation("story", f"{line['id']} failed of {error}", line["at"], about=(line["id"], line["pid"]))


# -- the journal -------------------------------------------------------------------------------------------------------

#: A kill takes along what was not yet written: a batch is gathered for half a second, and may wait for the one before it.
WRITTEN_WITHIN = 2.0

#: The events that end a run.
ENDS = frozenset({"task_succeeded", "task_failed", "task_retried", "task_skipped", "task_died"})


def journal(history: History) -> Iterator[Violation]:
    """Each tick and each run that the witness has seen is in the journal, or counted as dropped, and no success that it has not."""
    records = history.of("record")
    if not records:
        yield violation("journal", "there is none", history.setting["ended"], about=())
        return
    dropped = sum(line["count"] for line in records if line["event"] == "records_dropped")
    missing = [*_ticks_not_written(history), *_runs_not_written(history)]
    if len(missing) > dropped:
        yield from missing
    yield from _successes_of_nobody(history)


def _ticks_not_written(history: History) -> Iterator[Violation]:
    written = {line["id"] for line in history.of("record") if line["event"] == "tick_published"}
    for message in {each.id: each for each in reversed(history.messages)}.values():
        copies = [each for each in history.messages if each.id == message.id]
        # whoever published it may have been killed before it wrote so
        if message.id not in written and not all(_took_along(history, each.pid, each.at) for each in copies):
            text = f"tick {message.run} of {message.entry} ({message.id}) was published, and is not in the journal"
            yield violation("journal", text, message.at, about=(message.id, message.entry))


def _runs_not_written(history: History) -> Iterator[Violation]:
    begun, ended = set(), set()
    for line in history.of("record"):
        if line["event"] == "task_started" or line["event"] in ENDS:
            begun.add((line["id"], line["token"]))
        if line["event"] in ENDS:
            ended.add((line["id"], line["token"]))
    for body in history.bodies:
        which = body.id, body.token
        if which not in begun and not _took_along(history, body.pid, body.begun):
            yield violation("journal", f"{_told(body)} is not in the journal", body.begun, about=(body.id, body.pid))
        elif body.over is not None and which not in ended and not _took_along(history, body.pid, body.over):
            text = f"the end of {_told(body)} is not in the journal"
            yield violation("journal", text, body.over, about=(body.id, body.pid))


def _took_along(history: History, pid: int, since: float) -> bool:
    """Whether a process was killed, or its pool ended, before it could have written what happened at that moment."""
    death = history.deaths.get(pid)
    ends = [death.at] if death is not None else []
    # a process that ends tries to write for two seconds: as long as the store is away, in vain
    ends += [line["at"] for line in history.of("down") if line["at"] > since]
    for end in ends:
        span = [(since, end)] if end > since else []
        ways = {"store", "worker's store", "worker", "beat"}
        harmed = [
            (fault.at, fault.until + history.setting["grace"])
            for fault in history.faults
            if ways & set(fault.harms) or pid in fault.frozen or fault.kind.startswith("fail over")
        ]
        if death is not None and end == death.at and sum(b - a for a, b in without(span, harmed)) < WRITTEN_WITHIN:
            return True
        if end != getattr(death, "at", None) and any(a < end and b > since for a, b in harmed):
            return True
    # what was acknowledged, and lost with a primary
    return any(
        fault.kind.startswith("fail over") and fault.at < since + WRITTEN_WITHIN and fault.until + 1 > since
        for fault in history.faults
    )


def _successes_of_nobody(history: History) -> Iterator[Violation]:
    known = {(body.id, body.token) for body in history.bodies if body.ended is not None or body.state == "SUCCESS"}
    for line in history.of("record"):
        if line["event"] == "task_succeeded" and (line["id"], line["token"]) not in known:
            text = f"the journal has a success of {line['id']}, token {line['token']}, that no body has told"
            yield violation("journal", text, line["at"], about=(line["id"], line["pid"]))


# -- P8: hangs, leftovers ----------------------------------------------------------------------------------------------


def hangs(history: History) -> Iterator[Violation]:
    """No process ends by itself, all comes about within its bound, and whoever asked for a result has an answer."""
    for line in history.of("fault"):
        if line["kind"] == "ended by itself":
            yield violation(
                "hang", f"{line['target']} ended by itself: {line['why']}", line["at"], about=(line["target"],)
            )
    for line in history.of("hang"):
        yield violation(
            "hang",
            f"{line['who']}: not within {line['bound']:g} s",
            line["at"] - line["bound"],
            line["at"],
            about=(line["who"],),
        )
    for task_id in history.end["unanswered"]:
        over = [line for line in history.of("over") if line["id"] == task_id]
        yield violation("hang", f"{task_id} is over, and has no result", over[-1]["at"], about=(task_id,))


def leftovers(history: History) -> Iterator[Violation]:
    """Nothing is left: no process, no live lock, no claim, no key without an end."""
    for what, rule in (
        ("held", "orphan lock"),
        ("pending", "lost tick"),
        ("lasting", "key left behind"),
        ("processes", "process left behind"),
    ):
        for each in history.end[what]:
            yield violation(rule, f"left at the end: {what} {each}", history.end["at"], about=(each,))


# -- all of it ---------------------------------------------------------------------------------------------------------

RULES: tuple[Callable[[History], Iterator[Violation]], ...] = (
    overlaps,
    all_or_none,
    order,
    tokens,
    ticks_under_one_id,
    ticks_that_were_claimed,
    marks,
    gaps,
    early_ticks,
    pauses,
    runs,
    frees,
    stories,
    journal,
    hangs,
    leftovers,
)


def check(history: History) -> list[Violation]:
    """Return all violations, in order of time."""
    return sorted((each for rule in RULES for each in rule(history)), key=lambda each: each.since)


def counts(history: History) -> dict[str, int]:
    """How much there was to check: a verdict over nothing is worth nothing."""
    entries = history.setting["entries"]
    first = {message.id: message for message in reversed(history.messages)}
    states = Counter(line["state"] for line in history.of("over"))
    reasons = Counter(line["reason"] for line in history.of("over") if line["state"] == "TaskSkipped")
    begun = Counter(body.id for body in history.bodies)
    waited = {line["id"] for line in history.of("story") if "task_waiting" in line["events"]}
    return {
        "faults": len(history.faults),
        "ticks published": len(first),
        "messages in the broker": len(history.messages),
        "messages given to workers, copies included": len(history.of("copy")),
        "bodies begun": len(history.bodies),
        "bodies ended": sum(body.ended is not None for body in history.bodies),
        "runs begun more than once": sum(count > 1 for count in begun.values()),
        "runs ended again, their first end untold": len(ended_again(history)),
        "writes refused for an older token": sum(body.refused is not None for body in history.bodies),
        "locks lost, and known to be": sum(
            "lock_expired_before_finish" in line["events"] for line in history.of("story")
        ),
        "skipped, key held": reasons["locked"],
        "skipped, duplicates": reasons["duplicate"],
        "copies postponed, and put off to wait": states["Ignore"],
        "runs that waited in line": len(waited),
        "bodies of a key that several may have": sum(history.limits.get(body.key, 1) > 1 for body in history.bodies),
        "of these, begun beside another": _begun_beside_another(history),
        "bodies of several keys": sum(len(body.tokens) > 1 for body in history.bodies),
        "of their runs, begun after they had waited": len(
            waited & {body.id for body in history.bodies if len(body.tokens) > 1}
        ),
        "marks of the clock that had to have a run": sum(
            len(marks_to_check(history, name)) for name, told in entries.items() if told["marks"]
        ),
        "pauses acknowledged": len(history.of("pause")),
        "leases watched": len(history.of("lease")),
        "executions that told their story": len(history.of("story")),
        "times that all was at work again": len(history.of("quiet")),
    }


def _begun_beside_another(history: History) -> int:
    count = 0
    for key, bodies in history.by_key().items():
        if history.limits.get(key, 1) > 1:
            count += sum(any(each.held_until >= body.begun for each in bodies[:n]) for n, body in enumerate(bodies))
    return count


def _told(body: Body) -> str:
    return f"{body.id}#{body.retries} (pid {body.pid}, token {body.token})"


def _first_of_runs(history: History, entry: str) -> list[Message]:
    first = {message.run: message for message in reversed(history.messages) if message.entry == entry}
    return [first[run] for run in sorted(first)]


def _beats_that_know(history: History, entry: str) -> list[str]:
    return sorted({line["name"] for line in history.of("up") if entry in line["entries"]})


def _clocks_were_right(history: History, *messages: Message) -> bool:
    """Whether the clock of every beat was right when these were due, and since: whoever claimed them, and published them."""
    moments = [at for each in messages for at in (each.at, each.due - history.setting["wall"])]
    # it takes some seconds until a tick that was claimed by a wrong clock is the last one no more
    return not any(start < max(moments) + 1 and min(moments) - 6 < stop for start, stop in _clocks_off(history))


def _clocks_off(history: History) -> list[tuple[float, float]]:
    """When the clock of some beat was wrong."""
    spans, since = [], {}
    for line in history.of("shift"):
        if line["seconds"]:
            since.setdefault(line["name"], line["at"])
        elif line["name"] in since:
            spans.append((since.pop(line["name"]), line["at"]))
    return spans + [(at, history.setting["ended"]) for at in since.values()]
