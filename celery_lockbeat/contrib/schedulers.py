"""The entries of an app for those who look at them: by the names that their users gave them, wherever they are kept.

Nothing is changed: a scheduler that is made to be looked at writes nothing into RedBeat's Redis or Django's tables.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

from celery.utils.imports import load_extension_class_names, symbol_by_name

from celery_lockbeat.beat.scheduler import LockedScheduler, LockedSchedulerMixin
from celery_lockbeat.contrib.definition import Definition
from celery_lockbeat.membership.members import fields_of
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.stores import Store, name_of

__all__ = [
    "Entries",
    "announced_schedulers",
    "are_kept_elsewhere",
    "definition_of",
    "entries_of",
    "is_ours",
    "known_schedules",
    "names_of",
    "plain_redbeat",
    "schedulers_of",
    "static_entries",
    "static_schedules",
]

#: The key of a ``@timeout``: its name, and when the beats started cold (see replicas.py).
_TIMEOUT: Final = re.compile(r"(.+)@\d{9,16}", re.DOTALL)


@dataclass(frozen=True)
class Entries:
    """The tasks of entries by the entries' names, and why some are no entries of anything."""

    tasks: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)


def announced_schedulers(app: Any, store: Store) -> list[str]:
    """Return the names of the scheduler classes that beats have announced. Raises StoreUnavailable."""
    members = map(fields_of, store.announcements.announced(name_of(app), "member"))
    return sorted({str(fields["scheduler"]) for fields in members if "scheduler" in fields})


def schedulers_of(app: Any, announced: Iterable[str] = ()) -> list[type]:
    """Return the class that ``beat_scheduler`` names, and those that beats have ``announced``, as far as they can be imported."""
    try:
        aliases = dict(load_extension_class_names("celery.beat_schedulers") or {})
    except Exception:  # noqa: BLE001  whatever is installed
        aliases = {}
    found = [_imported(name, aliases) for name in dict.fromkeys((app.conf.beat_scheduler, *announced))]
    return [scheduler for scheduler in dict.fromkeys(found) if isinstance(scheduler, type)]


def _imported(name: str, aliases: Mapping[str, str]) -> Any:
    try:
        return symbol_by_name(name, aliases=aliases)
    except Exception:  # noqa: BLE001  whatever importing it raises
        return None


def is_ours(app: Any) -> bool:
    """Whether the beats of this app are ours, as far as its settings tell."""
    return any(issubclass(scheduler, LockedSchedulerMixin) for scheduler in schedulers_of(app))


def entries_of(app: Any) -> Entries:
    """Tell the entries of the scheduler that is set: those of the settings, and those that it keeps elsewhere.

    Raises ConfigurationError, StoreUnavailable where they cannot be asked for, and whatever a library raises.
    """
    static = {name: entry.task for name, entry in sorted(LockedScheduler(app).data.items())}
    kept = [place.stored_entries(app) for place in _places(schedulers_of(app))]
    tasks = {name: task for each in kept for name, task in each[0].items()}
    return Entries({**static, **tasks}, {name: why for each in kept for name, why in each[1].items()})


def static_schedules(app: Any) -> dict[str, Any]:
    """Return the schedules of the entries that the app has in itself; none where they may have been changed elsewhere."""
    return {name: schedule for name, (_, schedule) in static_entries(app).items()}


def static_entries(app: Any) -> dict[str, tuple[str, Any]]:
    """Return the tasks and schedules of the entries that the app has in itself; none where they may have been changed elsewhere."""
    if _places(schedulers_of(app)):
        return {}
    return {name: (entry.task, entry.schedule) for name, entry in LockedScheduler(app).data.items()}


def are_kept_elsewhere(app: Any) -> bool:
    """Whether the scheduler that is set keeps entries in RedBeat's Redis or Django's tables."""
    return bool(_places(schedulers_of(app)))


def known_schedules(app: Any) -> dict[str, tuple[Any, Policy | None]]:
    """Return the schedules of all entries that are not disabled, wherever they are kept, and the policies that stand there beside them.

    Raises StoreUnavailable.
    """
    known: dict[str, tuple[Any, Policy | None] | None] = {
        name: (entry.schedule, None) for name, entry in LockedScheduler(app).data.items()
    }
    for place in _places(schedulers_of(app)):
        known |= place.stored_schedules(app)
    return {name: each for name, each in known.items() if each is not None}


def definition_of(app: Any, name: str) -> Definition | None:
    """Return the definition of an entry by its user's name for it; None: nobody here can tell. Raises StoreUnavailable."""
    for place in _places(schedulers_of(app)):
        found: Definition | None = place.definition_of(app, name)
        if found is not None:
            return found
    entry = LockedScheduler(app).data.get(name)
    if entry is None:
        return None
    args, kwargs = entry.args or (), entry.kwargs or {}
    return Definition(entry.task, entry.schedule, args, kwargs, True, "beat_schedule, or a decorator")


def names_of(app: Any, keys: Iterable[str], announced: Iterable[str] = ()) -> dict[str, str]:
    """Return the users' own names of entries by the keys under which a store knows them; what is unknown keeps its key."""
    names = {key: match[1] if (match := _TIMEOUT.fullmatch(key)) else key for key in keys}
    for place in _places(schedulers_of(app, announced)):
        with contextlib.suppress(Exception):  # a database that is away, or not set up here: the keys are shown then
            names |= place.names_of(app, list(names))
    return names


def plain_redbeat(app: Any, announced: Iterable[str] = ()) -> str | None:
    """Tell of RedBeat's own lock, if one of the schedulers is over RedBeat and somebody holds it. Raises StoreUnavailable."""
    places = [place for place in _places(schedulers_of(app, announced)) if hasattr(place, "plain_redbeat")]
    return places[0].plain_redbeat(app) if places else None


def _places(schedulers: Iterable[type]) -> list[ModuleType]:
    """Return our modules for where these schedulers keep entries."""
    places: list[ModuleType] = []
    bases = {f"{base.__module__}:{base.__qualname__}" for scheduler in schedulers for base in scheduler.__mro__}
    if "redbeat.schedulers:RedBeatScheduler" in bases:
        from celery_lockbeat.contrib import redbeat  # noqa: PLC0415  it may not be there

        places.append(redbeat)
    if "django_celery_beat.schedulers:DatabaseScheduler" in bases:
        from celery_lockbeat.contrib.django import inspection as django  # noqa: PLC0415  as above

        places.append(django)
    return places
