"""That a run is to be replaced, told to the worker that it goes on in: by Celery's remote control, so that nobody need wait for a renewal.

Promises: who is told so asks the store at once, and hears from it what it would have heard at its next renewal. Nothing else depends
on it: where remote control is off, or the worker of another release, or too busy to listen, that next renewal tells.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from celery import signals

from celery_lockbeat.locks.children import renew_at_once

__all__ = ["tell"]

logger: Final = logging.getLogger("celery_lockbeat")

COMMAND: Final = "lockbeat_renew"


def tell(app: Any, key: str, holder: str) -> None:
    """Have the worker of a holder look what has become of its lock; ``holder`` is what a run says of itself."""
    node, is_a_run, _ = holder.partition(" pid ")
    if not (is_a_run and app.conf.worker_enable_remote_control):
        return
    try:
        # to this worker alone: others, which may know nothing of us, would log that they do not know the command
        app.control.broadcast(COMMAND, arguments={"key": key}, destination=[node], reply=False)
    except Exception:  # it is told all the same, later
        logger.debug("the holder of lock %r is told at its next renewal that it is to be replaced", key, exc_info=True)


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _listen(**_: Any) -> None:
    # at the start of a worker: to import it is dear, and nobody else needs it
    from celery.worker.control import control_command  # noqa: PLC0415

    @control_command(name=COMMAND, visible=False)  # type: ignore[untyped-decorator]
    def lockbeat_renew(_state: Any, key: str = "", **_: Any) -> None:
        renew_at_once(str(key))
