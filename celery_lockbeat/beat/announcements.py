"""What the beats of an app announce to each other of the entries that they list, and which definition of an entry counts.

Promises: beats that list an entry with another task, schedule, arguments or options say so within a minute, and as an error
when it lasts; the definition that was first announced later is the newer one, and who has an older one leaves the entry's
ticks to those with the newer, for as long as one of them is heard of. Replicas of release 0.1.0, which announce nothing, go on
as before. A beat whose schedule does not change makes two small round trips every few seconds, however many entries it has.

Not promised: anything about a tick in the time until a difference is seen; then it is whoever claims it that publishes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Final

from celery.beat import BeatLazyFunc
from celery.schedules import crontab, schedule

from celery_lockbeat.beat.agenda import Agenda
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.membership.members import HEARD_EVERY, KEPT, KEPT_EVERY, Member, enumerate_some, fields_of
from celery_lockbeat.schedules.when import OwnSchedule
from celery_lockbeat.stores import name_of
from celery_lockbeat.stores.base import ALIVE, ANNOUNCED_AT_ONCE, STATE_MEMORY, Announcement, Store

__all__ = ["Announcements", "Group", "definition_of", "definitions_of", "groups_of"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: Seconds between two looks at what others announce, while all agree and while some do not.
COMPARED_EVERY: Final = 20.0
COMPARED_AGAIN: Final = 2.0

#: Seconds for which it is believed when a definition was first announced.
FIRSTS_LAST: Final = 60.0

#: Seconds after which a difference is no release on its way any more.
LASTS: Final = 600.0

#: So many definitions are read in one round: some 10 ms.
READ_AT_ONCE: Final = 200

#: How deep what is in the arguments of an entry is looked at.
DEPTH: Final = 20


# -- what an entry is --------------------------------------------------------------------------------------------------


def definition_of(entry: Any, when: Any) -> str:
    """Return the digest of an entry's definition, that is of what its messages are made of; the same in all processes."""
    what = _canonical((entry.task, when, entry.args or (), entry.kwargs or {}, entry.options or {}), DEPTH)
    return hashlib.sha1(repr(what).encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:12]


