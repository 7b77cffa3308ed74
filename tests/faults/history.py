"""The history of one run, as witnesses outside of the system have written it down; nothing here knows the product.

Lines are JSON objects with ``what`` and ``at`` (the host's monotonic clock, seconds), in the order in which each witness
wrote them. The first one, "setting", tells what was run: the entries, the ttls. See ``KINDS`` for the others.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

#: Who tells what.
KINDS = {
    "message": "the broker's reader: a tick lies in the broker (entry, run, due, id, pid)",
    "copy": "the broker's reader: it has given the workers a message, or a copy of one (id, number)",
    "begin": "a body: it has begun, under a token of each of its keys (body, id, retries, key, token, tokens, pid, worker)",
    "write": "the guarded place: a body's last deed, accepted or refused (as begin, accepted)",
    "over": "a worker: an execution has ended and released its lock (id, retries, pid, body, state, reason)",
    "belief": "a body: until when at least it believed that it holds its lock (body, until)",
    "lease": "the store's watcher: a live lease, not seen before, and seen until then, in these looks (key, token, pid, run, after, since, until, looks)",
    "up": "the runner: a process is at work (name, pid, entries)",
    "down": "the runner: it is not any more (name, pid)",
    "fault": "the runner: what was done to whom (kind, target, harms, until, killed, frozen, moment)",
    "shift": "the runner: the clock of a process is off by so much from now on (name, seconds)",
    "hang": "the runner: what did not come about within its bound (who, bound)",
    "pause": "the operator: an entry was paused at that moment, and until then (entry, acknowledged, until)",
    "quiet": "the runner: all faults are undone, and all is at work again (since)",
    "story": "a process's log: what it told of one execution (execution, id, pid, events, errors)",
    "record": "the journal: what is written there (event, id, token, execution, pid, entry, run, count, written)",
    "end": "the runner: what is left when all has ended (claimed, pending, held, lasting, processes, unanswered)",
}


@dataclass(frozen=True)
class Message:
    """A tick in the broker. ``due`` is what the beat says, by its own wall clock."""

    at: float
    entry: str
    run: int
    due: float
    id: str
    pid: int


@dataclass
class Body:
    """One execution of a task's body: what it told from its beginning to its end."""

    name: str
    id: str
    key: str
    token: int
    pid: int
    begun: float
    retries: int = 0
    held_until: float = 0.0
    #: when its write was accepted: that is its end
    ended: float | None = None
    refused: float | None = None
    over: float | None = None
    state: str | None = None
    #: the name of its worker
    worker: str = ""
    #: the token of each key, where they are told one by one
    of_each: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> dict[str, int]:
        """The token of each of its keys."""
        return self.of_each or {self.key: self.token}


@dataclass(frozen=True)
class Fault:
    """``harms``: names of processes, "store" and "broker" that it keeps from their work, from ``at`` until ``until``."""

    at: float
    until: float
    kind: str
    target: str
    harms: tuple[str, ...] = ()
    killed: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    moment: str | None = None


