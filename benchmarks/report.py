"""The report: medians with their spread as tables in Markdown, and one chart in SVG. It measures nothing."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from benchmarks import faults, stages
from benchmarks.beat import Load, Measured
from benchmarks.control import Reading
from benchmarks.remembered import Remembered
from benchmarks.replicas import Shared, Silence
from benchmarks.store import Pairs
from benchmarks.telling import table

NAMES = {"lockbeat": "celery-lockbeat", "redbeat": "RedBeat", "celery": "celery's beat", "bare": "bare send loop"}
COLOURS = {"lockbeat": "#0b6e4f", "redbeat": "#c0392b", "celery": "#8e5a00", "bare": "#5b6b7b", "due": "#9aa5b1"}
INTRODUCTION = """Written by `python -m benchmarks`. Each number is a median, with the least and the most of its rounds
behind it; the rounds of what is compared took turns. Read the ratios, not the absolutes."""
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


@dataclass(frozen=True)
class Spread:
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        return cls(tuple(sorted(values)))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def percent(self) -> float:
        """From the least to the most, in percent of the median."""
        return 100 * (self.values[-1] - self.values[0]) / self.median if self.median else 0.0

    def __format__(self, spec: str) -> str:
        if not self.values:
            return "-"
        low, high = format(self.values[0], spec), format(self.values[-1], spec)
        middle = format(self.median, spec)
        return middle if low == high else f"{middle} ({low} to {high})"


@dataclass
class Beat:
    """One candidate under one load: its rounds, or why there are none."""

    name: str
    load: Load
    runs: list[Measured] = field(default_factory=list)
    trouble: str = ""

    def of(self, what: str) -> Spread:
        return Spread.of(getattr(run, what) for run in self.runs)

    @property
    def micros(self) -> Spread:
        """CPU time per message. Who has sent nothing has no such cost."""
        return Spread.of(1e6 / run.per_cpu for run in self.runs if run.per_cpu)

    @property
    def growth(self) -> Spread:
        """MiB of the process per 10,000 entries."""
        return Spread.of((run.rss - run.rss_before) * 10_000 / self.load.entries for run in self.runs)

    @property
    def behind(self) -> bool:
        return any(run.behind for run in self.runs)

    @property
    def note(self) -> str:
        late = f"did not finish its first wave in {self.load.limit:.0f} s" if self.behind else ""
        return "; ".join(filter(None, [late, self.trouble]))


@dataclass
class Results:
    """All that was measured. What was not asked for, or failed, is empty."""

    head: dict[str, str]
    beats: list[Beat] = field(default_factory=list)
    replicas: dict[int, list[Shared]] = field(default_factory=dict)
    replicas_load: Load | None = None
    pairs: Pairs | None = None
    #: pool -> label -> the rounds, as tasks.py says them
    pools: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    #: stage of a run -> seconds
    stages: dict[str, float] = field(default_factory=dict)
    memory: list[Beat] = field(default_factory=list)
    remembered: Remembered | None = None
    gaps: dict[str, list[Silence]] = field(default_factory=dict)
    faults: list[faults.Row] = field(default_factory=list)
    control: list[Reading] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def beat(self, name: str, entries: int) -> Beat | None:
        return next((each for each in self.beats if (each.name, each.load.entries) == (name, entries)), None)


def markdown(results: Results, chart: str = "benchmarks.svg") -> str:
    parts = [
        "# Measured",
        INTRODUCTION,
        "\n".join(f"- {name}: {value}" for name, value in results.head.items()),
        f"![messages per second against the number of entries]({chart})",
    ]
    for title, told in sections(results):
        parts += [f"## {title}", told]
    for name, why in results.failed.items():
        parts.append(f"**The section `{name}` failed: {why}**")
    return "\n\n".join(parts) + "\n"


def sections(results: Results) -> Iterable[tuple[str, str]]:
    """What there is of them: title and text."""
    if results.control:
        yield "Noise", noise(results.control)
    if results.beats:
        yield "One beat, many entries", beats(results.beats)
    if results.replicas:
        yield "Replicas", replicas(results)
    if results.pairs:
        yield "A lock", locks(results.pairs)
    if results.pools:
        yield "A worker", pools(results.pools, results.stages)
    if results.memory:
        yield "Memory per 10,000 entries", memory(results.memory)
    if results.remembered:
        yield "Memory of finished runs", remembered(results.remembered)
    if results.gaps:
        yield "The longest silence of an entry after `kill -9`", gaps(results.gaps)
    if results.faults:
        yield "Through the same faults", faults.tables(results.faults)


def noise(control: Sequence[Reading]) -> str:
    loop, ping = Spread.of(each.loop for each in control), Spread.of(each.ping for each in control)
    rows = [
        ["a loop in Python, ms", f"{loop:.1f}", f"{loop.percent:.0f} %"],
        ["a PING, µs", f"{ping:.0f}", f"{ping.percent:.0f} %"],
    ]
    what = f"The same fixed work, {len(control)} times between the measurements: a difference below its spread says nothing."
    return f"{what}\n\n" + table(["control", "median (least to most)", "spread"], rows)


def beats(measured: Iterable[Beat]) -> str:
    rows = [
        [
            f"{beat.load.entries:,}" if beat.name != "bare" else "any",
            f"{beat.load.due:,.0f}" if beat.name != "bare" else "-",
            NAMES[beat.name],
            f"{beat.of('rate'):,.0f}",
            f"{beat.of('per_cpu'):,.0f}",
            f"{beat.micros:,.0f}",
            f"{beat.of('commands'):.2f}" if beat.name != "bare" else "-",
            beat.note,
        ]
        for beat in measured
    ]
    head = ["entries", "due/s", "", "messages/s", "per CPU second", "CPU µs each", "Redis commands each", ""]
    return table(head, rows)


def replicas(results: Results) -> str:
    load = results.replicas_load
    rows = []
    for number, runs in results.replicas.items():
        twice, messages = sum(run.twice for run in runs), sum(run.messages for run in runs)
        rate = Spread.of(run.rate for run in runs)
        micros = Spread.of(1e6 / run.per_cpu for run in runs if run.per_cpu)
        commands = Spread.of(run.commands for run in runs)
        rows.append([str(number), f"{rate:,.0f}", f"{micros:,.0f}", f"{commands:.2f}", f"{twice} of {messages:,}"])
    told = f"Processes of `celery beat`, {load.entries:,} entries, {load.due:,.0f} due per second.\n\n" if load else ""
    head = ["replicas", "messages/s in all", "CPU µs each", "Redis commands each", "published twice"]
    return told + table(head, rows)


PAIRS = {
    "lockbeat": "celery-lockbeat",
    "redis_py": "redis-py's `Lock`",
    "two_scripts": "two bare EVALSHA",
    "same_connection": "two bare EVALSHA on one connection",
}


def locks(pairs: Pairs) -> str:
    def row(name: str, label: str) -> list[str]:
        low, middle, high = statistics.quantiles(pairs.times[name], n=4)
        return [label, f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{pairs.ratio(name):.2f}"]

    head = ["", "µs per acquire + release (quartiles)", "ours / it"]
    return table(head, [row(name, label) for name, label in PAIRS.items()])


def per_plain(kinds: dict[str, list[dict[str, Any]]], label: str, what: str) -> Spread:
    """Of each round: this kind's number over the plain task's."""
    return Spread.of(its[what] / plain[what] for its, plain in zip(kinds[label], kinds["plain task"], strict=True))


def added(kinds: dict[str, list[dict[str, Any]]]) -> str:
    """What each kind costs more than a plain task, by who spends it."""

    def micros(label: str) -> dict[str, float]:
        rounds = kinds[label]
        return {who: 1e6 * Spread.of(each["parts"][who] for each in rounds).median for who in rounds[0]["parts"]}

    plain = micros("plain task")
    rows = []
    for label in kinds:
        if label != "plain task":
            more = {who: spent - plain[who] for who, spent in micros(label).items()}
            rows.append([label, *(f"{each:+,.0f}" for each in more.values()), f"{sum(more.values()):+,.0f}"])
    told = (
        "Where the CPU goes with one worker, in µs more than a plain task's. Two round trips of a socket are what it costs to wait\n"
        "for the server twice, with no client and no lock: ours adds its Python in the children, and two scripts that read, decide\n"
        "and write in the server. Who locks in the publisher spends it there, where one worker leaves time for it."
    )
    return f"{told}\n\n" + table(["task", *plain, "in all"], rows)


def timed(run: dict[str, float]) -> str:
    """Where a run's time goes in a child."""
    told = (
        "And where the time of a LockedTask's run goes in a child of that worker (`benchmarks/stages.py`). It waits: two round trips\n"
        "are what a lock that is taken and given back by whoever runs costs, and a server that is woken up for each of them, on cores\n"
        "that others use, answers later than one that is asked again and again (above: a lock)."
    )
    return f"{told}\n\n" + table(["stage", "µs"], stages.told(run))


