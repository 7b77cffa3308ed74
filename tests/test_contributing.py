"""CONTRIBUTING.md's commands, as far as they can be tried within seconds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest

from docs import DOCS

ROOT = DOCS.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [command.strip() for block in BLOCKS for command in re.split(r"&&|\n", block) if command.strip()]

#: What is tried elsewhere, as it stands there.
ELSEWHERE = {
    "README.md": ["python3 -m venv .venv", ".venv/bin/pip install -q -e '.[dev]'", ".venv/bin/python -m pytest"],
    "tests/test_checks.py": [".venv/bin/ruff check .", ".venv/bin/ruff format --check ."],
}


def tried(command: str) -> bool:
    """Whether its cheap form is: which tests it would run, or what it says of itself."""
    words = shlex.split(command)
    if words[:3] == [".venv/bin/python", "-m", "pytest"]:
        return any("tests/" in word for word in words)
    return words[0] in (".venv/bin/python", ".venv/bin/mypy")


@pytest.mark.parametrize("command", [command for command in COMMANDS if tried(command) and " pytest " not in command])
def test_a_command_says_of_itself_what_it_does(command):
    words = shlex.split(command)
    program = words[1:] if words[0] == ".venv/bin/python" else ["-m", *words[:1], *words[1:]]
    program = [word.removeprefix(".venv/bin/") for word in program]
    done = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def not_found(command: str) -> list[str]:
    """What a command of pytest names, and its paths have not: a test, a word in the names of tests, a mark."""
    words = shlex.split(command)[3:]
    paths = [word for word in words if word.startswith("tests/")]
    files = [ROOT / path.partition("::")[0] for path in paths]
    sources = [each.read_text("utf-8") for file in files for each in ([file] if file.is_file() else file.rglob("*.py"))]
    wanted = [rf"^def {test}\(" for _, _, test in (path.partition("::") for path in paths) if test]
    wanted += [rf"^def test_\w*{after}" for word, after in pairwise(words) if word == "-k"]
    wanted += [rf"pytest\.mark\.{after}\b" for word, after in pairwise(words) if word == "-m"]
    missing = [str(file) for file in files if not file.exists()]
    return missing + [each for each in wanted if not any(re.search(each, text, re.MULTILINE) for text in sources)]


@pytest.mark.parametrize("command", [command for command in COMMANDS if tried(command) and " pytest " in command])
def test_a_command_finds_the_tests_that_it_names(command):
    assert not_found(command) == []


def test_every_other_command_is_tried_elsewhere():
    others = {command for command in COMMANDS if not tried(command)}
    assert others - {'.venv/bin/python -m pytest -m "not processes"'} == {
        each for file in ELSEWHERE.values() for each in file
    }
    for file, commands in ELSEWHERE.items():
        text = (ROOT / file).read_text("utf-8")
        assert [each for each in commands if each.removeprefix(".venv/bin/ruff ") not in text] == []


def test_a_command_that_names_what_is_not_there_would_be_noticed():
    command = ".venv/bin/python -m pytest -n 0 tests/test_lock.py"
    assert not_found(f"{command}::test_that_nobody_has_written")
    assert not_found(f"{command} -k nobody_has_written")
    assert not_found(f"{command} tests/test_that_nobody_has_written.py")
