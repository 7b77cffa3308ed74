"""OwnLease: a lease that is ours, from its grant to its end: held, then released or lost.

Promises: what this process believes is never more than what the store granted. With a lease asked for at ``t`` it is
trusted until ``t + ttl - margin`` on the local monotonic clock, for the store's lease began at ``t`` or later, and
the margin covers two clocks that do not run at quite the same rate. After that moment it is lost, whatever else is
known: when you cannot know whether you still hold it, you do not. In a pool's child, ``t`` may be its parent's, who asks in the
child's place while the GIL is held there (``keeping.py``). What has been held for ``hold_at_most`` is lost, too: it is renewed no
more, and what was granted last ends with its body, or runs out. What another waits to replace stays ours, and is renewed, until its
body ends: it is only told to.

The renewer (``renewal.py``) says what becomes of it. No observer runs on the renewer's time: its events are delivered later.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import LockLost
from celery_lockbeat.locks.abort import Abort
from celery_lockbeat.locks.child import Note
from celery_lockbeat.observe.events import Story
from celery_lockbeat.options import MARGIN, LockOptions, written
from celery_lockbeat.process import this_process
from celery_lockbeat.stores import Lease

__all__ = ["Asked", "OwnLease"]


class Asked:
    """An extension that is asked for, and its ``answer`` once it is there: granted, refused, or why there is none."""

    def __init__(self, ttl: float) -> None:
        self.ttl: Final = ttl
        self.answer: bool | BaseException | None = None


class OwnLease:
    """A lease that ``started``, asked for by process ``pid``; of several keys one of each, which live and end as one.

    It does not know its lock, which ends it by being dropped.
    """

    state = "held"  # -> lost | released
    #: when to extend it next, or to notice that it has run out, on the local clock; None: no more
    next_action: float | None = None
    #: what ends the body, if that is wanted, when the lease is lost
    abort: Abort | None = None
    _trusted_until = 0.0
    #: the same, of what the pool's parent has extended in our place
    _kept_until = 0.0
    #: why it is lost
    why_lost: str | None = None
    #: who waits to replace it, as that one says of itself
    replaced_by: str | None = None
    #: it is over by both; what the parent may still hear of the store comes too late
    _ran_out = False
    #: whether it lasts for as long as it may be held, so that it is renewed no more
    _suffices = False
    #: whether the last attempt to extend it failed
    _failing = False
    #: whether the loss has been reported
    _loss_is_reported = False
    #: what became of an extension that was asked for beside those that come by themselves; None: there is none
    _asked: Asked | None = None

    def __init__(
        self, leases: Sequence[Lease], started: float, options: LockOptions, story: Story, note: Note, pid: int
    ) -> None:
        self.leases: Final = leases
        self._acquired_at = started
        self.ttl = options.ttl
        #: the shortest ttl that it has had: the parent may have extended it by that
        self._shortest_ttl = options.ttl
        self._options = options
        self._story = story
        self._note = note
        self._pid = pid
        # The owner and the renewer both may find that it is lost; one of them says so.
        self._mutex = threading.Lock()
        #: it is not ours after that, however often it is renewed
        self._held_until: Final = started + options.hold_at_most if options.hold_at_most else math.inf
        self._trust_from(started, options.ttl)

    # -- until when it is ours -----------------------------------------------------------------------------------------

    @property
    def trusted(self) -> bool:
        """Whether the lease still runs, as far as can be known; never in a process that was forked from its holder."""
        if self._pid != this_process.pid:
            return False
        # what the parent has done is looked up where our own word is over
        return monotonic() < self._trusted_until or monotonic() < self.until()

    @property
    def remaining(self) -> float:
        """Seconds for which it is surely ours without another renewal; 0.0 when it is not ours."""
        if self.state != "held" or self._pid != this_process.pid:
            return 0.0
        return max(0.0, self.until() - monotonic())

    @property
    def attempt(self) -> float:
        """Seconds that an attempt to extend it may take."""
        return self._options.attempt

    @property
    def lost(self) -> bool:
        """Whether it is not ours any more, and has not been released."""
        return self.state == "lost" or (self.state == "held" and not self.trusted)

    def held_for(self) -> float:
        """Seconds since it was asked for first."""
        return monotonic() - self._acquired_at

    def until(self) -> float:
        """Until when it is surely ours: by our own word, or the pool's parent's, which has extended it in our place."""
        until = max(self._trusted_until, self._kept_until)
        if self._ran_out or monotonic() < until:
            return until
        since = self._note.kept_since(self.leases)
        if since is not None:
            self._kept_until = min(since + self._shortest_ttl * (1 - MARGIN), self._held_until)
            until = max(until, self._kept_until)
        self._ran_out = monotonic() >= until
        return until

    @property
    def auto_extend(self) -> bool:
        """Whether what is done next is an extension."""
        return (self._options.auto_extend and not self._suffices) or self._asked is not None

    def ask(self, options: LockOptions) -> Asked:
        """Have it extended at once, for another ttl, and from then on too. The renewer does it, one extension after the other."""
        with self._mutex:
            self._options, self.ttl, self._note.ttl = options, options.ttl, options.ttl
            self._shortest_ttl = min(self._shortest_ttl, options.ttl)
            self._asked = asked = Asked(options.ttl)
            if self.state == "held":
                self.next_action = monotonic()
            else:
                asked.answer = False
        return asked

    def _trust_from(self, started: float, ttl: float) -> None:
        until = started + ttl * (1 - MARGIN)
        self._trusted_until = min(until, self._held_until)
        self._suffices = until >= self._held_until
        self._ran_out = False
        if self._asked is not None:
            self.next_action = started
            return
        if not self._options.auto_extend:
            self.next_action = self._trusted_until
        elif self._suffices:
            self.next_action = self._trusted_until
            self._note.renewed(self.leases, started, math.inf)
        else:
            self.next_action = min(started + self._options.extends_every, self._trusted_until)
            self._note.renewed(self.leases, started, self._options.patience, self._held_until)

    # -- what the renewer finds out ------------------------------------------------------------------------------------

    def extended(self, started: float, ttl: float) -> None:
        """It runs anew from ``started``, for as long as was asked for."""
        with self._mutex:
            if self.state != "held":
                return
            self._failing = False
            if self._asked is not None and ttl == self._asked.ttl:
                self._asked.answer, self._asked = True, None
            self._trust_from(started, ttl)
        self._story.later("lock_extended")

    def be_replaced(self, by: str) -> None:
        """It is ours until its body has ended, which is told, once, that another waits for that."""
        with self._mutex:
            if self.state != "held" or self.replaced_by is not None:
                return
            self.replaced_by, self.why_lost = by, f"replaced by {by}"
            # before its end can be told, by a body that has seen it
            self._story.later("lock_replaced", holder=by)
        self.abort_if_due()

    def extend_refused(self) -> None:
        """The store says that the lock is another's, or nobody's."""
        self.lose("the store says that the lock is not ours any more")

    def extend_failed(self, started: float, error: BaseException, retry_every: float) -> None:
        """The store did not answer; try again, for the lease still runs."""
        with self._mutex:
            if self.state != "held":
                return
            if self._asked is not None:
                self._asked.answer, self._asked = error, None
            first, self._failing = not self._failing, True
            now, until = monotonic(), self.until()
            self.next_action = min(max(started, now) + min(retry_every, self._options.retries_every), until)
            if not self.auto_extend:
                self.next_action = until
            else:
                # this process is not late, but its store: the parent need not try as well, unless we miss the next try
                since = until - self.ttl * (1 - MARGIN)
                patience = self.next_action + (until - now) / 4 - since
                self._note.renewed(self.leases, since, patience, self._held_until)
        if first:
            self._story.later("lock_extend_failed", error_name=type(error).__name__, error_message=str(error))

    def expire(self) -> None:
        """Lose it if it has run out by the local clock."""
        if self.state == "held" and not self.trusted:
            if monotonic() >= self._held_until:
                longest = written(self._options.hold_at_most)
                self.lose(f"it has been held for {longest} s, its hold_at_most, and is renewed no more")
            else:
                self.lose("the lease ran out before it was extended")

    def lose(self, why: str) -> None:
        """Be lost, if it is held."""
        with self._mutex:
            if self.state != "held":
                return
            self.state = "lost"
            self.why_lost = why
            self.next_action = None
            if self._asked is not None:
                self._asked.answer, self._asked = False, None
            self._note.unrenewed()  # before it is told
        self.report_loss(why)
        self.abort_if_due()

    def abort_if_due(self) -> None:
        """End the body, where there is one, and that is wanted of what has become of the lease."""
        how = self._options.on_lost if self.state == "lost" else self._options.on_replaced if self.replaced_by else None
        abort = self.abort
        if abort is not None and how == "abort":
            abort.fire(because=str(self.why_lost))

    # -- its end -------------------------------------------------------------------------------------------------------

    def end(self) -> bool:
        """Be released, unless it is lost."""
        if not self.trusted:
            self.expire()
        with self._mutex:
            if self.state == "lost":
                return False
            self._be_released()
        return True

    def give_up(self) -> None:
        """Be released without a look at the clock."""
        with self._mutex:
            self._be_released()

    def _be_released(self) -> None:
        self.state, self.next_action = "released", None
        if self._asked is not None:
            self._asked.answer, self._asked = False, None

    def report_loss(self, why: str) -> None:
        """Have the events of the loss delivered."""
        self.state = "lost"
        try:
            if self._options.auto_extend and not (self._failing or self._suffices):
                self._story.later("lock_extend_failed", error_name=LockLost.__name__, error_message=why)
            self._story.later("lock_expired_before_finish", error_name=LockLost.__name__, error_message=why)
        finally:
            self._loss_is_reported = True

    def wait_until_loss_is_reported(self) -> None:
        """See that the events of the loss come before those of the end of the run; bounded, as observers are not."""
        # the renewer may have lost it this very moment; by turns, for under gevent it shares no Event with this thread
        for _ in range(1000):
            if self._loss_is_reported:
                break
            time.sleep(0.001)
        self._story.flush()