def pools(measured: dict[str, dict[str, list[dict[str, Any]]]], run: dict[str, float]) -> str:
    rows = []
    for pool, kinds in measured.items():
        for label, rounds in kinds.items():
            rate, cpu = (Spread.of(each[what] for each in rounds) for what in ("throughput", "cpu"))
            micros = Spread.of(1e6 * each for each in cpu.values)
            ratio = per_plain(kinds, label, "throughput")
            rows.append([pool, label, f"{rate:,.0f}", f"{ratio:.2f}", f"{micros:,.0f}"])
    told = (
        "One worker, whose parent hands out the tasks, leaves a fifth of two cores idle; two workers of one queue leave nothing, so\n"
        "the rate is what all processes' CPU allows. celery-once and celery-singleton take their lock in whoever publishes, and ask\n"
        "the server once from the worker, where ours asks twice."
    )
    head = ["workers", "task", "tasks/s from call to end", "/ plain", "CPU µs each, all processes"]
    parts = [told, table(head, rows)]
    if "prefork" in measured:
        parts.append(added(measured["prefork"]))
    if run:
        parts.append(timed(run))
    return "\n\n".join(parts)


def memory(measured: Iterable[Beat]) -> str:
    rows = [
        [
            NAMES[beat.name],
            f"{beat.growth:.1f}",
            f"{beat.of('rss'):.0f}",
            f"{Spread.of(run.stored / 1024 * 10_000 / beat.load.entries for run in beat.runs):,.0f}",
            beat.note,
        ]
        for beat in measured
    ]
    return table(["", "MiB of the process", "MiB in all", "KiB in Redis", ""], rows)