@dataclass
class History:
    """All lines of one run."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, at: float, **fields: Any) -> None:
        self.lines.append({"what": what, "at": at, **fields})

    def of_now(self, what: str) -> list[dict[str, Any]]:
        """As ``of``, of a history that still grows."""
        return [line for line in list(self.lines) if line["what"] == what]

    def of(self, what: str) -> list[dict[str, Any]]:
        return self._by_what.get(what, [])

    @cached_property
    def _by_what(self) -> dict[str, list[dict[str, Any]]]:
        by_what = defaultdict(list)
        for line in self.lines:
            by_what[line["what"]].append(line)
        return by_what

    @property
    def setting(self) -> dict[str, Any]:
        """The first line: ``seed``, ``started`` and ``ended``, ``wall`` (what to add to get to the wall clock), ``claim_ttl``,
        ``slack``, ``grace``, and ``entries``: name -> ``every`` (seconds), ``marks`` (true: at marks of the clock),
        ``kind`` (once, skip, early), ``key`` (several, with a space between them), ``limit`` (so many may have it), ``ttl``,
        ``in_memory`` (whose lock is in the memory store) and ``pauses`` (it is paused at times)."""
        return self.lines[0]

    @cached_property
    def limits(self) -> dict[str, int]:
        """How many may have each key at a time."""
        return {
            key: told.get("limit", 1) for told in self.setting["entries"].values() for key in told["key"].split(" ")
        }

    @cached_property
    def of_several(self) -> frozenset[str]:
        """The keys that some runs have together with others."""
        several = [told["key"].split(" ") for told in self.setting["entries"].values()]
        return frozenset(key for keys in several for key in keys if len(keys) > 1)

    def by_key(self) -> dict[str, list[Body]]:
        """The bodies that had each key, in the order in which they began."""
        groups = defaultdict(list)
        for body in self.bodies:
            for key in body.tokens:
                groups[key].append(body)
        return dict(groups)

    @cached_property
    def end(self) -> dict[str, Any]:
        return self.of("end")[-1]

    @cached_property
    def messages(self) -> list[Message]:
        return [
            Message(line["at"], line["entry"], line["run"], line["due"], line["id"], line["pid"])
            for line in self.of("message")
        ]

    @cached_property
    def bodies(self) -> list[Body]:
        bodies: dict[str, Body] = {}
        for line in self.of("begin"):
            name, at, worker = line["body"], line["at"], line.get("worker", "").partition("@")[0]
            told = (name, line["id"], line["key"], line["token"], line["pid"], at)
            of_each = line.get("tokens", {})
            bodies[name] = Body(*told, retries=line.get("retries", 0), held_until=at, worker=worker, of_each=of_each)
        for line in self.of("belief"):
            if line["body"] in bodies:
                bodies[line["body"]].held_until = max(bodies[line["body"]].begun, line["until"])
        for line in self.of("write"):
            body = bodies[line["body"]]
            body.ended, body.refused = (line["at"], None) if line["accepted"] else (None, line["at"])
        for line in self.of("over"):
            if line["body"] in bodies:
                bodies[line["body"]].over, bodies[line["body"]].state = line["at"], line["state"]
        return sorted(bodies.values(), key=lambda body: body.begun)

    @cached_property
    def faults(self) -> list[Fault]:
        return [
            Fault(
                line["at"],
                line["until"],
                line["kind"],
                line["target"],
                tuple(line.get("harms", ())),
                tuple(line.get("killed", ())),
                tuple(line.get("frozen", ())),
                line.get("moment"),
            )
            for line in self.of("fault")
        ]

    @cached_property
    def deaths(self) -> dict[int, Fault]:
        """What killed each process that was."""
        return {pid: fault for fault in self.faults for pid in fault.killed}

    def save(self, path: Path) -> None:
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    @classmethod
    def load(cls, path: Path) -> History:
        return cls([json.loads(line) for line in path.read_text().splitlines()])


def grouped(items: Iterable[Any], by: str) -> dict[Any, list[Any]]:
    """Sort things by one of their attributes, keeping their order."""
    groups = defaultdict(list)
    for item in items:
        groups[getattr(item, by)].append(item)
    return dict(groups)


Span = tuple[float, float]


def without(spans: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    """Cut holes into spans."""
    left = list(spans)
    for start, stop in holes:
        left = [part for a, b in left for part in ((a, min(b, start)), (max(a, stop), b)) if part[0] < part[1]]
    return left


def healthy(history: History, name: str, entry: str) -> list[Span]:
    """When this beat was at work and knew the entry, and nothing was done to it, to the store or the broker, nor just before."""
    grace, ended = history.setting["grace"], history.setting["ended"]
    spans, since = [], None
    for line in (each for each in history.lines if each["what"] in ("up", "down") and each["name"] == name):
        if line["what"] == "up":
            since = line["at"] if entry in line["entries"] else None
        elif since is not None:
            spans.append((since, line["at"]))
            since = None
    if since is not None:
        spans.append((since, ended))
    scopes = {name, "store", "broker"}
    return without(spans, ((f.at, f.until + grace) for f in history.faults if scopes & set(f.harms)))
