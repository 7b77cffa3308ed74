"""What a run says in the end: the verdict, the moments, and each violation with its window of the history and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from faults.checker import Violation, counts
from faults.history import History
from faults.moments import BETWEEN, BLOWS, CELLS, SIDES, STEPS, Cell

WIDTH = 100


def table_of_moments(moments: Counter[Cell]) -> str:
    """Each step of the life of one tick, on each side of each call: how often somebody was killed there, and frozen."""
    columns = [(side, blow) for side in SIDES for blow in BLOWS]
    heads = [side.removeprefix("before the ").removeprefix("after the ") for side in SIDES]
    lines = [
        " " * 12 + "".join(f"{side.split()[0] + ' ' + head:>18}" for side, head in zip(SIDES, heads, strict=True)),
        f"{'step':<12}" + "".join(f"{blow:>9}" for _, blow in columns),
    ]
    for step in STEPS:
        told = [str(moments[step, side, blow]) if (step, side, blow) in CELLS else "-" for side, blow in columns]
        lines.append(f"{step:<12}" + "".join(f"{each:>9}" for each in told))
    lines += [
        f"{step:<12}" + "".join(f"{moments[step, 'during', blow]:>9}" for blow in BLOWS) + "   between the calls"
        for step in BETWEEN
    ]
    return "\n".join(lines)


def table_of_faults(history: History) -> str:
    kinds = Counter(fault.kind for fault in history.faults)
    return "\n".join(f"{count:>6}  {kind}" for kind, count in sorted(kinds.items(), key=lambda each: -each[1]))


def table_of_counts(history: History) -> str:
    return "\n".join(f"{count:>6}  {what}" for what, count in counts(history).items())


def window(history: History, found: Violation, around: float = 1.0) -> list[dict[str, Any]]:
    """The lines that the violation is about, and the faults of its time, in order of time."""
    since, until = found.since - around, found.until + around

    def concerns(line: dict[str, Any]) -> bool:
        if line["what"] == "fault":
            return line["at"] <= until and line["until"] >= since
        if line["what"] in ("setting", "end", "belief") or not since <= line["at"] <= until:
            return False
        named = {line.get(name) for name in ("id", "key", "entry", "pid", "name", "who")}
        named |= set(line.get("tokens", ()))
        return bool(named & found.about)

    return sorted((line for line in history.lines if concerns(line)), key=lambda line: line["at"])


def picture(history: History, found: Violation, around: float = 1.0) -> str:
    """A lane for each body, message and fault of the window, over time."""
    since, until = found.since - around, found.until + around
    scale = (WIDTH - 1) / (until - since)

    def column(at: float) -> int:
        return max(0, min(WIDTH - 1, round((at - since) * scale)))

    def lane(name: str, start: float, stop: float, fill: str, more: str = "") -> str:
        a, b = column(start), column(stop)
        return f"{name[:38]:<38} |{' ' * a}{fill * (b - a + 1)}{' ' * (WIDTH - 1 - b)}| {more}"

    def lanes() -> Iterator[str]:
        started = history.setting["started"]
        yield f"{'seconds since the start':<38} |{since - started:<{WIDTH - 10}.2f}{until - started:>10.2f}|"
        yield lane(f"!! {found.rule}", found.since, found.until, "!")
        for line in window(history, found, around):
            if line["what"] == "fault":
                yield lane(f"{line['kind']} {line['target']}", line["at"], line["until"], "#", line.get("moment") or "")
            elif line["what"] == "message":
                yield lane(f"message {line['entry']} run {line['run']}", line["at"], line["at"], "m", line["id"][:8])
            elif line["what"] == "lease":
                yield lane(
                    f"lease {line['key']} pid {line['pid']}", line["since"], line["until"], "-", str(line["token"])
                )
            elif line["what"] in ("copy", "over", "write", "up", "down", "hang"):
                told = {name: line[name] for name in ("state", "accepted", "pid", "number", "name") if name in line}
                yield lane(
                    line["what"], line["at"], line["at"], line["what"][0], f"{str(line.get('id', ''))[:8]} {told}"
                )
        for body in history.bodies:
            if (
                body.begun <= until
                and max(body.held_until, body.over or 0) >= since
                and {body.id, body.key, body.pid, *body.tokens} & found.about
            ):
                yield lane(
                    f"body {body.key} pid {body.pid}",
                    body.begun,
                    body.held_until,
                    "=",
                    f"{body.id[:8]}#{body.retries} {body.state}",
                )

    return "\n".join(lanes())


def verdict(history: History, moments: Counter[Cell], violations: list[Violation]) -> str:
    """The whole report."""
    setting = history.setting
    parts = [
        f"seed {setting['seed']}: {len(history.faults)} faults in {setting['ended'] - setting['started']:.0f} s",
        table_of_faults(history),
        "Blows at each moment:\n" + table_of_moments(moments),
        "What was checked:\n" + table_of_counts(history),
    ]
    for number, found in enumerate(violations[:5], 1):
        lines = "\n".join(
            f"  {line['at'] - setting['started']:9.3f} {_short(line)}" for line in window(history, found)[:60]
        )
        parts.append(
            f"VIOLATION {number} of {len(violations)}: {found.rule}: {found.text}\n{picture(history, found)}\n{lines}"
        )
    rules = (
        "overlap",
        "part of its keys",
        "order",
        "lost tick",
        "doubled tick",
        "late tick",
        "lost run",
        "doubled run",
        "token",
        "orphan lock",
        "hang",
    )
    told = Counter(dict.fromkeys(rules, 0))
    told.update(found.rule for found in violations)
    parts.append("verdict: " + ", ".join(f"{rule} {count}" for rule, count in told.items()))
    return "\n\n".join(parts)


def _short(line: dict[str, Any]) -> str:
    return f"{line['what']:<8} " + " ".join(
        f"{name}={value}" for name, value in line.items() if name not in ("what", "at")
    )
