"""Publishes ticks by the ways of Celery's beat: in batches where kombu has them, else one by one.

Promises: a tick that has grown too old, or whose entry has been deleted or disabled meanwhile, is not sent. While the broker is
away, what is due is kept, handed over to whoever reaches it first, and nothing waits for it but for a second now and then.
A message that the broker refuses alone holds up no other.

Not promised: that a message of a batch that failed has not arrived; it is sent again, under the same task id.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from celery.result import denied_join_result
from kombu.exceptions import OperationalError

from celery_lockbeat.beat.ledger import Ledger, Tick
from celery_lockbeat.beat.messages import copied
from celery_lockbeat.beat.planner import Planner
from celery_lockbeat.beat.recorder import Recorder
from celery_lockbeat.beat.seams import Seams
from celery_lockbeat.beat.trouble import Backoff, Complaints
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.tasks.copies import BEGIN_BY

__all__ = ["NotSent", "Publisher", "Sending", "limited"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: After so many messages in a row that a broker in reach refuses, it is the broker that is in trouble.
REFUSALS_IN_A_ROW: Final = 3


class Sending:
    """The tick whose message is made just now, and what has come of it: celery.beat.Scheduler.apply_entry tells nobody."""

    __slots__ = ("error", "is_refused", "tick")

    def __init__(self, tick: Tick) -> None:
        self.tick = tick
        self.error: Exception | None = None
        #: whether another message of its task is there, which ``lock_unique`` has recorded
        self.is_refused = False


class NotSent(BaseException):
    """Passes by Celery's apply_entry, which would log each try with two tracebacks: we tell of a broker once a minute."""


class _Stale(Exception):  # noqa: N818  as above
    """Ticks of a batch grew too old while it was made, or what was known of their entries did."""


