"""Since when the ticks of each row count, so that what was due while it was disabled, or had another crontab, is not made up for.

Promises: a row that was enabled, or whose crontab was changed, counts from that change on, also where no beat was there to see
it: beats announce to those after them how they knew each row. A row that is as it was still runs what it has missed, and so does
one that was enabled and whose policy says ``catchup="all"``. Nothing of it happens with ``lockbeat_django_run_missed_when_changed``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from typing import Any, Final

from celery_lockbeat.beat.replicas import KEEP_EVERY, Replica
from celery_lockbeat.contrib.django.times import by_the_clock, own_times
from celery_lockbeat.stores.base import ANNOUNCED_AT_ONCE, STATE_MEMORY, Store

__all__ = ["History"]

#: How a row is announced that was disabled or deleted.
OFF: Final = "off"

#: As many rows are remembered from one beat to the next.
MOST_ROWS: Final = 1_000_000


class History:
    """How one beat, and those before it, have known the rows. ``store`` returns the store in which they announce it.

    ``forgets``: whether what is missed by a change is not made up for; ``makes_up(entry)``: whether what was due while its row was
    disabled is, all the same.
    """

    def __init__(
        self,
        app: Any,
        store: Callable[[], Store],
        replica: Replica,
        clock: Callable[[], float],
        *,
        forgets: bool,
        makes_up: Callable[[Any], bool],
    ) -> None:
        self._app = app
        self._store = store
        self._replica = replica
        self._clock = clock
        self._forgets = forgets
        self._makes_up = makes_up
        #: when any row was changed last, by the last look at all of them
        self.last_change: Any = None
        self._off: dict[int, str] = {}  # when rows that were disabled since, and make up for that, were due last
        self._before: dict[str, str] | None = {}  # how beats before this one knew the rows; None: it has looked itself
        self._unannounced: dict[str, str] = {}
        self._announced_all_at: float | None = None

    # -- from beat to beat ---------------------------------------------------------------------------------------------

    def recall(self) -> None:
        """Read how beats before this one knew the rows, until it has looked itself. Raises StoreUnavailable."""
        if self._before is not None and self._forgets:
            found = self._store().announcements.announced(self._replica.app, "past", limit=MOST_ROWS)
            self._before = {each.name: each.told for each in found}

    def looked(self, last_change: Any) -> None:
        """Note that this beat has looked at all rows, the last of which was changed then."""
        self.last_change = last_change
        self._before = None

    def lose(self, pk: int, entry: Any) -> None:
        """Note that a row was disabled, or deleted; of ``entry``, if it was one, and if that is made up for, when it was due last."""
        last = entry.last_run_at.isoformat() if entry is not None and self._makes_up(entry) else ""
        self._unannounced[str(pk)] = f"{OFF} {last}".strip()
        if last:
            self._off[pk] = last

    def announce(self, entries: Iterable[tuple[int, Any]]) -> None:
        """Announce what is noted; now and then ``entries``, all that there are by primary keys. Raises StoreUnavailable."""
        if not (self._replica.known and self._forgets):
            return
        now = self._clock()
        if self._announced_all_at is None or now - self._announced_all_at > KEEP_EVERY:
            self._unannounced |= {str(pk): _text_of(entry) for pk, entry in entries}
            self._announced_all_at = now
        while self._unannounced:
            some = dict(islice(self._unannounced.items(), ANNOUNCED_AT_ONCE))
            texts = {pk: text for pk, text in some.items() if text}
            self._store().announcements.announce(self._replica.app, "past", texts, ttl=STATE_MEMORY)
            for pk in some:
                del self._unannounced[pk]

    # -- one entry -----------------------------------------------------------------------------------------------------

    def begin(self, entry: Any, known: Any, last_change: Any) -> None:
        """Let the ticks of an entry count since what has become of its row, if anything has.

        ``known``: its entry as this beat knew it, if it did. ``last_change``: when any row was changed last.
        """
        entry.lockbeat_since = self._since(entry, known, last_change) if self._forgets else None
        self._note(entry)

    def is_reset(self, entry: Any) -> bool:
        """Whether the last run of a crontab's row was taken away: to disable it, for one, if only for a moment that nobody saw."""
        changed = entry.model.date_changed
        return (
            self._forgets
            and entry.lockbeat_stored_at is None
            and entry.lockbeat_run > 0
            and own_times(entry.schedule) is not None
            and changed is not None
            and entry.last_run_at > max(by_the_clock(changed), entry.lockbeat_since or by_the_clock(changed))
            and not self._makes_up(entry)
        )

    def begin_anew(self, entry: Any) -> None:
        """Let the ticks of an entry that is reset count since that, but not since before its last run."""
        entry.lockbeat_since = self._now_or_earlier(self.last_change, later_than=entry.last_run_at)
        self._note(entry)

    def _since(self, entry: Any, known: Any, last_change: Any) -> datetime | None:
        """Return since when the ticks of an entry count, though it has not run since; None: since its last run."""
        times = own_times(entry.schedule)
        was_off, last = known is None, self._off.pop(entry.model.pk, "")
        if known is not None:
            earlier: datetime | None = known.lockbeat_since
            if times is None or times == own_times(known.schedule):
                return earlier
        elif self._before is not None:
            before = self._before.get(str(entry.model.pk))
            if before is None:
                return None
            digest, _, since = before.partition(" ")
            if digest != OFF and (times is None or digest == _digest(times)):
                return datetime.fromisoformat(since) if since else None
            was_off, last = digest == OFF, since
        if was_off and self._makes_up(entry):
            if last:
                # its row has lost it, and the store, if other beats were there meanwhile
                entry.last_run_at = entry.lockbeat_last_run_at = datetime.fromisoformat(last)
            return None
        # enabled, or its crontab changed, since it was last looked at
        changed = entry.model.date_changed
        if self.last_change is not None and changed is not None and changed > self.last_change:
            return self._now_or_earlier(changed)
        return self._now_or_earlier(None if last_change == self.last_change else last_change)

    def _now_or_earlier(self, changed: Any, *, later_than: datetime | None = None) -> datetime:
        """Return the time of a change as its row has it, which may be by another host's clock; now, if it has none such."""
        now: datetime = self._app.now()
        then = now if changed is None else min(now, by_the_clock(changed))
        return now if later_than is not None and then < later_than else then

    def _note(self, entry: Any) -> None:
        self._unannounced[str(entry.model.pk)] = _text_of(entry)


def _text_of(entry: Any) -> str:
    """Return how an entry is announced: the digest of its times, and since when its ticks count; "": it need not be."""
    times, since = own_times(entry.schedule), entry.lockbeat_since
    if times is None and since is None:
        return ""
    return f"{'-' if times is None else _digest(times)} {since.isoformat() if since else ''}"


def _digest(times: list[str]) -> str:
    return hashlib.sha256(repr(times).encode()).hexdigest()[:16]
