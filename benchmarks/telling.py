"""How all of them tell what they do, and what it was done with."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import redis

PACKAGES = ("celery", "kombu", "redis", "celery-redbeat", "celery-once", "celery-singleton", "python-redis-lock")


def say(what: str) -> None:
    """Tell whoever waits how far it is."""
    print(what, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def versions(client: redis.Redis) -> str:
    """Name the packages that are compared, and the server."""
    server = client.info("server")
    named = server.get("valkey_version") or server["redis_version"]
    return ", ".join([*map(_version, PACKAGES), f"Valkey {named}"])


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is missing"
