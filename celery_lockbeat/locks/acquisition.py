"""Asking a store for a key, or for several, from the first question until the store has nothing of ours any more.

Promises: what the store may have of ours is never forgotten: from before it is asked until it is known to have nothing, a pool's
parent knows of it (``child.py``); what the store could not be asked at once it is asked later, by the renewing thread, for as long
as it matters. So a key that we have without having heard so is freed, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import StoreRefused, StoreUnavailable, UnreadableKey
from celery_lockbeat.locks.child import Note
from celery_lockbeat.locks.lease import OwnLease
from celery_lockbeat.locks.renewal import Renewer, renewer_of
from celery_lockbeat.observe.events import Story, new_id
from celery_lockbeat.options import LockOptions, shown_keys, written
from celery_lockbeat.process import stopping, this_process
from celery_lockbeat.stores import Finished, Held, Lease, Place, Reservation, Store, Stores, Waiting, Wanted

__all__ = ["Acquisition", "Asker"]

#: An answer that comes after its lease has run out grants nothing; how often to ask again.
LATE_ANSWERS: Final = 3


class Asker(NamedTuple):
    """Who asks: what others are told of it, the names of its attempt and of its task, if it is of one, and what it has reserved."""

    description: str
    run: str | None = None
    task: str | None = None
    reservation: Reservation | None = None


class Acquisition:
    """The asking for ``keys``, all or none, by process ``pid``, and what its store may have of ours."""

    #: what was granted last, of each key, whether or not it came in time
    leases: Sequence[Lease] = ()
    renewer: Renewer
    #: what the store may have had once is being freed there
    abandoned = False
    #: how often the store was asked
    attempts = 0
    #: whether another store is asked than the first one
    fell_back = False
    #: of what the store may have of ours; None: nothing
    note: Note | None = None
    #: the place in line that is asked for where the key is held
    place: Place | None = None

    def __init__(
        self, keys: Sequence[str], options: LockOptions, stores: Stores, story: Story, asker: Asker, *, pid: int
    ) -> None:
        self.store, self._fallback = stores.choose(options.driver, options.connection)
        self._keys = keys
        self._options = options
        self._story = story
        self._asker = asker
        self._pid = pid

    def ask(self) -> OwnLease | Held | Finished | Waiting:
        """Ask, and again while the key is held: for a lease that is ours, or why there is none. Raises StoreUnavailable."""
        if self.abandoned:
            # what frees an earlier acquire whose answer was lost frees by this name, and may come late
            self._story.execution_id = new_id()
        more_tries = self._options.retry_attempts
        while True:
            try:
                answer = self._ask()
            except StoreUnavailable as exc:
                self._fall_back(exc)
                continue
            if not isinstance(answer, Held) or answer.same_run or answer.why or not more_tries or stopping.is_set():
                return answer
            more_tries -= 1
            stopping.wait(self._options.retry_delay + random.uniform(0, self._options.retry_jitter))  # noqa: S311

    def settle(self) -> None:
        """The store has nothing of ours any more."""
        note, self.note = self.note, None
        if note is not None:
            note.forget()

    def ask_later(self, ask: Callable[[Store], object], *, until: float) -> None:
        """Have the store asked to end it, once it answers, unless that is after ``until``."""
        note, self.note = self.note, None
        if note is not None:
            note.unrenewed()
            self.renewer.errand(ask, until=until, then=note.forget)

    def abandon(self) -> None:
        """Have freed whatever the store may have of ours."""
        if self.note is None or self._pid != this_process.pid:
            return
        self.abandoned = True
        asked, until = self._asked_for(), monotonic() + self._options.ttl
        self.ask_later(lambda store: [store.locks.free(key, holder=holder) for key, holder in asked], until=until)

    def _fall_back(self, exc: StoreUnavailable) -> None:
        """Ask the other store from now on, since this one does not answer; raises that where there is no other."""
        if self._fallback is None or isinstance(exc, (StoreRefused, UnreadableKey)):
            raise exc
        self.abandon()
        # The other way back is none: this lock lives where it was taken, the next one asks the first store again.
        self.store, self._fallback, self.fell_back = self._fallback, None, True
        self._story.fields["driver"] = self.store.driver
        self._story.emit("driver_fallback", error_name=type(exc).__name__, error_message=str(exc))

    def _ask(self) -> OwnLease | Held | Finished | Waiting:
        options = self._options
        note = self.note
        if note is None:
            note = Note(self._asked_for(), self.store.driver, options.connection, options.ttl, self._story)
            self.renewer = renewer_of(self.store)
            self.note = note
            # before it is asked for: a child may be killed before it hears that it was granted
            note.unrenewed()
        for _ in range(LATE_ANSWERS):
            started = monotonic()
            self.attempts += 1
            answer = self._take()
            if isinstance(answer, (Held, Finished, Waiting)):
                return answer
            self.leases = [answer] if isinstance(answer, Lease) else answer
            own = OwnLease(self.leases, started, options, self._story, note, self._pid)
            if own.trusted:
                return own
        raise StoreUnavailable(
            f"the store answers more slowly than the ttl of {written(options.ttl)} s of lock {shown_keys(self._keys)!r}"
        )

    def _asked_for(self) -> list[tuple[str, str]]:
        """Return each key, and the name of its holder: parents know their children's by that (``page.py``), so no two are the same."""
        name = self._story.execution_id
        if len(self._keys) == 1:
            return [(self._keys[0], name)]
        return [(key, f"{name}.{count}" if count else name) for count, key in enumerate(self._keys)]

    def _take(self) -> Lease | list[Lease] | Held | Finished | Waiting:
        options, asker = self._options, self._asker
        if len(self._keys) > 1:
            what = asker.run, asker.task, asker.description, options.limit, asker.reservation, self.place
            answers = self.store.locks.acquire_all(self._asked_for(), Wanted(options.ttl, *what))
            self._wait_no_more(answers)
            return answers
        return self.store.locks.acquire(
            self._keys[0],
            holder=self._story.execution_id,
            ttl=options.ttl,
            run=asker.run,
            task=asker.task,
            description=asker.description,
            limit=options.limit,
            reservation=asker.reservation,
            place=self.place,
        )

    def _wait_no_more(self, answer: list[Lease] | Held | Finished | Waiting) -> None:
        """Have no place in any line, where this is over in that of one key: what is kept for who does not come is kept from others."""
        is_over = answer.task if isinstance(answer, Finished) else isinstance(answer, Held) and bool(answer.why)
        if self.place is not None and is_over:
            for key in self._keys:
                # where the store does not answer, such a place ends with its time
                with suppress(StoreUnavailable):
                    self.store.locks.give_up(key, self.place.ticket)