def _canonical(value: Any, depth: int) -> Any:
    """Return what has the same ``repr`` wherever an equal value is made, as far as that can be known."""
    if value is None or type(value) in (str, int, float, bool, bytes):
        return value
    kind = type(value).__qualname__
    if depth <= 0:
        return kind
    for types, form in _FORMS:
        if isinstance(value, types):
            return form(value, depth - 1)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    if not re.search(r"\bat 0x[0-9a-f]+", text):
        return kind, text
    # it has no repr of its own: what its class has named, without what Celery has bound it to
    state = {name: each for name, each in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    return kind, _of_mapping({name: each for name, each in state.items() if name not in ("app", "nowfun")}, depth - 1)


def _of_crontab(when: Any, _: int) -> Any:
    names = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
    fields = [str(getattr(when, f"_orig_{name}", "")) for name in names]
    return type(when).__qualname__, fields, str(when.tz)


def _of_schedule(when: Any, _: int) -> Any:
    return type(when).__qualname__, when.run_every.total_seconds(), bool(when.relative)


def _of_mapping(mapping: Mapping[Any, Any], depth: int) -> Any:
    pairs = [(repr(_canonical(key, depth)), _canonical(value, depth)) for key, value in mapping.items()]
    return "mapping", sorted(pairs, key=lambda pair: pair[0])


def _of_sequence(values: Iterable[Any], depth: int) -> Any:
    return [_canonical(value, depth) for value in values]


def _of_set(values: Iterable[Any], depth: int) -> Any:
    return "set", sorted(repr(_canonical(value, depth)) for value in values)


#: What has no ``repr`` that is the same in all processes, and what stands for it instead.
_FORMS: Final[tuple[tuple[Any, Callable[[Any, int], Any]], ...]] = (
    # before Celery's, of which some are, too
    (OwnSchedule, lambda when, _: when.definition),
    (crontab, _of_crontab),
    (schedule, _of_schedule),
    (BeatLazyFunc, lambda value, depth: ("lazy", _of_mapping(vars(value), depth))),
    (Mapping, _of_mapping),
    ((list, tuple), _of_sequence),
    ((set, frozenset), _of_set),
)


# -- what others have announced ----------------------------------------------------------------------------------------


@dataclass
class Group:
    """Beats that announce the same definitions: theirs all, by the keys of the entries, and their names."""

    definitions: Mapping[str, str]
    beats: list[str] = field(default_factory=list)


def groups_of(
    store: Store, app: str, members: Iterable[Announcement], known: dict[str, Mapping[str, str]] | None = None
) -> dict[str, Group]:
    """Return the living beats among ``members`` by the digest of what they have announced. Raises StoreUnavailable.

    ``known`` are definitions by that digest; what it lacks is read, and put there.
    """
    known = {} if known is None else known
    beats = defaultdict(list)
    for member in members:
        fields = fields_of(member)
        if fields.get("kind") == "beat" and member.silent_for < ALIVE and fields.get("entries"):
            beats[str(fields["entries"])].append(member.name)
    missing = [digest for digest in beats if digest not in known]
    for each in store.announcements.announced(app, "entries", missing) if missing else ():
        known[each.name] = fields_of(each)
    return {digest: Group(known[digest], sorted(names)) for digest, names in beats.items() if digest in known}


def definitions_of(store: Store, app: str, names: Iterable[str]) -> dict[str, float]:
    """Return when each of these, made by :func:`named`, was announced first. Raises StoreUnavailable."""
    return {each.name: each.first for each in store.announcements.announced(app, "definition", sorted(names))}


def named(key: str, digest: str) -> str:
    """Name the definition of an entry among the announced ones."""
    return f"{digest} {key}"


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    """Yield the entries that are in both, with another definition."""
    return (key for key, digest in one.items() if other.get(key, digest) != digest)


# -- one beat's part ---------------------------------------------------------------------------------------------------


@dataclass
class _Difference:
    """An entry that others define otherwise: since when, and whether it is theirs to send."""

    since: float
    theirs: bool


class Announcements:
    """What one beat announces, and what it leaves to others."""

    def __init__(self, app: Any, clock: Callable[[], float], **more: Any) -> None:
        self._app = app
        self._name = name_of(app)
        self._clock = clock
        self._more = more
        self._member: Member | None = None
        self._own: dict[str, tuple[tuple[Any, ...], str]] = {}  # what an entry is made of, and its definition, by key
        self._definitions: dict[str, str] = {}  # as they are announced
        self._digest = ""
        self._unannounced: list[str] = []
        self._kept_at: float | None = None
        self._next = self._next_compared = 0.0
        self._known: dict[str, Mapping[str, str]] = {}
        self._firsts: dict[str, float] = {}
        self._differences: dict[str, _Difference] = {}
        self._logged: dict[str, int] = {}  # the level at which a group's differences were logged, by its digest
        self._changed = False
        self._unreachable = False
        self._begun_at = 0.0
        self._there: set[str] = set()  # the beats that were heard of, by the last look
        self._gone: set[str] = set()  # those that fell silent, until they are forgotten
        self._read_firsts_at = 0.0
        # of the agenda, when it was read: how many entries there are costs nothing while they do not change
        self._edition = 0
        #: whether there is more to announce at once: a round does a part of it, so that no tick waits for all of it
        self.unfinished = False

    def begin(self, replica: str) -> None:
        """Announce this beat, by the name that it has among the replicas, from the next look on; all of it, anew."""
        self._member = self._member or Member(self._app, "beat", replica, clock=self._clock, **self._more)
        self._member.begin_anew()
        self._kept_at = None
        self._begun_at = self._clock()
        self._next = self._next_compared = 0.0
        self._firsts = {}

    def leaves(self, key: str) -> bool:
        """Whether the ticks of an entry are left to others, who have a newer definition of it."""
        difference = self._differences.get(key) if self._differences else None
        return difference is not None and difference.theirs

    def look(self, store: Store, agenda: Agenda, *, wanted: Callable[[Any], bool], complete: bool) -> list[str]:
        """Announce what there is to announce, and look at what the others have, each in its time.

        ``wanted`` picks the entries whose definitions are this beat's own; unless ``complete``, there are more to come.
        Returns the entries that are not left to others any more.
        """
        now = self._clock()
        if self._member is None or not complete or (now < self._next and not self.unfinished):
            return []
        self._next, self.unfinished = now + HEARD_EVERY, False
        taken_back: list[str] = []
        try:
            if self._read(agenda, wanted) and self._announce(store) and self._clock() >= self._next_compared:
                taken_back = self._compare(store)
                self._next_compared = self._clock() + (COMPARED_AGAIN if self._differences else COMPARED_EVERY)
            self._unreachable = False
        except StoreUnavailable as exc:
            # nobody's ticks wait for it; what has been left so far stays so, for the others may be there
            if not self._unreachable:
                logger.info("beat cannot announce its entries: %s", exc)
            self._unreachable = True
        if self._differences:
            self._next = min(self._next, self._clock() + COMPARED_AGAIN)
        return taken_back

    def end(self, store: Store) -> None:
        """Be heard of no more, so that nobody leaves anything to this beat. Raises StoreUnavailable."""
        if self._member is not None:
            self._member.withdraw(store)

    def _read(self, agenda: Agenda, wanted: Callable[[Any], bool]) -> bool:
        """Bring the definitions up to date; False: there are more to read than in one round."""
        anew = self._kept_at is None or self._clock() - self._kept_at > KEPT_EVERY
        if not (self._edition != agenda.edition or anew):
            return True
        left, keys = READ_AT_ONCE, set()
        for item in agenda:
            entry = item.entry
            if not wanted(entry):
                continue
            keys.add(item.key)
            # a scheduler may make another entry of the same for each run
            parts = (entry.task, item.schedule, entry.args, entry.kwargs, entry.options)
            known = self._own.get(item.key)
            if known is not None and all(map(is_, known[0], parts)):
                continue
            if not left:
                self.unfinished = True
                return False
            left -= 1
            self._own[item.key] = parts, definition_of(entry, item.schedule)
            self._changed = self._changed or known is None or known[1] != self._own[item.key][1]
        for key in self._own.keys() - keys:
            del self._own[key]
            self._changed = True
        self._edition = agenda.edition
        if self._changed or anew:
            before = {} if anew else self._definitions
            self._definitions = {key: digest for key, (_, digest) in self._own.items()}
            new = [named(key, digest) for key, digest in self._definitions.items() if before.get(key) != digest]
            self._unannounced = list(dict.fromkeys([*self._unannounced, *new]))
            self._changed, self._digest = False, ""
            self._kept_at = self._clock() if anew else self._kept_at
        return True

    def _announce(self, store: Store) -> bool:
        """Announce this beat and, where they have changed, its definitions; False: there are more than in one round."""
        assert self._member is not None  # it has begun  # noqa: S101
        if self._unannounced:
            # before the complete list, so that whoever compares it finds when each of them was first announced
            some = self._unannounced[:ANNOUNCED_AT_ONCE]
            store.announcements.announce(self._name, "definition", dict.fromkeys(some, ""), ttl=STATE_MEMORY)
            del self._unannounced[: len(some)]
            if self._unannounced:
                self.unfinished = True
                return False
        if not self._digest:
            text = json.dumps(self._definitions, sort_keys=True, separators=(",", ":"))
            digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:16]
            store.announcements.announce(self._name, "entries", {digest: text}, ttl=KEPT)
            self._digest = digest
        self._member.more["entries"] = self._digest
        self._member.announce(store)
        return True

    # -- what differs --------------------------------------------------------------------------------------------------

    def _compare(self, store: Store) -> list[str]:
        """Find the entries that others define otherwise, and whose definition is the newest."""
        members = store.announcements.announced(self._name, "member")
        self._notice_who_is_gone(members)
        groups = groups_of(store, self._name, members, self._known)
        self._known = {digest: group.definitions for digest, group in groups.items()}
        others = {digest: group for digest, group in groups.items() if digest != self._digest}
        differ = {digest: sorted(differing(self._definitions, group.definitions)) for digest, group in others.items()}
        self._look_up(
            store, {(key, others[digest].definitions[key]) for digest, keys in differ.items() for key in keys}
        )
        theirs: dict[str, bool] = {}
        for digest, keys in differ.items():
            for key in keys:
                newer = self._age(key, others[digest].definitions[key]) > self._age(key, self._definitions[key])
                theirs[key] = theirs.get(key, False) or newer
        now = self._clock()
        before, self._differences = self._differences, {}
        for key, newer in theirs.items():
            since = before[key].since if key in before else now
            self._differences[key] = _Difference(since, newer)
        self._log_differences({digest: (others[digest], keys) for digest, keys in differ.items() if keys}, now)
        return [key for key, difference in before.items() if difference.theirs and not self.leaves(key)]

    def _notice_who_is_gone(self, members: Iterable[Announcement]) -> None:
        """Say which beats are there no more: killed, frozen or cut off, or ended as they should."""
        silent_for = {member.name: member.silent_for for member in members if fields_of(member).get("kind") == "beat"}
        there = {name for name, seconds in silent_for.items() if seconds < ALIVE}
        here_for = self._clock() - self._begun_at + HEARD_EVERY
        for name in sorted(silent_for.keys() - there - self._gone):
            if silent_for[name] < here_for:  # who fell silent before this beat was there is logged by others
                self._gone.add(name)
                text = "beat %s is gone: nothing was heard of it for %.0f s; its ticks go on without it"
                logger.warning(text, name, silent_for[name])
        for name in sorted(self._there - silent_for.keys()):
            logger.info("beat %s has left", name)
        for name in sorted(there & self._gone):
            logger.info("beat %s is back", name)
        self._there, self._gone = there, (self._gone - there) & silent_for.keys()

    def _look_up(self, store: Store, differing: Iterable[tuple[str, str]]) -> None:
        pairs = set(differing)
        names = {named(*pair) for pair in pairs} | {named(key, self._definitions[key]) for key, _ in pairs}
        if self._clock() - self._read_firsts_at > FIRSTS_LAST:
            # two beats that know them from before and after a loss of the store would leave an entry to each other
            self._firsts, self._read_firsts_at = {}, self._clock()
        missing = sorted(names - self._firsts.keys())
        self._firsts = {name: self._firsts[name] for name in names if name in self._firsts}
        for start in range(0, len(missing), ANNOUNCED_AT_ONCE):
            self._firsts |= definitions_of(store, self._name, missing[start : start + ANNOUNCED_AT_ONCE])

    def _age(self, key: str, digest: str) -> tuple[float, str]:
        """Order definitions by when they were first announced; of what is forgotten nobody knows, so it is the oldest."""
        return self._firsts.get(named(key, digest), 0.0), digest

    def _log_differences(self, differ: Mapping[str, tuple[Group, list[str]]], now: float) -> None:
        """Log how others define entries otherwise, as a warning, and as an error once that lasts."""
        for digest, (group, keys) in differ.items():
            lasted_for = now - min(self._differences[key].since for key in keys)
            level = logging.ERROR if lasted_for >= LASTS else logging.WARNING
            if self._logged.get(digest, 0) >= level:
                continue
            self._logged[digest] = level
            left, ours = [key for key in keys if self.leaves(key)], [key for key in keys if not self.leaves(key)]
            sent = [f"{enumerate_some(left)}: left to them, theirs being newer"] if left else []
            sent += [f"{enumerate_some(ours)}: sent here, ours being newer"] if ours else []
            lasts = (
                f"; it has lasted for {lasted_for:.0f} s: the release is not"
                f' finished, or two apps are called {self._name!r}: give each a name of its own, Celery("shop"), or a'
                f" lockbeat_key_prefix of its own"
            )
            logger.log(
                level,
                "entries of %r are defined otherwise by %s than by this beat, %s: %s%s",
                *(self._name, enumerate_some(group.beats), self._member and self._member.name, "; ".join(sent)),
                lasts if level == logging.ERROR else "",
            )
        gone = self._logged.keys() - differ.keys()
        for digest in gone:
            del self._logged[digest]
        if gone and not self._logged:
            logger.info("all beats of %r define their entries alike again", self._name)
