"""What is searched: the protocols as they are, and each without one of the things that they rest on."""

from __future__ import annotations

from .beats import Beats
from .checker import Model
from .lines import Lines
from .locks import Locks
from .several import Several

#: Searched whole in each run of the suite, in seconds.
HOLD: dict[str, Model] = {
    "3 beats, 2 entries, 2 ticks": Beats(ticks=2),
    "3 beats, 2 entries, 3 ticks, one claim pending at a time": Beats(backlog=1),
    "3 beats, 1 entry, 3 ticks, all of them pending, claims of two ages": Beats(entries=1, backlog=3, ttl=2),
    "3 beats, 1 entry, 3 ticks, frozen between the check and the publish": Beats(entries=1, frozen_in_publish=True),
    "2 beats, 1 entry, 1 tick, requests that come late": Beats(
        beats=2, entries=1, ticks=1, late_requests=True, frozen_in_publish=True
    ),
    "3 beats, 1 entry that is paused, 2 ticks, claims of two ages": Beats(entries=1, ticks=2, ttl=2, pauses=True),
    "2 beats, 2 entries that are paused, 2 ticks": Beats(beats=2, ticks=2, pauses=True),
    "3 workers, 2 runs, 2 copies of each": Locks(runs=2),
    "3 workers, 2 runs, a key for two, and one worker that knows of one": Locks(runs=2, copies=1, ttl=1, limits=(1, 2)),
    "2 workers, 3 runs in line, 1 copy of each, 2 deaths": Lines(copies=1),
    "2 workers, 3 runs in line, 2 copies of each, 1 death": Lines(deaths=1),
    "3 workers, 3 runs in the line of a key for two, 2 deaths": Lines(workers=3, limit=2, copies=1),
    "2 workers, 2 runs of 2 keys each, one of them the same, 1 death": Several(keys=((0, 1), (1, 2))),
    "2 workers, 2 runs, of 2 keys and of one of them, each taken by itself": Several(
        keys=((0, 1), (1,)), parted=True, deaths=0, copies=1
    ),
}

#: These take a minute each.
WHOLE: dict[str, Model] = {
    "3 beats, 2 entries, 3 ticks": Beats(),
    "3 workers, 3 runs": Locks(copies=1),
    "2 beats, 2 entries, 2 ticks, frozen between the check and the publish": Beats(
        beats=2, ticks=2, frozen_in_publish=True
    ),
    "2 beats, 2 entries, 2 ticks, claims of two ages": Beats(beats=2, ticks=2, ttl=2),
    "2 beats, 1 entry, 2 ticks, requests that come late": Beats(
        beats=2, entries=1, ticks=2, late_requests=True, frozen_in_publish=True
    ),
    "3 workers, 3 runs, 2 copies of each": Locks(),
    "3 workers, 3 runs, a key for two, and one worker that knows of one": Locks(copies=1, ttl=1, limits=(1, 2)),
    "2 workers, 3 runs in line, 2 copies of each, 2 deaths": Lines(),
    "3 workers, 4 runs in the line of a key for two, 2 deaths": Lines(workers=3, runs=4, limit=2, copies=1),
    "2 workers, 3 runs in line, leases of two ages": Lines(copies=1, ttl=2, grace=2, deaths=1),
    "2 workers, 3 runs of 2 of 3 keys each": Several(deaths=0),
    "2 workers, 2 runs of the same 2 keys, each taken by itself": Several(keys=((0, 1), (0, 1)), parted=True, deaths=0),
    "2 workers, 2 runs of 2 keys each, one of them the same, leases of two ages, 1 death": Several(
        keys=((0, 1), (1, 2)), ttl=2, grace=2
    ),
}


def _beats(*without: str, **more: int | bool) -> Beats:
    return Beats(**more, without=frozenset(without))


def _locks(*without: str, **more: int | tuple[int, ...]) -> Locks:
    return Locks(**more, without=frozenset(without))


def _lines(*without: str, **more: int) -> Lines:
    return Lines(**more, without=frozenset(without))


def _several(*without: str, **more: int | tuple[tuple[int, ...], ...]) -> Several:
    return Several(**more, without=frozenset(without))


#: Each with the beginning of what it breaks.
MUTATED: dict[str, tuple[Model, str]] = {
    "no compare-and-set": (
        _beats("compare-and-set", entries=1, frozen_in_publish=True),
        "P2: tick x1 is published under two task ids",
    ),
    "the task id is chosen after the claim": (
        _beats("task id with the claim", entries=1),
        "P2: tick x1 is published under two task ids",
    ),
    "no freeze check": (_beats("freeze check", entries=1), "freeze check: tick x1"),
    "settled before it is published": (_beats("publish before settle", entries=1), "P2: tick x1 is settled"),
    "a pause is acknowledged while claims are pending": (_beats("waiting", entries=1, pauses=True), "pause: tick x1"),
    "a claim does not ask whether its entry is paused": (
        _beats("flag in the claim", entries=1, pauses=True),
        "pause: tick x1",
    ),
    "a claim of what is paused is taken over": (
        _beats("flag of what is taken over", entries=1, pauses=True),
        "pause: tick x1",
    ),
    "nothing is taken over": (_beats("take over", entries=1), "P3: a beat that is alone"),
    "a dead child's lock is freed by name": (_locks("holder"), "P1: a body trusts a lock"),
    "freed before the child is dead": (_locks("waiting for the death"), "P1: a body trusts a lock"),
    "renewed after a loss, by name": (_locks("token", "an end of a loss"), "P1: two bodies"),
    "renewed after a loss": (_locks("an end of a loss"), "P5: run"),
    "no dedupe": (_locks("dedupe"), "P2: run 1 is brought to its end twice"),
    "safety copies are acknowledged away": (_locks("safety copies"), "P2: run 1 is nowhere"),
    "who has the key alone is not counted by those who share it": (
        _locks("who had it alone", copies=1, ttl=1, limits=(1, 2)),
        "P1: three bodies",
    ),
    "a copy begins where there is room": (
        _locks("a look at those who are there", runs=2, limits=(2,)),
        "P1: two bodies of one run",
    ),
    "an orphan renews": (_locks("a look for the parent"), "P6: the child"),
    "no place is kept for who is called": (_lines("the place that is kept"), "order: run"),
    "what is free is for whoever asks": (_lines("a look at who came before"), "order: run"),
    "who waits has no copy that comes by itself": (_lines("a copy of its own"), "P2: run 2 is nowhere"),
    "a copy that died before it sent the next counts as sent": (
        _lines("a look at what was delivered before"),
        "P2: run 2 is nowhere",
    ),
    "what was taken of several keys is kept when one is refused": (
        _several("what was taken is given back"),
        "all or none: run",
    ),
    "several keys that are taken one by one are trusted from the last on": (
        _several("trust since the first of them was asked for", keys=((0, 1), (0, 1)), parted=True),
        "all or none: run",
    ),
    "a key that is kept for a run is another's for itself, too": (
        _several("one's own place"),
        "deadlock",
    ),
    "a run of several keys that has ended is not remembered": (
        _several("memory of who has ended"),
        "P2: run",
    ),
    "who has waited is not remembered": (_lines("memory of who has waited"), "P2: run 2 is brought to its end twice"),
}

#: What the protocol assumes: without it, it breaks.
ASSUMED: dict[str, tuple[Model, str]] = {
    "the store is away from the end of a run until its lease is over": (
        Locks(deaf_to_ends=True),
        "P2: run 1 is brought to its end twice",
    ),
}
