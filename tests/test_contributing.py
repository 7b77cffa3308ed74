"""CONTRIBUTING.md's commands, as far as they can be tried within seconds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

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


def tried(command: str) -> list[str] | None:
    """The cheap form of a command: which tests it would run, or what it says of itself."""
    words = shlex.split(command)
    if words[:3] == [".venv/bin/python", "-m", "pytest"]:
        return [*words[1:], "--collect-only", "-q", "-n", "0"] if any("tests/" in word for word in words) else None
    return [*words[1:], "--help"] if words[0] in (".venv/bin/python", ".venv/bin/mypy") else None


@pytest.mark.parametrize("command", [command for command in COMMANDS if tried(command)])
def test_a_command_finds_what_it_names(command):
    program = [] if command.startswith(".venv/bin/python") else ["-m", "mypy"]
    done = subprocess.run([sys.executable, *program, *tried(command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_other_command_is_tried_elsewhere():
    others = {command for command in COMMANDS if not tried(command)}
    assert others - {'.venv/bin/python -m pytest -m "not processes"'} == {
        each for file in ELSEWHERE.values() for each in file
    }
    for file, commands in ELSEWHERE.items():
        text = (ROOT / file).read_text("utf-8")
        assert [each for each in commands if each.removeprefix(".venv/bin/ruff ") not in text] == []


def test_a_command_that_names_what_is_not_there_would_be_noticed():
    command = ".venv/bin/python -m pytest -n 0 tests/test_lock.py::test_that_nobody_has_written"
    done = subprocess.run([sys.executable, *tried(command)], cwd=ROOT, capture_output=True)
    assert done.returncode != 0
