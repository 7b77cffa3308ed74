"""Threads of the kernel's, also where gevent has patched ``threading``: who renews must not wait until a body yields."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["gevent_has_patched", "new_lock", "start"]


def gevent_has_patched() -> Any:
    """Return gevent's module of patches, if it has patched ``threading``."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey if monkey is not None and monkey.is_module_patched("threading") else None


def new_lock() -> Any:
    """Make a lock for such threads: one of gevent's would wait in the hub of its thread, and not be woken from another."""
    green = gevent_has_patched()
    return green.get_original("_thread", "allocate_lock")() if green else threading.Lock()


def start(run: Callable[[], None], name: str) -> Callable[[float], None]:
    """Call ``run`` in a daemon thread; return what waits for its end, for so many seconds at most. Raises RuntimeError."""
    green = gevent_has_patched()
    if green:
        green.get_original("_thread", "start_new_thread")(run, ())
        return lambda _timeout: None  # threading, and who counts its threads, does not know it
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread.join