def remembered(measured: Remembered) -> str:
    what = (
        f"What {measured.runs:,} finished runs take in Redis until they are forgotten (`lock_dedupe_ttl`), the server's tables "
        "included. Release 0.1.0 left some 400 bytes each, in two keys."
    )
    rows = [
        [label, f"{each:.0f}", f"{each * 1e6 / 2**20:,.0f}", f"{measured.keys_each[label]:.2f}"]
        for label, each in measured.bytes_each.items()
    ]
    return f"{what}\n\n" + table(["runs on", "bytes each", "MiB per million", "keys each"], rows)


def silent(runs: Sequence[Silence]) -> str:
    if not runs:
        return "-"
    after = Spread.of(run.after for run in runs)
    return f">{after.median:.0f} s" if any(run.open for run in runs) else f"{after:.1f} s"


def gaps(measured: dict[str, list[Silence]]) -> str:
    rows = [
        [NAMES.get(label, label), f"{Spread.of(run.before for run in runs):.1f} s", silent(runs)]
        for label, runs in measured.items()
    ]
    told = (
        "Three real beats, entries due every second; the one that sends is killed. `>`: the watcher gave up waiting.\n"
        "What the killed one had claimed and not sent, for which it must be hit within some milliseconds, is sent when\n"
        "`lockbeat_claim_ttl` (5 s) is over."
    )
    return f"{told}\n\n" + table(["", "before the kill", "after"], rows)


