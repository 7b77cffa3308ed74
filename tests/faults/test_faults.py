"""A short run with a fixed plan; ``python -m tests.faults`` is the long one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from faults.checker import check, counts
from faults.moments import BETWEEN
from faults.plan import THEMES, WITH_ELECTIONS, Plan
from faults.report import verdict
from faults.run import Run

#: Of this one the first burst is one of all kinds of faults.
SEED = 14


@pytest.mark.processes
def test_nothing_that_was_promised_is_broken_by_a_burst_of_faults(tmp_path: Path):
    run = Run(tmp_path, seed=SEED, seconds=10, burst=10)
    history = run.carry_out()
    violations = check(history)
    print(verdict(history, run.moments, violations))
    assert violations == []
    told = counts(history)
    assert told["faults"] >= 10
    assert told["bodies ended"] >= 50
    assert told["pauses acknowledged"] >= 1
    assert told["times that all was at work again"] == 2
    assert any(step not in BETWEEN for step, _, _ in run.moments), "nobody was struck at a chosen moment"


def test_a_plan_is_the_same_for_its_seed():
    def planned(seed: int) -> list[object]:
        return [(theme, *islice(faults, 20)) for theme, faults in islice(Plan(seed).bursts(), 20)]

    assert planned(SEED) == planned(SEED) != planned(SEED + 1)
    assert planned(SEED)[0][0] == "all"


def test_a_run_with_sentinels_has_elections_in_each_turn_and_the_other_bursts_as_well():
    themes = [theme for theme, _ in islice(Plan(SEED, WITH_ELECTIONS).bursts(), len(WITH_ELECTIONS))]
    assert sorted(themes) == sorted([*THEMES, "elections", "elections"])
    bursts = Plan(SEED, WITH_ELECTIONS).bursts()
    first, second, *_ = (list(islice(faults, 20)) for theme, faults in islice(bursts, 20) if theme == "elections")
    assert first != second
    assert "fail over" in {each.kind for each in first + second}


def test_each_burst_of_a_plan_is_the_same_however_many_faults_there_was_time_for_before():
    first, second = Plan(SEED).bursts(), Plan(SEED).bursts()
    for number in range(12):
        (theme, faults), (same, same_faults) = next(first), next(second)
        assert theme == same
        assert list(islice(faults, number)) == list(islice(same_faults, 12))[:number]
