"""The ledger of one beat: the claims that are in its hands, by what has become of them.

    asked for -> unsent -> sent -> settled
                        -> handed over -> settled

Promises: what the store has not heard of is still there to be told again; what a beat that ends has in its hands, for all that
it knows, is handed over, so that others need not wait for its claims to run out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from celery_lockbeat.beat.agenda import Item
from celery_lockbeat.stores.base import BeatStore

__all__ = ["Ledger", "Tick"]

logger: Final = logging.getLogger("celery_lockbeat.beat")


class Tick(NamedTuple):
    """A claim of ours that is to be published before ``fresh_until``, when others may take it over.

    After ``sure_until`` its entry may have been deleted: that is to be found out first.
    """

    item: Item
    run: int
    task_id: str
    details: Mapping[str, Any]
    fresh_until: float
    sure_until: float
    #: whether another replica had claimed it
    taken_over: bool = False


class Ledger:
    """Claims by their task ids."""

    def __init__(self) -> None:
        #: what may be ours, for all we know
        self._asked: set[str] = set()
        self.unsent: dict[str, Tick] = {}
        self._sent: list[tuple[str, str]] = []  # (task id, key)
        self.handed_over: list[str] = []

    def ask(self, task_ids: Iterable[str]) -> None:
        """Note claims that the store is about to be asked for."""
        self._asked.update(task_ids)

    def answered(self, task_ids: Iterable[str]) -> None:
        """Note that the store has said whose these are."""
        self._asked.difference_update(task_ids)

    def take(self, tick: Tick) -> Tick:
        """Note a claim that is ours, to be published."""
        self.unsent[tick.task_id] = tick
        return tick

    def sent(self, tick: Tick) -> None:
        """Settle a claim: it is published, or not wanted any more."""
        if self.unsent.pop(tick.task_id, None) is not None:
            self._sent.append((tick.task_id, tick.item.key))

    def drop(self, tick: Tick) -> None:
        """Leave a claim to whoever takes it over when its time is over."""
        self.unsent.pop(tick.task_id, None)

    def hand_over(self, task_ids: Iterable[str]) -> None:
        """Let others have these claims at once, if they are ours."""
        self.handed_over += task_ids

    def hand_over_unsent(self) -> None:
        """Let others have what is not sent, in the order in which it was claimed."""
        self.handed_over += self.unsent
        self.unsent.clear()

    def hand_over_all(self) -> None:
        """Let others have all that is not sent, and all that may be ours for all we know."""
        self.hand_over_unsent()
        self.handed_over += self._asked
        self._asked.clear()

    def settle(self, store: BeatStore, app: str, replica: str, record_runs: Callable[[Sequence[str]], None]) -> None:
        """Let the store know in one call what is sent and what is handed over; what it does not hear, it is told again.

        ``record_runs`` is called with the keys of what is sent before that. Raises StoreUnavailable.
        """
        if not (self._sent or self.handed_over):
            return
        sent, handed_over = list(self._sent), list(self.handed_over)
        if sent:
            record_runs([key for _, key in sent])
        settled = store.settle(app, replica, sent, handed_over=handed_over)
        del self._sent[: len(sent)], self.handed_over[: len(handed_over)]
        for (task_id, key), ours in zip(sent, settled, strict=True):
            if not ours:
                logger.warning("task %s of entry %r may have been sent twice: another beat took it over", task_id, key)
