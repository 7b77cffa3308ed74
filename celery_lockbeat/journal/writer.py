"""The journal, as it is written: what happens is put into memory, and a thread writes it in batches.

Promises: to put something costs no round trip, raises nothing, and waits for nobody; a batch is written twice a second where there
is something, and once (see :meth:`JournalStore.append`), so a process that is killed takes a second of it along; a run that
began and ended within one batch is one record, its end. While the store is away :data:`AT_MOST` records are kept, then the
oldest are dropped, and how many is written in their place. A fork takes nothing along.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from celery import signals

from celery_lockbeat import threads
from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import LockbeatError, StoreRefused
from celery_lockbeat.journal.records import ENDINGS, encode
from celery_lockbeat.options import AppOptions
from celery_lockbeat.process import name_of_its_own, this_process, when_a_worker_has_ended
from celery_lockbeat.stores import Store, before_redirection_ends, home_store_of, name_of, on_close
from celery_lockbeat.stores.base import JOURNALED_AT_ONCE

__all__ = ["Journal", "Put", "finish", "journal_of"]

logger: Final = logging.getLogger("celery_lockbeat")

#: The attribute that is hung on an app.
_ATTRIBUTE: Final = "lockbeat_journal_writer"

#: So many records wait for a store that is away.
AT_MOST: Final = 10_000

#: So many cases wait to be said, and for so many seconds nobody says one again.
CASES_AT_MOST: Final = 1_000
CASE_MEMORY: Final = 86400.0

#: Seconds for which records are gathered into a batch, until a store that did not answer is asked again, and after which
#: a thread that has nothing to do ends.
GATHERED_FOR: Final = 0.5
AWAY_FOR: Final = 2.0
IDLE_FOR: Final = 5.0

#: Seconds for which the end of a process waits for the store.
LAST_PATIENCE: Final = 2.0

_NO_FIELDS: Final[Mapping[str, Any]] = {}


class _Put(NamedTuple):
    """What was put: an event, when it happened on the local clock, and its fields, of which the later ones count."""

    event: str
    at: float
    shared: Mapping[str, Any]
    own: Mapping[str, Any]
    execution_id: str | None

    def text(self, ago: float) -> str:
        """Return the record of it."""
        fields = {"pid": this_process.pid, **self.shared, **self.own}
        if self.execution_id is not None:
            fields["execution_id"] = self.execution_id
        return encode(self.event, fields, ago)


class Put(Protocol):
    """What may be put: an event ``at`` a moment of the monotonic clock, whose text is asked for when it is written."""

    @property
    def event(self) -> str: ...  # noqa: D102
    @property
    def at(self) -> float: ...  # noqa: D102
    @property
    def execution_id(self) -> str | None: ...  # noqa: D102

    def text(self, ago: float) -> str | None:
        """Return the record of what happened so many seconds ago; None: of nothing."""


class _Case(NamedTuple):
    """Something that many see, and one of them says: ``then``."""

    name: str
    put: _Put
    then: Callable[[], object]


class _Batch(NamedTuple):
    """What is written at once, under one name until the store has answered."""

    name: str
    records: Sequence[Put]


class Journal:
    """What one process writes into the journal of its app, which keeps so many records; 0: nothing but its cases are known.

    The app keeps it. The thread lives while there is something to write.
    """

    def __init__(self, app: Any, keep: int) -> None:
        self._app = weakref.ref(app)
        self._name: Final = name_of(app)
        self._keep: Final = keep
        self.begin_anew()
        _journals.add(self)

    def begin_anew(self) -> None:
        """Have nothing to write, in a process that is new."""
        self._waiting: deque[Put] = deque()
        self._cases: deque[_Case] = deque(maxlen=CASES_AT_MOST)
        self._dropped = 0
        self._dropped_since = 0.0
        self._batch: _Batch | None = None
        self._written: str | None = None  # the last batch
        self._writer = ""
        self._batches = 0
        self._trouble: LockbeatError | None = None  # why it was not written, the last time
        self._writing = threads.new_lock()
        self._thread = threads.Recurrent(
            "lockbeat-journal",
            self.write,
            has_work=self._has_work,
            pause=lambda: AWAY_FOR if self._trouble else GATHERED_FOR,
            idle_for=lambda: IDLE_FOR,
            ended=self._close,
        )
        self._home: Store | None = None
        self._twin: Store | None = None

    def may_be_in(self, store: Store) -> bool:
        """Say whether it is written there, or nowhere yet."""
        return self._home is None or self._home is store

    # -- whoever something happens to ----------------------------------------------------------------------------------

    def put(
        self,
        event: str,
        shared: Mapping[str, Any],
        own: Mapping[str, Any] = _NO_FIELDS,
        execution_id: str | None = None,
        *,
        at: float | None = None,
    ) -> None:
        """Have an event written, which happened now, or ``at`` a moment of the monotonic clock.

        Its fields are read when it is written: those of a mapping that changes later count then.
        """
        if not self._keep:
            return
        self._waiting.append(_Put(event, monotonic() if at is None else at, shared, own, execution_id))
        if len(self._waiting) > AT_MOST:
            self._drop_oldest()
        if not self._thread.runs:
            self._begin()

    def put_all(self, records: Sequence[Put]) -> None:
        """Have events written."""
        if not self._keep:
            return
        waiting = self._waiting
        waiting.extend(records)
        while len(waiting) > AT_MOST:
            self._drop_oldest()
        if not self._thread.runs:
            self._begin()

    def case(self, name: str, event: str, fields: Mapping[str, Any], then: Callable[[], object]) -> None:
        """Have an event written once, however many processes see the case of this ``name``, and ``then`` called by the first.

        Where the store does not answer it is called by each: an alarm that comes twice is better than none.
        """
        self._cases.append(_Case(name, _Put(event, monotonic(), fields, _NO_FIELDS, None), then))
        if not self._thread.runs:
            self._begin()

    def _drop_oldest(self) -> None:
        try:
            oldest = self._waiting.popleft()
        except IndexError:  # it is being written just now
            return
        self._drop((oldest,))

    def _drop(self, records: Sequence[Put]) -> None:
        if records and not self._dropped:
            self._dropped_since = records[0].at
        self._dropped += len(records)

    def _begin(self) -> None:
        self._thread.begin()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _has_work(self) -> bool:
        return bool(self._waiting or self._cases or self._batch is not None)

    def end(self, within: float) -> None:
        """Write all that there is, and let the thread end, for so many seconds at most. What is put later begins another."""
        deadline = monotonic() + within
        self.write(within)
        # what refuses us goes on to, while a store that is away may come back
        refused = isinstance(self._trouble, StoreRefused)
        self._thread.rest(0.0 if refused else max(0.0, deadline - monotonic()))
        self._close()

    def _close(self) -> None:
        """Close the connections of its own; they are opened again when they are used again."""
        if self._twin is not None and self._twin is not self._home:
            self._twin.close()

    def write(self, within: float | None = None) -> bool:
        """Write all that there is; False: the store does not answer, or another thread is at it.

        ``within``: seconds to wait for either; None: for the store alone, as long as it may take.
        """
        if not (self._writing.acquire(False) if within is None else self._writing.acquire(timeout=within)):
            return False
        try:
            return self._write_all(within)
        except Exception:  # whoever comes to its end here, or the thread, goes on, whatever it was
            logger.exception("the journal cannot be written")
            if self._batch is not None:
                self._drop(self._batch.records)
            self._batch = None
            return False
        finally:
            self._writing.release()

    def _write_all(self, within: float | None) -> bool:
        while self._cases:
            self._write_case(self._cases.popleft(), within)
        while self._take():
            if not self._write_batch(within):
                return False
        return True

    def _take(self) -> _Batch | None:
        """Return what is to be written next: what could not be written before, or what has come meanwhile."""
        if self._batch is not None or not self._waiting:
            return self._batch
        self._writer = self._writer or name_of_its_own()
        self._batches += 1
        taken: list[Put] = []
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            now = monotonic()
            # since when they are dropped: who looks for what is missing need not doubt all that was before
            since = round((now - self._dropped_since) * 1000)
            fields = {"count": dropped, "hostname": self._writer, "duration_ms": since}
            taken.append(_Put("records_dropped", now, fields, {}, None))
        while self._waiting and len(taken) < JOURNALED_AT_ONCE:
            taken.append(self._waiting.popleft())
        self._batch = _Batch(f"{self._writer}:{self._batches}", _without_short_runs(taken))
        return self._batch

    def _write_batch(self, within: float | None) -> bool:
        batch = self._batch
        assert batch is not None  # it was taken  # noqa: S101
        now = monotonic()
        texts = [text for each in batch.records if (text := each.text(now - each.at)) is not None]
        try:
            store = self._store()
            if store is not None:
                journal = store.journal
                journal.append(self._name, batch.name, texts, keep=self._keep, forget=self._written, within=within)
        except LockbeatError as exc:
            self._complain(exc)
            return False
        self._batch, self._written = None, batch.name
        if self._trouble is not None:
            self._trouble = None
            logger.info("the journal is written again")
        return True

    def _write_case(self, case: _Case, within: float | None) -> None:
        texts = [case.put.text(monotonic() - case.put.at)] if self._keep else []
        name = hashlib.blake2b(case.name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        try:
            store = self._store()
            if store is not None and not store.journal.append(
                self._name, f"case:{name}", texts, keep=self._keep, remember_for=CASE_MEMORY, within=within
            ):
                return
        except LockbeatError as exc:
            self._complain(exc)
            self._waiting.append(case.put)
        case.then()

    def _store(self) -> Store | None:
        """Return where it is written; None: its app is gone. Raises LockbeatError.

        By connections of its own: a release that comes meanwhile must not wait for one to be made, nor a thread of the
        kernel's for a socket of gevent's.
        """
        app = self._app()
        if app is None:
            return None
        home = home_store_of(app)
        if home is not self._home:
            self._home, self._twin = home, home.twin()
        return self._twin

    def _complain(self, exc: LockbeatError) -> None:
        if self._trouble is None:
            text = "the journal is not written, and %d records are kept until it is: %s"
            logger.warning(text, AT_MOST, exc)
        self._trouble = exc


def _without_short_runs(taken: Sequence[Put]) -> Sequence[Put]:
    """Leave out the start of each run whose end is there too, which tells how long it took."""
    ended = {put.execution_id for put in taken if put.event in ENDINGS}
    return [put for put in taken if put.event != "task_started" or put.execution_id not in ended]


# -- one for each app --------------------------------------------------------------------------------------------------

_journals: Final[weakref.WeakSet[Journal]] = weakref.WeakSet()


def journal_of(app: Any) -> Journal:
    """Return the journal that this process writes for an app. Raises ConfigurationError."""
    journal: Journal | None = vars(app).get(_ATTRIBUTE)
    if journal is None:
        # two threads may both come here: the first one's is kept
        journal = vars(app).setdefault(_ATTRIBUTE, Journal(app, AppOptions.read(app.conf).journal))
    return journal


def finish(*_: Any, **__: Any) -> None:
    """Write what is there, and end the threads, or try to for :data:`LAST_PATIENCE`."""
    _end_all(list(_journals))


def _finish_in(store: Store) -> None:
    _end_all([each for each in _journals if each.may_be_in(store)])


def _end_all(journals: Iterable[Journal]) -> None:
    deadline = monotonic() + LAST_PATIENCE
    for journal in journals:
        if (rest := deadline - monotonic()) > 0:
            journal.end(within=rest)


def _begin_anew() -> None:
    for journal in list(_journals):
        journal.begin_anew()


atexit.register(finish)
signals.worker_process_shutdown.connect(finish)  # a pool's child runs no atexit
when_a_worker_has_ended(finish)
on_close(_finish_in)
before_redirection_ends(finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
