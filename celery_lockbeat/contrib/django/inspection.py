"""django-celery-beat's tables for those who look at them: the commands and ``doctor``. Nothing is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

from django.apps import apps
from django.core.exceptions import ObjectDoesNotExist
from django.db import connections, router
from django.db.utils import DatabaseError, InterfaceError
from django_celery_beat.schedulers import DatabaseScheduler

from celery_lockbeat.contrib.definition import Definition
from celery_lockbeat.contrib.django.rows import KINDS, POLICIES, json, pks_of
from celery_lockbeat.contrib.django.times import schedule_of
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.schedules.policy import Policy

__all__ = ["definition_of", "names_of", "stored_entries", "stored_schedules"]

#: So many names are asked for in one query.
NAMED_AT_ONCE: Final = 500


def _rows(model: Any) -> Any:
    """Return the rows, on a connection that works: who looks for days keeps one in a thread, and a server may have restarted."""
    alias = router.db_for_write(model)
    connections[alias].close_if_unusable_or_obsolete()
    return model.objects.using(alias)


def names_of(_app: Any, keys: Sequence[str]) -> dict[str, str]:
    """Return the names of rows by their keys in our store. Raises Django's errors."""
    pks = pks_of(keys)
    names: dict[int, str] = {}
    model, wanted = DatabaseScheduler.Model, sorted(set(pks.values()))
    for start in range(0, len(wanted), NAMED_AT_ONCE):
        rows = _rows(model).filter(pk__in=wanted[start : start + NAMED_AT_ONCE])
        names.update(rows.values_list("pk", "name"))
    return {key: names[pk] for key, pk in pks.items() if pk in names}


def stored_entries(_app: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tasks of enabled rows by name, and why others are no entries. Raises StoreUnavailable."""
    model = DatabaseScheduler.Model
    tasks: dict[str, str] = {}
    broken: dict[str, str] = {}
    try:
        rows = _rows(model).filter(enabled=True)
        for name, task, args, kwargs, *schedule in rows.values_list(
            "name", "task", "args", "kwargs", *(f"{kind}_id" for kind in KINDS)
        ):
            try:
                if not task or not any(schedule):
                    raise ValueError("it has no task or no schedule")
                json.loads(args or "[]"), json.loads(kwargs or "{}")
            except Exception as exc:  # noqa: BLE001, PERF203  whatever is in there
                broken[name] = f"{type(exc).__name__}: {exc}"
            else:
                tasks[name] = task
    except (DatabaseError, InterfaceError) as exc:
        raise StoreUnavailable(f"Django's database does not answer: {type(exc).__name__}: {exc}") from exc
    return tasks, broken


def stored_schedules(app: Any) -> dict[str, tuple[Any, Policy | None] | None]:
    """Return the schedules and policies of rows by name, None for one that is disabled; of broken ones nothing.

    Raises StoreUnavailable.
    """
    model = DatabaseScheduler.Model
    found: dict[str, tuple[Any, Policy | None] | None] = {}
    try:
        for row in _rows(model).select_related(*KINDS):
            with contextlib.suppress(Exception):  # whatever is in there
                found[row.name] = (schedule_of(row, app), _policy_of(row)) if row.enabled else None
    except (DatabaseError, InterfaceError) as exc:
        raise StoreUnavailable(f"Django's database does not answer: {type(exc).__name__}: {exc}") from exc
    return found


def definition_of(app: Any, name: str) -> Definition | None:
    """Return the definition of a row by its name; None: there is none, or it is broken. Raises StoreUnavailable."""
    model = DatabaseScheduler.Model
    try:
        row = _rows(model).select_related(*KINDS).filter(name=name).first()
        if row is None or not row.task or row.scheduler is None:
            return None
        args, kwargs = json.loads(row.args or "[]"), json.loads(row.kwargs or "{}")
        where = f"row {row.pk} of django-celery-beat"
        return Definition(row.task, schedule_of(row, app), args, kwargs, row.enabled, where, _policy_of(row))
    except (DatabaseError, InterfaceError) as exc:
        raise StoreUnavailable(f"Django's database does not answer: {type(exc).__name__}: {exc}") from exc
    except Exception:  # noqa: BLE001  whatever is in there
        return None


def _policy_of(row: Any) -> Policy | None:
    """Return the policy beside a row, if the project has that app, its table and one there."""
    if not apps.is_installed(POLICIES):
        return None
    try:
        kept = row.lockbeat_policy
    except (DatabaseError, ObjectDoesNotExist):
        return None
    with contextlib.suppress(ConfigurationError):  # beats go on without it, and complain
        policy: Policy = kept.policy()
        return policy
    return None
