"""The local clock of all lease arithmetic: monotonic, the same for all processes of a host, and never asleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

__all__ = ["boot_id", "monotonic"]


def _pick() -> Callable[[], float]:
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.monotonic)  # not itself: freezegun would find it here, and put another in its place
    # Linux's CLOCK_MONOTONIC, which time.monotonic() reads, stops while the machine sleeps; the store's clock does not
    return partial(time.clock_gettime, time.CLOCK_BOOTTIME)


monotonic: Final = _pick()


def boot_id() -> str:
    """Name the boot that :data:`monotonic` counts from."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        # its beginning, as far as the wall clock can tell; a clock set anew ends leases early, in this store only
        return f"{(time.time() - monotonic()) / 60:.0f} min"