class Publisher:
    """Publishes for one beat. ``disconnect`` lets go of its connection, ``sending`` is the tick under way, if there is one."""

    def __init__(
        self,
        scheduler: Seams,
        disconnect: Callable[[], None],
        planner: Planner,
        ledger: Ledger,
        recorder: Recorder,
        complaints: Complaints,
        backoff: Backoff,
        clock: Callable[[], float],
        store_time: Callable[[], datetime],
    ) -> None:
        self._scheduler = scheduler
        self._disconnect = disconnect
        self._planner = planner
        self._ledger = ledger
        self._recorder = recorder
        self._complaints = complaints
        self._backoff = backoff
        self._clock = clock
        self._store_time = store_time
        self._refusals = 0  # messages in a row that a broker in reach has refused
        #: whether the last publish failed
        self.troubled = False
        self.sending: Sending | None = None

    def publish(self, ticks: Sequence[Tick]) -> None:
        """Publish what can be published; what cannot is handed over, or left to be taken over when its ttl is over."""
        try:
            with _without_results():
                self._publish_or_hand_over(ticks)
        except StoreUnavailable:
            # nobody can tell whether they are still wanted
            self._give_up()
            raise

    def _publish_or_hand_over(self, ticks: Sequence[Tick]) -> None:
        try:
            if self._can_batch():
                self._publish_at_once(ticks)
                return
        except StoreUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001  whatever else it was, it is the broker's
            self._trouble(exc)
            if not self._reconnect():
                self._give_up()
                return
        # Which of a batch that failed has arrived cannot be known: at least once, under one task id.
        self._publish_one_by_one(ticks)

    def _can_batch(self) -> bool:
        # kombu 5.7 and newer, with some transports
        return bool(getattr(self._scheduler.producer, "supports_batch_publish", False))

    def _publish_at_once(self, ticks: Sequence[Tick]) -> None:
        while ticks := self._wanted(ticks):
            try:
                with self._scheduler.producer.batch():
                    sent = [tick for tick in ticks if self._send(tick)]
                    now = self._clock()
                    if any(now >= min(tick.fresh_until, tick.sure_until) for tick in ticks):
                        # we were frozen while the batch was made: it must not be flushed
                        raise _Stale
            except _Stale:
                continue
            self._published(ticks, sent)
            return

    def _publish_one_by_one(self, ticks: Sequence[Tick]) -> None:
        for tick in ticks:
            try:
                for wanted in self._wanted([tick]):
                    self._published([wanted], [wanted] if self._send(wanted) else [])
            except StoreUnavailable:  # noqa: PERF203
                raise
            except Exception as exc:  # noqa: BLE001  as above
                self._trouble(exc)
                self._refusals += 1
                if self._refusals >= REFUSALS_IN_A_ROW or not self._reconnect():
                    self._give_up()
                    return
                # it alone may be at fault: it is tried again when its claim has run out
                self._ledger.drop(tick)

    def _wanted(self, ticks: Sequence[Tick]) -> list[Tick]:
        """Leave out what has grown too old, and what is of entries that have been deleted or disabled meanwhile."""
        now = self._clock()
        unsure = {tick.item.key for tick in ticks if tick.sure_until <= now < tick.fresh_until}
        found = (self._scheduler.reread(list(unsure)) if unsure else None) or {}
        wanted = []
        for tick in ticks:
            _, entry = found.get(tick.item.key, (None, None))
            if now >= tick.fresh_until:
                # we were frozen: it may have been published by another by now
                self._ledger.drop(tick)
            elif self._nobody_may_begin(tick):
                self._recorder.not_published(
                    tick, f"no worker could begin it by {tick.details[BEGIN_BY]} (start_within)"
                )
                self._ledger.sent(tick)
            elif now < tick.sure_until:
                wanted.append(tick)
            elif entry is not None and getattr(entry, "enabled", True):
                self._planner.change(tick.item, entry)
                wanted.append(tick._replace(sure_until=now + self._scheduler.trusted_for))
            else:
                logger.info("tick %s of %r is not sent: it was deleted or disabled", dict(tick.details), tick.item.key)
                self._recorder.not_published(tick, "its entry was deleted or disabled")
                # settled like those that are sent, or others would take it over
                self._ledger.sent(tick)
        return wanted

    def _nobody_may_begin(self, tick: Tick) -> bool:
        begin_by = tick.details.get(BEGIN_BY)
        return begin_by is not None and datetime.fromisoformat(begin_by) <= self._store_time()

    def _published(self, ticks: Sequence[Tick], sent: Sequence[Tick]) -> None:
        """Settle these ticks, of which those have been ``sent`` that could be made a message of."""
        for tick in ticks:
            self._ledger.sent(tick)
        self._recorder.published(sent)
        self._refusals = 0
        self._recovered()

    def _send(self, tick: Tick) -> bool:
        """Send the message of one tick by the ways of Celery's beat; False: there can be none, or another is there.

        Raises what the broker's client raises.
        """
        producer = self._scheduler.producer
        self.sending = sending = Sending(tick)
        try:
            # what wraps it, such as Sentry's, writes into the options: they are those of one tick
            self._scheduler.apply_entry(copied(tick.item.entry), producer=producer)
        except NotSent:
            pass
        except Exception as exc:  # noqa: BLE001  somebody's own apply_entry
            sending.error = sending.error or exc
        finally:
            self.sending = None
        error = sending.error
        if error is None:
            return not sending.is_refused
        if self._is_brokers(error):
            raise error
        # no other replica could send it either
        text = "tick %s of entry %r is lost: its message cannot be made: %s: %s"
        logger.error(text, dict(tick.details), tick.item.entry.name, type(error).__name__, error, exc_info=error)
        self._recorder.not_published(tick, f"its message cannot be made: {type(error).__name__}: {error}")
        return False

    # -- trouble -------------------------------------------------------------------------------------------------------

    def pause(self) -> float | None:
        """Return the seconds until a broker that is in trouble is tried again; None: there is one to publish to."""
        if not self.troubled:
            return None
        if (rest := self._backoff.rest()) > 0:
            return rest
        return None if self._reconnect() else self._backoff.next_pause()

    def nothing_to_send(self) -> None:
        """Take a broker that is in reach for well again, unless it has refused messages."""
        if self.troubled and not self._refusals:
            self._recovered()

    def _is_brokers(self, exc: Exception) -> bool:
        # kombu's Redis transport counts KeyError among its connection errors (kombu 5.7, transport/redis.py)
        if isinstance(exc, (LookupError, TypeError, ValueError)):
            return False
        connection = self._scheduler.connection
        # kombu's transports do not all count OSError (kombu 5.7: memory and filesystem, say)
        errors = (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)
        return isinstance(exc, errors)

    def _trouble(self, exc: Exception) -> None:
        self.troubled = True
        text = "beat cannot publish, and keeps what is due: %s: %s"
        self._complaints.make("broker", text, type(exc).__name__, exc)
        self._disconnect()

    def _recovered(self) -> None:
        self.troubled = False
        self._backoff.reset()
        if self._complaints.end("broker"):
            logger.info("beat reaches the broker again")

    def _give_up(self) -> None:
        """Leave what is not sent to whoever reaches the broker first."""
        self._ledger.hand_over_unsent()
        self._backoff.next_pause()

    def _reconnect(self) -> bool:
        try:
            self._scheduler.producer.channel  # noqa: B018  it connects
        except Exception as exc:  # noqa: BLE001  a transport's own
            self._trouble(exc)
            return False
        return True


def limited(connection: Any, claim_ttl: float) -> Any:
    """Give a connection to the broker the limits and confirmations that a beat needs, where users set no others."""
    by_driver: dict[str, dict[str, Any]] = {
        # a message that RabbitMQ has not confirmed is not published
        "amqp": {"confirm_publish": True},
        # a server that hangs must not hang the beat for longer than its claims last
        "redis": {"socket_timeout": max(1.0, claim_ttl)},
    }
    ours = by_driver.get(connection.transport.driver_type, {})
    connection.transport_options = {**ours, **(connection.transport_options or {})}
    return connection


def _without_results() -> contextlib.AbstractContextManager[None]:
    """Keep Celery from subscribing to the result of each message that is sent: nobody here will ask for it.

    The switch is one for the whole process, where other threads may wait for results: so only in a beat of its own.
    """
    alone = threading.current_thread() is threading.main_thread()
    switch: contextlib.AbstractContextManager[None] = denied_join_result() if alone else contextlib.nullcontext()
    return switch