def compact(results: Results) -> str:
    """The few rows of docs/comparison.md."""
    names = ("lockbeat", "redbeat", "celery")
    rows: list[list[str]] = []
    for entries in sorted({beat.load.entries for beat in results.beats if beat.name != "bare"}):
        found = [results.beat(name, entries) for name in names]
        due = next(beat.load.due for beat in found if beat)
        cells = [(f"{beat.of('rate').median:,.0f}" if beat.runs else "not ready") if beat else "-" for beat in found]
        marks = [" *" if beat and beat.note else "" for beat in found]
        told = [cell + mark for cell, mark in zip(cells, marks, strict=True)]
        rows.append([f"messages/s, {entries:,} entries, {due:,.0f} due/s", *told])
    most = [results.beat(name, 10_000) for name in names]
    if any(most):
        rows.append(["CPU µs per message, 10,000 entries", *(cell(beat, "micros", ",.0f") for beat in most)])
        told = [f"{beat.of('commands').median:.2f}" if beat and beat.runs else "-" for beat in most]
        rows.append(["Redis commands per message", *told])
    if results.memory:
        found = [next((beat for beat in results.memory if beat.name == name), None) for name in names]
        rows.append(["MiB per 10,000 entries", *(cell(beat, "growth", ".0f") for beat in found)])
    if runs := results.replicas.get(3):
        rate, twice = Spread.of(run.rate for run in runs), sum(run.twice for run in runs)
        rows.append(
            [f"messages/s of 3 replicas (ticks published twice: {twice})", f"{rate.median:,.0f}", "one sends", "-"]
        )
    if results.gaps:
        ours, default, short = (
            silent(results.gaps.get(label, []))
            for label in ("lockbeat", "RedBeat, its defaults", "RedBeat, a lock of 25 s")
        )
        rows.append(["longest silence after a `kill -9`, entries every 1 s", ours, f"{default}; tuned {short}", "-"])
    said = [table(["", "celery-lockbeat", "RedBeat", "celery's beat"], rows)] if rows else []
    if any(beat.note for beat in results.beats):
        said.append("\\* still behind with the first wave when it was measured, or not ready in time.")
    more = []
    if results.pairs:
        ours, theirs = results.pairs.median("lockbeat"), results.pairs.median("redis_py")
        more.append(f"Acquire + release of a lock: {ours:.0f} µs, of redis-py's `Lock`: {theirs:.0f} µs.")
    ratios = [
        f"{pool} {per_plain(kinds, LOCKED, 'throughput').median:.2f}"
        for pool, kinds in results.pools.items()
        if LOCKED in kinds
    ]
    if ratios:
        more.append(f"Empty `LockedTask`s per second, of what plain tasks do: {', '.join(ratios)}.")
    if more:
        said.append(" ".join(more))
    said.append("; ".join(f"{name} {value}" for name, value in results.head.items() if name != "load average at start"))
    return "\n\n".join(said)


LOCKED = "LockedTask, a key per call"


def cell(beat: Beat | None, what: str, spec: str) -> str:
    spread = getattr(beat, what) if beat else Spread(())
    return format(spread.median, spec) if spread.values else "-"


