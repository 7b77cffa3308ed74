"""Which releases of somebody else's package are old enough to be refused."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from celery_lockbeat.exceptions import ConfigurationError

__all__ = ["refuse_older"]


def refuse_older(package: str, oldest: tuple[int, int]) -> None:
    """Raise ConfigurationError where an older release of a package is installed; of a copy of somebody's own nobody knows."""
    try:
        installed = version(package)
    except PackageNotFoundError:
        return
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < oldest:
        raise ConfigurationError(f"{package} is {installed}; allowed: {'.'.join(map(str, oldest))} or newer")
