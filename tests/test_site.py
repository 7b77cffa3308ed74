"""The site builds without a warning, has all pages, and is made of the code; each example is at least readable."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import yaml

from celery_lockbeat.cli import COMMANDS, lockbeat
from docs import DOCS

ROOT = DOCS.parent
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker" / "README.md"])


def blocks(page: Path, *languages: str) -> list[str]:
    named = "|".join(languages)
    return re.findall(rf"^ *```(?:{named})\n(.*?)^ *```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for module in ("sphinx", "furo", "myst_parser"):
        if importlib.util.find_spec(module) is None and not os.environ.get("CI"):
            pytest.skip(f"{module} is missing: pip install -e '.[dev]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", out / "doctrees", DOCS, out / "html"]
    done = subprocess.run(list(map(str, command)), cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_each_page_is_in_the_site(site):
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).exists(), page
    assert (site / "searchindex.js").stat().st_size > 10_000


def test_links_in_the_site_lead_to_pages_and_headings_that_are_there(site):
    ids = {page: set(re.findall(r'id="([^"]+)"', page.read_text("utf-8"))) for page in site.rglob("*.html")}
    checked = 0
    for page in ids:
        for link in re.findall(r'<a [^>]*href="([^"]+)"', page.read_text("utf-8")):
            path, _, anchor = link.partition("#")
            if "://" in link or link.startswith(("mailto:", "data:")):
                continue
            target = (page.parent / unquote(path)).resolve() if path else page
            assert target.exists(), (page.name, link)
            assert not anchor or target.suffix != ".html" or anchor in ids[target], (page.name, link)
            checked += 1
    assert checked > 500


def test_the_reference_has_what_the_code_has(site):
    from celery_lockbeat.observe.vocabulary import EVENTS
    from celery_lockbeat.options.lock import LOCK_NAMES

    code = (site / "reference" / "code.html").read_text("utf-8")
    assert [each for each in [*EVENTS, *(f"lock_{option}" for option in LOCK_NAMES)] if f">{each}<" not in code] == []
    commands = (site / "reference" / "cli.html").read_text("utf-8")
    assert [each for each in COMMANDS if f'id="{each}"' not in commands] == []
    api = (site / "reference" / "api.html").read_text("utf-8")
    members = set(re.findall(r'id="celery_lockbeat\.Lock\.(\w+)"', api))
    assert {"acquire", "release", "extend", "check", "token", "lost"} <= members
    # what is for the package's own use
    assert not members & {"of_run", "take", "arm", "abandon"}


def test_nothing_in_the_site_is_asked_of_another_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert re.findall(r'<(?:script|img|iframe|source)[^>]* src="https?://[^"]+"', text) == [], page
        assert re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="https?://[^"]+"', text) == [], page


# -- examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_example_can_be_read(page):
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "yaml"):
        list(yaml.safe_load_all(block))
    for block in blocks(page, "json"):
        for line in block.splitlines():
            json.loads(re.sub(r", \.\.\.(?=[}\]])", "", line))


def command_lines(page: Path) -> list[list[str]]:
    """``celery ... lockbeat COMMAND ...``, as it stands in the blocks of a page."""
    found = []
    for block in blocks(page, "sh", "console"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.split(r"[|;>]|&&|\|\|", line.partition(" #")[0]):
                words = shlex.split(part.strip().removeprefix("$ "))
                if words[:1] == ["celery"] and "lockbeat" in words:
                    found.append(words[words.index("lockbeat") + 1 :])
    return found


LINES = [(name(page), words) for page in PAGES for words in command_lines(page)]


@pytest.mark.parametrize(("page", "words"), LINES, ids=[f"{page}: {' '.join(words)}" for page, words in LINES])
def test_each_command_line_has_options_that_there_are(page, words):
    if not words:
        return
    context = click.Context(lockbeat)
    command = lockbeat.get_command(context, words[0])
    assert command is not None, words[0]
    command.make_context(words[0], list(words[1:]), parent=context, resilient_parsing=False)


def test_command_lines_are_found():
    assert len(LINES) > 20
    with pytest.raises(click.UsageError):
        test_each_command_line_has_options_that_there_are("", ["status", "--nonsense"])
