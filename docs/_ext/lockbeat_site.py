"""What the site has that no page says by itself: tables made of the code, and links that leave ``docs/``.

A link to a file beside ``docs/`` leads to the repository, where ``LOCKBEAT_REPOSITORY`` says where that is (see setup.py); else a file
comes with the site, and a directory, or another page, is only named.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import click
from celery import Celery
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import celery_lockbeat
from celery_lockbeat import schedules
from celery_lockbeat.cli import lockbeat
from celery_lockbeat.contrib.prometheus import LockbeatCollector
from celery_lockbeat.journal import Record
from celery_lockbeat.observe.vocabulary import EVENTS
from celery_lockbeat.options.app import _APP_RULES, AppOptions
from celery_lockbeat.options.lock import LOCK_NAMES, LockOptions

DOCS: Final = Path(__file__).parents[1]

#: So many fit into a block of code, beside the contents.
COLUMNS: Final = 90

_LINK: Final = re.compile(r"\[([^\[\]]*)\]\((?!https?://|#|mailto:)([^()\s]+)\)")


# -- tables ------------------------------------------------------------------------------------------------------------


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table in Markdown."""
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def code(text: object) -> str:
    """Write as code."""
    return f"`{text}`"


def default_of(field: dataclasses.Field[Any]) -> str:
    """Write the default of a field; None is none."""
    return "" if field.default in (None, dataclasses.MISSING) else code(repr(field.default))


def options() -> str:
    """Return the options of a lock."""
    fields = {field.name: field for field in dataclasses.fields(LockOptions)}
    rows = (
        (code(f"lock_{name}"), code(f"lockbeat_{name}"), code(fields[name].type), default_of(fields[name]))
        for name in LOCK_NAMES
    )
    return table(("option of a task", "setting of its default", "type", "default"), rows)


def settings() -> str:
    """Return the settings of an app."""
    fields = {field.name: field for field in dataclasses.fields(AppOptions)}
    rows = ((code(f"lockbeat_{name}"), code(fields[name].type), default_of(fields[name])) for name in _APP_RULES)
    return table(("setting", "type", "default"), rows)


def events() -> str:
    """Return the vocabulary of the log."""
    levels = {20: "INFO", 30: "WARNING", 40: "ERROR"}
    rows = (
        (
            code(name),
            levels[event.level],
            ", ".join(code(repr(each)) for each in sorted(event.logged_by, key=str)),
            code(event.text),
        )
        for name, event in EVENTS.items()
    )
    return table(("event, and signal", "level", "logged by `lock_logging`", "text"), rows)


def journal() -> str:
    """Return the fields of a record."""
    rows = ((code(field.name), code(field.type)) for field in dataclasses.fields(Record))
    return table(("field", "type"), rows)


def metrics() -> str:
    """Return the families that are exported."""
    collector = LockbeatCollector(Celery("docs", broker="memory://", set_as_current=False))
    rows = (
        (code(family.name + "_total" * (family.type == "counter")), family.type, family.documentation)
        for family in collector.describe()
    )
    return table(("metric", "type", "what"), rows)


def commands() -> str:
    """Return the help of each command."""
    top = click.Context(lockbeat, info_name="celery -A proj lockbeat")
    parts = []
    for name in lockbeat.list_commands(top):
        command = lockbeat.get_command(top, name)
        assert command is not None  # noqa: S101
        context = click.Context(command, info_name=name, parent=top, max_content_width=COLUMNS, terminal_width=COLUMNS)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def members_of_a_lock() -> list[str]:
    """Return what its page names; the rest is for the package's own use."""
    page = (DOCS / "reference" / "lock.md").read_text("utf-8")
    named = set(re.findall(r"`(?:await )?(?:lock\.|Lock\.)?(\w+)[`(]", page))
    return [name for name in vars(celery_lockbeat.Lock) if not name.startswith("_") and name in named]


def api() -> str:
    """Return what autodoc is to show of each public name."""
    shown = []
    for name in celery_lockbeat.__all__:
        what = getattr(celery_lockbeat, name)
        kind = "autoclass" if isinstance(what, type) else "autofunction" if callable(what) else "automodule"
        if name == "__version__":
            continue
        # of the others the members are Celery's
        members = {celery_lockbeat.Lock: ", ".join(members_of_a_lock()), celery_lockbeat.signals: ""}.get(what)
        shown.append(f".. {kind}:: celery_lockbeat.{name}" + f"\n   :members: {members}" * (members is not None) + "\n")
    shown += [f".. autoclass:: celery_lockbeat.schedules.{name}\n" for name in schedules.__all__]
    return "```{eval-rst}\n" + "\n".join(shown) + "```\n"


MADE: Final[dict[str, Callable[[], str]]] = {
    "api": api,
    "commands": commands,
    "events": events,
    "journal": journal,
    "metrics": metrics,
    "options": options,
    "settings": settings,
}


class Lockbeat(SphinxDirective):
    """``{lockbeat} options``: what the code has."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Read the Markdown that is made."""
        return self.parse_text_to_nodes(MADE[self.arguments[0]](), allow_section_headings=True)


# -- links -------------------------------------------------------------------------------------------------------------


def leave_docs(text: str, page: Path, repository: str) -> str:
    """Rewrite the links of a page that lead out of ``docs/``."""

    def rewritten(found: re.Match[str]) -> str:
        said, link = found.groups()
        path, hash_, anchor = link.partition("#")
        target = (page.parent / path).resolve()
        if not path or target.is_relative_to(DOCS):
            return found[0]
        if repository:
            kind = "tree" if target.is_dir() else "blob"
            return f"[{said}]({repository}/{kind}/main/{target.relative_to(DOCS.parent).as_posix()}{hash_}{anchor})"
        return said if target.is_dir() or target.suffix == ".md" else f"[{said}]({path})"

    return "".join(part if fenced else _LINK.sub(rewritten, part) for fenced, part in parts_of(text))


def parts_of(text: str) -> Iterator[tuple[bool, str]]:
    """Tell blocks of code from all else."""
    for number, part in enumerate(re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)):
        yield bool(number % 2), part


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Rewrite a page before it is read."""
    source[0] = leave_docs(
        source[0], Path(app.env.doc2path(name)), os.environ.get("LOCKBEAT_REPOSITORY", "").rstrip("/")
    )


def setup(app: Sphinx) -> dict[str, object]:
    """Let Sphinx know."""
    app.add_directive("lockbeat", Lockbeat)
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
