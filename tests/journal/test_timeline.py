"""The timeline: what is drawn of ticks, as text, SVG and HTML."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree as ET
from zoneinfo import ZoneInfo

import pictures
import pytest
from celery.bin.celery import celery as command_line
from click.testing import CliRunner
from ledgers import NOON, at, of_run, published, ran, record

from celery_lockbeat.cli.signs import Sign, styled
from celery_lockbeat.cli.timeline import _write
from celery_lockbeat.cli.timeline.svg import _LEGEND, _MARKS, _STYLE, page_of, svg_of
from celery_lockbeat.cli.timeline.text import lines_of
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.insight import lanes
from celery_lockbeat.insight.lanes import Timeline, axis_of, timeline_of
from celery_lockbeat.journal.ticks import OUTCOMES, ticks_of

HOSTILE = "</text><script>alert(1)</script>&amp;\"'<!--]]>\x00\x1b[2J\ud800\u202e\n" + "漢" * 60
SVG = "{http://www.w3.org/2000/svg}"


def drawn(*records, seconds: float = 100, reach: datetime | None = NOON, zone=timezone.utc) -> Timeline:
    return timeline_of(ticks_of(records), NOON, at(seconds), reach, zone)


def everything(name: str = "report") -> list:
    lost = of_run("lock_expired_before_finish", 45, 5, 40, entry=name)
    died = of_run("task_died", 56, 6, 50, entry=name, reason="killed by SIGKILL", signal=9)
    return [
        *ran(1, 0, 5, entry=name),
        *ran(2, 10, 3, entry=name, status="failed", error_name="ValueError", error_message="no such customer"),
        published(3, 20, entry=name),
        of_run("task_skipped", 20.2, 3, 20, entry=name, reason="locked", holder="celery@w2"),
        record("tick_missed", 39, entry=name, count=4, last_due=at(35), reason="nobody was there"),
        *ran(5, 40, 8, entry=name),
        lost,
        published(6, 50, entry=name),
        of_run("task_started", 50.2, 6, 50, entry=name),
        died,
        published(7, 90, entry=name),
        of_run("task_started", 90.5, 7, 90, entry=name),
        published(8, 95, entry=name),
    ]


def text_of(timeline: Timeline, width: int = 80) -> list[str]:
    return lines_of(timeline, width, lambda sign: sign.text)


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_a_lane_has_a_bar_for_each_run_and_a_mark_for_each_that_was_none():
    (lane,) = drawn(*everything()).lanes
    assert [(bar.outcome, round((bar.end - bar.begin).total_seconds())) for bar in lane.bars] == [
        ("succeeded", 5),
        ("failed", 3),
        ("succeeded", 8),
        ("died", 6),
        ("running", 10),
    ]
    kinds = sorted((mark.kind, mark.at) for mark in lane.marks)
    assert [kind for kind, _ in kinds] == ["died", "lost", "missed", "queued", "skipped"]
    assert lane.summary() == "4 missed, 2 succeeded, 1 failed, 1 skipped, 1 died, 1 running, 1 queued"
    titles = "\n".join((*(bar.title for bar in lane.bars), *(mark.title for mark in lane.marks)))
    for told in ("no such customer", "held by celery@w2", "4 ticks missed", "killed by SIGKILL", "published by beat-1"):
        assert told in titles


def test_lanes_and_shapes_are_capped_and_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr(lanes, "LANES", 3)
    monkeypatch.setattr(lanes, "SHAPES", 10)
    records = [line for number in range(6) for run in (1, 2) for line in ran(run, run, entry=f"e{number}")]
    records += ran(3, 3, entry="e5", status="failed")
    timeline = drawn(*records)
    assert len(timeline.lanes) == 3
    assert "e5" in [lane.name for lane in timeline.lanes], "what had trouble stays"
    assert timeline.left_out == [
        "3 older ticks and runs are left out: there are more than 10",
        "3 of 6 entries are left out, in all of which nothing went wrong",
    ]
    for shown in ("\n".join(text_of(timeline)), svg_of(timeline, "t")):
        assert all(note in shown for note in timeline.left_out)


def test_ten_thousand_records_make_a_file_of_some_megabytes_in_little_time():
    records = [line for run in range(3400) for line in ran(run, run, 0.5, entry=f"entry-{run % 40}")]
    assert len(records) > 10_000
    assert len(svg_of(drawn(*records, seconds=3400), "t").encode()) < 3_000_000


@pytest.mark.parametrize("seconds", [5, 60, 600, 3600, 86400, 7 * 86400, 400 * 86400])
def test_an_axis_has_some_times_at_full_minutes_and_hours_of_the_zone(seconds):
    zone = ZoneInfo("Asia/Kolkata")  # half an hour beside the others
    timeline = drawn(seconds=seconds, zone=zone)
    times = list(axis_of(timeline, 12))
    assert 2 <= len(times) <= 13
    assert all(NOON <= each <= at(seconds) for each, _ in times)
    assert len({after - before for (before, _), (after, _) in pairwise(times)}) == 1
    if seconds >= 86400:
        assert {each.astimezone(zone).minute for each, _ in times} == {0}


# -- as text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_text_is_no_wider_than_it_may_be_and_has_each_thing_by_its_letter(width):
    lines = text_of(drawn(*everything(), *ran(1, 0, entry="an entry that has " + "a very long name" * 9)), width)
    assert max(map(len, lines[3:])) <= width
    row = next(line for line in lines if line.startswith("report"))
    assert set("━FsMLD>~") <= set(row) or width < 80
    assert "\x1b" not in "".join(lines)
    assert any("L lost its lock" in line for line in lines)


def test_the_worst_of_a_cell_is_shown():
    lines = text_of(drawn(*ran(1, 0), *ran(2, 0.1, status="failed"), *ran(3, 0.2), seconds=100_000))
    assert next(line for line in lines if line.startswith("report")).removeprefix("report").strip().startswith("F")


def test_colours_are_those_of_the_terminal():
    assert styled(Sign("F", "bold red")) == "\x1b[31m\x1b[1mF\x1b[0m"
    assert styled(Sign("o", "dim")) == "\x1b[2mo\x1b[0m"


# -- as a picture ------------------------------------------------------------------------------------------------------


def test_the_svg_is_xml_and_hostile_names_are_but_text():
    failed = ran(9, 60, entry=HOSTILE, status="failed", error_name="E", error_message=HOSTILE, hostname=HOSTILE)
    picture = svg_of(drawn(*everything(HOSTILE), *failed), HOSTILE)
    root = ET.fromstring(picture.encode())
    names = {each.tag.removeprefix(SVG) for each in root.iter()}
    assert names <= {"svg", "title", "style", "defs", "pattern", "rect", "text", "g", "path", "circle"}
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on") or "href" in name]
    titles = [each.text for each in root.iter(f"{SVG}title")]
    assert sum("</text><script>alert(1)</script>&amp;" in (title or "") for title in titles) > 9


def test_each_outcome_has_a_shape_or_a_pattern_of_its_own():
    root = ET.fromstring(svg_of(drawn(*everything()), "t"))
    bars = {each.get("class").split()[1]: each for each in root.iter(f"{SVG}rect") if "b " in each.get("class", "")}
    assert set(bars) == {"succeeded", "failed", "died", "running"}
    assert all(re.search(rf"\.{name}{{fill:url\(#", _STYLE) for name in ("failed", "died"))
    assert re.search(r"\.running{[^}]*stroke-dasharray", _STYLE)
    marks = {kind: _MARKS[kind] for kind, _ in _LEGEND if kind not in ("succeeded", "failed", "running")}
    assert len(set(marks.values())) == len(marks)
    assert {*OUTCOMES, "lost"} == {kind for kind, _ in _LEGEND} == set(_MARKS)


def test_the_time_of_ticks_that_were_missed_is_dashed():
    missed = record("tick_missed", 60, entry="report", count=4, last_due=at(50), reason="nobody was there")
    root = ET.fromstring(svg_of(drawn(*ran(1, 10), missed), "t"))
    (dashes,) = [each.get("d") for each in root.iter(f"{SVG}path") if each.get("class") == "W"]
    begin, end = (float(each) for each in re.fullmatch(r"M([\d.]+) \d+H([\d.]+)", dashes).groups())
    assert (end - begin) == pytest.approx(40 * 9.54, abs=0.2)


def test_runs_beside_each_other_are_below_each_other():
    both = [of_run("task_started", 1, 1, 0), of_run("task_started", 2, 2, 1)]
    root = ET.fromstring(svg_of(drawn(published(1, 0), published(2, 1), *both), "t"))
    tops = [float(each.get("y")) for each in root.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    assert len(set(tops)) == 2


def test_the_page_is_one_file_that_asks_no_network():
    page = page_of(drawn(*everything(HOSTILE)), HOSTILE)
    tags: list[tuple[str, list]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, attributes))
    parser.feed(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "use"} & {tag for tag, _ in tags}
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}


def test_what_the_journal_does_not_reach_is_no_emptiness():
    timeline = drawn(*ran(1, 60), reach=at(50))
    assert "the journal reaches back to 2026-03-01 12:00:50 UTC only" in text_of(timeline)
    assert 'fill="url(#u)"' in svg_of(timeline, "t")
    assert 'fill="url(#u)"' not in svg_of(drawn(*ran(1, 60)), "t")


def test_a_file_of_another_kind_is_refused():
    done = CliRunner().invoke(command_line, ["-A", "celery_lockbeat.demo", "lockbeat", "timeline", "--output", "t.png"])
    assert done.exit_code == 1
    assert "--output is 't.png'; allowed: a name that ends with .svg or .html, or -" in done.output


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(ConfigurationError, match="--output cannot be written: .*No such file"):
        _write(tmp_path / "no" / "t.svg", "")


def test_nothing_at_all_is_said():
    timeline = timeline_of([], NOON, NOON + timedelta(0), None, timezone.utc)
    assert "nothing has happened" in text_of(timeline)
    assert "nothing has happened" in svg_of(timeline, "t")


def test_what_the_page_shows_is_what_is_drawn():
    again = "draw it anew: python tests/journal/pictures.py"
    page = pictures.PAGE.read_text("utf-8")
    assert page.count("```text") == 2
    assert pictures.page(page) == page, again
    assert pictures.PICTURE.read_text("utf-8") == pictures.picture(), again
