"""What the benchmarks' report makes of numbers. No number is asserted that a machine had to be fast for."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import remembered, report, stages
from benchmarks.beat import Load, Measured
from benchmarks.control import Reading
from benchmarks.remembered import Remembered
from benchmarks.replicas import Shared, Silence, silence
from benchmarks.report import Beat, Results, Spread
from benchmarks.store import Pairs

PAGE = Path(__file__).parent.parent / "docs" / "comparison.md"
FAST = Measured(rate=100, per_cpu=1000, commands=2, rss_before=50, rss=60, stored=2048)
SIZES = (100, 1000, 10_000, 100_000)


def make_results() -> Results:
    results = Results({"date": "2026-01-02", "versions": "celery 5", "load average at start": "0.1"})
    for entries in SIZES:
        load = Load(entries, 1, 1, 7)
        results.beats.append(Beat("lockbeat", load, [FAST, replace(FAST, rate=120), replace(FAST, rate=90)]))
        results.beats.append(Beat("redbeat", load, [replace(FAST, rate=30, behind=5)]))
        results.beats.append(Beat("celery", load, [] if entries == 100_000 else [replace(FAST, rate=0, per_cpu=0)]))
    results.beats[-1].trouble = "a round was not done after 9 s"
    results.beats.append(Beat("bare", load, [FAST]))
    results.memory = results.beats[6:9]
    results.replicas = {number: [Shared(10.0 * number, 100, 2, 0, 500, (1.0,))] for number in (1, 2, 3)}
    results.pairs = Pairs({name: [1.0, 2.0, 3.0] for name in report.PAIRS}, trips=2)
    kinds = {
        "plain task": [{"throughput": 10.0, "cpu": 1e-3, "parts": {"server": 4e-4, "children": 6e-4}}],
        report.LOCKED: [{"throughput": 8.0, "cpu": 2e-3, "parts": {"server": 5e-4, "children": 15e-4}}],
    }
    results.pools = {"prefork": kinds, "solo": kinds}
    results.stages = {stages.RUN: 5e-5, stages.SERVER: 2e-4}
    results.remembered = Remembered(10, {"a key of its own": 136.7}, {"a key of its own": 1.0})
    results.gaps = {"lockbeat": [Silence(1, 1.2, open=False)], "RedBeat, its defaults": [Silence(1, 30, open=True)]}
    results.control = [Reading(10, 100), Reading(11, 120)]
    return results


def test_a_spread_tells_the_median_the_least_and_the_most():
    assert f"{Spread.of([3, 1, 2]):.0f}" == "2 (1 to 3)"
    assert f"{Spread.of([2]):.0f}" == "2"
    assert f"{Spread.of([]):.0f}" == "-"
    assert Spread.of([90, 100, 110]).percent == 20


def test_the_report_hides_no_one_who_was_late_or_failed():
    results = make_results()
    results.failed["gap"] = "RuntimeError: no beat"
    told = report.markdown(results)
    assert "did not finish its first wave in 7 s" in told
    assert "a round was not done after 9 s" in told
    assert "The section `gap` failed: RuntimeError: no beat" in told
    assert ">30 s" in told
    assert all(f"## {title}" in told for title, _ in report.sections(results))


def test_what_a_lock_adds_is_told_by_who_spends_it():
    told = report.added(make_results().pools["prefork"])
    assert f"| {report.LOCKED} | +100 | +900 | +1,000 |" in told
    assert "| plain task |" not in told


def test_a_stage_has_what_it_did_itself_and_not_what_it_called(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    watch = stages.Stopwatch()

    def takes(seconds, *then):
        def carry_out():
            now[0] += seconds
            for each in then:
                each()

        return carry_out

    server = watch.timing(stages.SERVER, takes(8.0))
    lock = watch.timing("the lock's states and its renewal", takes(2.0, server, server))
    run = watch.timing(stages.RUN, takes(1.0, lock, takes(4.0)))
    for _ in range(101):
        run()
    assert watch.runs[0] == {stages.RUN: 5.0, "the lock's states and its renewal": 2.0, stages.SERVER: 16.0}
    (tmp_path / "stages.1").write_text(json.dumps([{stages.RUN: 7.0}, *watch.runs]))
    (tmp_path / "stages.2").write_text(json.dumps(watch.runs))
    medians = stages.medians(str(tmp_path))
    assert medians[stages.RUN] == 5.0
    assert medians["notes for the parent, which frees what a dead child held"] == 0.0
    assert list(stages.told(medians))[-1] == ("in all", "23000000")
    assert stages.medians(str(tmp_path / "none")) == {}


def test_where_a_runs_time_goes_is_told_by_stage():
    told = report.markdown(make_results())
    assert f"| {stages.SERVER} | 200 |" in told
    assert "| in all | 250 |" in told


def test_the_rows_of_a_table_are_as_wide_as_its_head():
    for line in report.markdown(make_results()), report.compact(make_results()):
        for found in re.findall(r"(?:^\|.*\|$\n?)+", line, re.MULTILINE):
            assert len({row.count("|") for row in found.splitlines()}) == 1


def test_what_finished_runs_take_is_told_per_million():
    assert "| a key of its own | 137 | 130 | 1.00 |" in report.markdown(make_results())


@pytest.mark.parametrize("runs", [4_000, pytest.param(20_000, marks=pytest.mark.soak)])
def test_a_finished_run_takes_at_most_150_bytes_in_all(runs):
    measured = remembered.measure(runs)
    assert measured.bytes_each.keys() == remembered.KEYS.keys()
    assert all(50 < each <= 150 for each in measured.bytes_each.values()), measured


def test_what_was_not_measured_is_left_out():
    empty = Results({"date": "2026-01-02"})
    assert "##" not in report.markdown(empty)
    assert "date 2026-01-02" in report.compact(empty)
    ET.fromstring(report.svg(empty))


def test_the_chart_is_xml_with_a_line_each_and_no_label_upon_another():
    chart = ET.fromstring(report.svg(make_results()))
    tag = "{http://www.w3.org/2000/svg}"
    lines = {line.get("id"): line.get("points").split() for line in chart.iter(f"{tag}polyline")}
    assert {name: len(points) for name, points in lines.items()} == {
        "lockbeat": 4,
        "redbeat": 4,
        "celery": 3,
        "due": 4,
        "bare": 4,
    }
    width, height = map(float, chart.get("viewBox").split()[2:])
    places = [(float(label.get("x")), float(label.get("y"))) for label in chart.iter(f"{tag}text")]
    assert all(0 < x < width and 0 < y < height for x, y in places)
    ends = sorted(y for x, y in places if x == report.LEFT + report.WIDTH + 12)
    assert len(ends) == 5
    assert all(later - earlier >= 16 for earlier, later in pairwise(ends))


def test_a_silence_lasts_from_before_the_kill_to_the_next_message_or_the_end():
    seen = {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.5, 2.5, 6.0, 7.0]}
    assert silence(seen, quiet=0, killed=3.5, end=7.5) == Silence(before=1.0, after=3.5, open=True)
    assert silence({"b": seen["b"]}, quiet=0, killed=3.5, end=7.5) == Silence(before=1.0, after=3.5, open=False)


def test_the_pages_block_is_replaced_and_nothing_else():
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.replace_block(text, r"new \1") == f"before\n{report.BEGIN}\nnew \\1\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="0 blocks"):
        report.replace_block("none", "new")


def test_the_page_shows_when_and_with_what_it_was_measured():
    block = PAGE.read_text().split(report.BEGIN)[1].split(report.END)[0]
    assert re.search(r"date \d{4}-\d\d-\d\d", block)
    assert re.search(r"Python 3\.\d+\.\d+, celery \d", block)
    assert re.search(r"celery-redbeat \d.*Valkey \d", block)