def replace_block(text: str, block: str) -> str:
    """``text`` with ``block`` between the markers."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    replaced, count = pattern.subn(lambda _: f"{BEGIN}\n{block}\n{END}", text)
    if count != 1:
        raise ValueError(f"{count} blocks of {BEGIN}, not one")
    return replaced


# -- the chart ---------------------------------------------------------------------------------------------------------

LEFT, TOP, WIDTH, HEIGHT = 70, 70, 400, 280


def svg(results: Results) -> str:
    """Messages per second against entries, one line each; beside it, what a lock leaves of a worker's rate."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1040 410" font-family="sans-serif" font-size="12">',
        '<rect width="1040" height="410" rx="8" fill="#ffffff" stroke="#d0d7de"/>',
        *lines(results),
        *bars(results.pools.get("prefork", {})),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def text(x: float, y: float, what: str, anchor: str = "start", colour: str = "#1f2933", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>{escape(what)}</text>'


def lines(results: Results) -> Iterable[str]:
    measured = [beat for beat in results.beats if beat.runs]
    if not measured:
        return
    sizes = sorted({beat.load.entries for beat in results.beats})
    series = {
        name: [(beat.load.entries, beat.of("rate").median, beat.behind) for beat in measured if beat.name == name]
        for name in ("lockbeat", "redbeat", "celery")
    }
    series["due"] = sorted({(beat.load.entries, beat.load.due, False) for beat in measured if beat.name != "bare"})
    series["bare"] = [
        (size, beat.of("rate").median, False) for beat in measured if beat.name == "bare" for size in sizes
    ]
    rates = [max(1.0, rate) for points in series.values() for _, rate, _ in points]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)) + 1e-9)
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def x(entries: float) -> float:
        return LEFT + WIDTH * ((math.log10(entries) - first) / (last - first) if last > first else 0.5)

    def y(rate: float) -> float:
        return TOP + HEIGHT * (1 - (math.log10(max(1.0, rate)) - low) / max(1, high - low))

    yield text(LEFT, 32, "Messages per second, by number of entries", more=' font-size="15" font-weight="bold"')
    yield text(LEFT, 50, "both axes logarithmic; hollow: first wave unfinished", colour="#52606d")
    for power in range(low, high + 1):
        at = y(10**power)
        yield f'<line x1="{LEFT}" y1="{at:.1f}" x2="{LEFT + WIDTH}" y2="{at:.1f}" stroke="#e4e7eb"/>'
        yield text(LEFT - 8, at + 4, f"{10**power:,}", "end")
    for size in sizes:
        yield text(x(size), TOP + HEIGHT + 20, f"{size:,}", "middle")
    yield text(LEFT + WIDTH / 2, TOP + HEIGHT + 42, "entries", "middle")
    ends = []
    for name, points in series.items():
        if not points:
            continue
        dashes = ' stroke-dasharray="5 4"' if name in ("due", "bare") else ""
        path = " ".join(f"{x(entries):.1f},{y(rate):.1f}" for entries, rate, _ in points)
        yield (
            f'<polyline id="{name}" points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2.5"{dashes}/>'
        )
        if not dashes:
            for entries, rate, behind in points:
                fill = "#ffffff" if behind else COLOURS[name]
                place = f'cx="{x(entries):.1f}" cy="{y(rate):.1f}"'
                yield f'<circle {place} r="4" fill="{fill}" stroke="{COLOURS[name]}" stroke-width="2"/>'
        ends.append((y(points[-1][1]), f"{NAMES.get(name, 'due')} {points[-1][1]:,.0f}/s", COLOURS[name]))
    for at, (_, label, colour) in zip(apart([end[0] for end in sorted(ends)]), sorted(ends), strict=True):
        yield text(LEFT + WIDTH + 12, at + 4, label, colour=colour)


def apart(places: Sequence[float], gap: float = 16.0) -> list[float]:
    """Sorted places moved down until none is nearer to the one before than ``gap``."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    return moved


def bars(kinds: dict[str, list[dict[str, Any]]]) -> Iterable[str]:
    if "plain task" not in kinds:
        return
    left, width = 680, 300
    yield text(left, 32, "Tasks per second, of a plain task's", more=' font-size="15" font-weight="bold"')
    yield text(left, 50, "empty tasks, prefork, from call to end", colour="#52606d")
    ratios = {label: per_plain(kinds, label, "throughput").median for label in kinds}
    step = min(42.0, 300 / len(ratios))
    for number, (label, ratio) in enumerate(ratios.items()):
        top = TOP + number * step
        colour = COLOURS["lockbeat" if label.startswith("LockedTask") else "bare"]
        yield text(left, top + 10, label)
        long = width * ratio / max(1.0, *ratios.values())
        yield f'<rect x="{left}" y="{top + 14:.1f}" width="{long:.1f}" height="{step - 22:.1f}" fill="{colour}"/>'
        yield text(left + long + 6, top + step / 2 + 8, f"{ratio:.2f}")
