"""RedBeat's Redis for those who look at it: the commands and ``doctor``. Nothing is changed.

Promises: an entry that cannot be read hides no other. A Redis that does not answer is StoreUnavailable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from celery.schedules import maybe_schedule
from redbeat.schedulers import RedBeatScheduler, ensure_conf, get_redis

from celery_lockbeat.contrib.definition import Definition
from celery_lockbeat.contrib.policies import policy_in
from celery_lockbeat.contrib.redbeat.hashes import AT_ONCE, FREE, answers_of, decoded, redbeats_redis
from celery_lockbeat.contrib.redbeat.stored import KEY
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.schedules.policy import Policy

__all__ = ["definition_of", "names_of", "plain_redbeat", "stored_entries", "stored_schedules"]


def names_of(app: Any, keys: Sequence[str]) -> dict[str, str]:
    """Return the names of entries by their keys in our store, or in RedBeat's Redis."""
    prefix = ensure_conf(app).key_prefix
    hashes = {key: match[1] if (match := KEY.fullmatch(key)) else key for key in keys}
    return {key: where.removeprefix(prefix) for key, where in hashes.items() if where.startswith(prefix)}


def stored_entries(app: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return what is in RedBeat's Redis: the tasks of enabled entries, and why others are none. Raises StoreUnavailable."""
    tasks: dict[str, str] = {}
    broken: dict[str, str] = {}
    with redbeats_redis():
        for name, definition in _definitions(app):
            try:
                task = _task_of(definition)
            except Exception as exc:  # noqa: BLE001, PERF203  whatever is in there
                broken[name] = f"{type(exc).__name__}: {exc}"
            else:
                if task is not None:
                    tasks[name] = task
    return tasks, broken


def stored_schedules(app: Any) -> dict[str, tuple[Any, Policy | None] | None]:
    """Return the schedules and policies of entries by name, None for one that is not enabled; of others nothing. Raises StoreUnavailable."""
    found: dict[str, tuple[Any, Policy | None] | None] = {}
    with redbeats_redis():
        for name, definition in _definitions(app):
            with contextlib.suppress(Exception):  # whatever is in there
                if _task_of(definition) is None:
                    found[name] = None
                else:
                    fields = RedBeatScheduler.Entry.decode_definition(decoded(definition))
                    found[name] = maybe_schedule(fields["schedule"], app=app), _policy_of(name, fields)
    return found


def definition_of(app: Any, name: str) -> Definition | None:
    """Return the definition of an entry by its name; None: there is none, or it is broken. Raises StoreUnavailable."""
    with redbeats_redis():
        text = get_redis(app).hget(ensure_conf(app).key_prefix + name, "definition")
    try:
        fields = RedBeatScheduler.Entry.decode_definition(decoded(text)) if text else {}
        if not fields.get("task") or fields.get("schedule") is None:
            return None
        when = maybe_schedule(fields["schedule"], app=app)
    except Exception:  # noqa: BLE001  whatever is in there
        return None
    args, kwargs, enabled = fields.get("args") or (), fields.get("kwargs") or {}, bool(fields.get("enabled", True))
    return Definition(str(fields["task"]), when, args, kwargs, enabled, "RedBeat's Redis", _policy_of(name, fields))


def _policy_of(name: str, fields: Mapping[str, Any]) -> Policy | None:
    with contextlib.suppress(ConfigurationError):  # a beat skips it, and complains
        return policy_in(fields.get("options"), owner=f"entry {name!r}")
    return None


def _definitions(app: Any) -> Iterator[tuple[str, Any]]:
    """Read the definitions of all entries, by their names."""
    conf, client = ensure_conf(app), get_redis(app)
    keys = [decoded(key) for key in client.zrange(conf.schedule_key, 0, -1)]
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        with client.pipeline(transaction=False) as pipe:
            for key in some:
                pipe.hget(key, "definition")
            answers = answers_of(pipe)
        yield from zip([key.removeprefix(conf.key_prefix) for key in some], answers, strict=True)


def _task_of(definition: Any) -> str | None:
    """Return the task of an entry, None for one that is not enabled. Raises whatever is wrong with it."""
    if not definition or isinstance(definition, Exception):
        raise ValueError("it has no definition")
    fields = RedBeatScheduler.Entry.decode_definition(decoded(definition))
    if not fields.get("task") or fields.get("schedule") is None:
        raise ValueError("it has no task or no schedule")
    return str(fields["task"]) if fields.get("enabled", True) else None


def plain_redbeat(app: Any) -> str | None:
    """Describe RedBeat's own lock, if somebody holds it. Raises StoreUnavailable."""
    with redbeats_redis():
        key, client = ensure_conf(app).lock_key, get_redis(app)
        # without RedBeat's retries, which may have no end
        rest = getattr(client, "wrapped_connection", client).pttl(key) if key else FREE
    return None if rest == FREE else f"somebody holds RedBeat's lock {key!r}, for another {max(0, rest) / 1000:.0f} s"
