"""The list of mutants fits the product, and its runner tells one from the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .listed import MUTANTS
from .runner import ROOT, apply, copied, run_tests, verdict

#: Those that some milliseconds of testing notice, the first in each run of the suite; all of them: python -m tests.mutants
QUICK = ["extend by name", "claim without compare-and-set", "a claim is fresh from its answer on"]


def test_each_mutant_can_still_be_made(tmp_path):
    assert len(MUTANTS) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.old != mutant.new
        path = ROOT / "celery_lockbeat" / mutant.file
        assert path.read_text().count(mutant.old) == 1, f"the mutant {mutant.name!r} fits {mutant.file} no more"


def test_the_tests_that_are_to_notice_a_mutant_are_there():
    for mutant in MUTANTS:
        for test in mutant.tests:
            path, name = test.split("::")
            assert re.search(rf"^def {name}\(", Path(ROOT, path).read_text(), re.MULTILINE), test


@pytest.mark.parametrize("name", [QUICK[0], *(pytest.param(name, marks=pytest.mark.soak) for name in QUICK[1:])])
def test_the_suite_notices(name):
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == name]
    what, _, output = verdict(mutant)
    assert what == "killed", output


def test_without_a_mutant_the_same_tests_pass():
    with copied() as root:
        status, output = run_tests(root, [test for each in MUTANTS if each.name in QUICK for test in each.tests])
    assert status == 0, output


def test_what_does_not_stand_there_is_no_mutant(tmp_path):
    with copied() as root, pytest.raises(LookupError, match="stands 0 times"):
        apply(MUTANTS[0]._replace(old="what is not there"), root)
