"""``python -m benchmarks``: all of it, one report.

    python -m benchmarks [--quick] [--only beat,replicas,lock,pools,memory,remembered,gap,faults] [--rounds 3] [--output DIR] [--readme]

Writes ``benchmarks.md`` and ``benchmarks.svg`` into DIR, and prints the former; ``--page`` fills the block of docs/comparison.md, too.
``python -m benchmarks --output docs --readme`` is what the committed numbers come from: let it alone on a quiet machine.
A section that fails is reported as failed, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import beat, control, faults, remembered, replicas, report, store
from benchmarks.beat import DidNotFinishError, Load, Server
from benchmarks.report import Beat, Results
from benchmarks.telling import say, versions

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "comparison.md"


class Run:
    """One run of the sections; between all measurements the control is read."""

    def __init__(self, client, *, quick: bool, rounds: int, results: Results) -> None:
        self._client, self._quick, self._rounds, self._results = client, quick, rounds, results
        seconds = 3.0 if quick else 8.0
        patience = 20.0 if quick else 120.0
        self._loads = [
            Load(100, 1.0, seconds, 8.0, patience),
            Load(1000, 1.0, seconds, 8.0, patience),
            Load(10_000, 5.0, seconds if quick else 10.0, 8.0 if quick else 20.0, patience),
        ]
        # once: what does not keep up takes minutes
        self._largest = [] if quick else [Load(100_000, 20.0, 10.0, 90.0, patience)]

    def control(self) -> None:
        self._results.control.append(control.read(self._client))

    def beat(self) -> None:
        def of(load: Load, *names: str) -> list[Beat]:
            return [Beat(name, load) for name in names]

        schedulers = ("lockbeat", "redbeat", "celery")
        turns = [each for load in self._loads for each in of(load, *schedulers)]
        turns += of(self._loads[0], "bare")
        last = [each for load in self._largest for each in of(load, *schedulers)]
        self._results.beats += [*turns[:-1], *last, turns[-1]]
        for number in range(self._rounds):
            for each in [*turns, *(last if not number else [])]:
                self._measure(each)

    def _measure(self, each: Beat) -> None:
        self.control()
        say(f"  {each.name}, {each.load.entries} entries")
        try:
            each.runs.append(beat.measure(each.name, each.load))
        except DidNotFinishError as late:
            each.trouble = f"a round was {late}"
        except Exception as failure:  # the others go on, and it is told
            each.trouble = f"a round failed: {failure}"

    def replicas(self) -> None:
        load = Load(10_000, 2.5, 4.0 if self._quick else 8.0, 15.0)
        self._results.replicas_load = load
        for _ in range(self._rounds):
            for number in (1, 2, 3):
                self.control()
                self._results.replicas.setdefault(number, []).append(replicas.measure(number, load))

    def lock(self) -> None:
        self.control()
        self._results.pairs = store.measure(50 if self._quick else store.ROUNDS)
        self.control()

    def pools(self) -> None:
        rounds, messages = (1, 300) if self._quick else (2 * self._rounds, 1000)
        for pool, arguments in POOLS.items():
            self.control()
            # those that are compared with others get as many rounds as a small difference needs
            times = 1 if self._quick else max(20, rounds) if "prefork" in arguments else rounds
            told = ["--json", *arguments, "--rounds", str(times), "--messages", str(messages)]
            try:
                if pool == "gevent":
                    version("gevent")
                self._results.pools[pool] = beat.ask_child(str(HERE / "tasks.py"), *told, timeout=1200)
            except PackageNotFoundError:
                say("  gevent is not installed")
            except Exception as failure:
                self._results.failed[f"pools: {pool}"] = str(failure)
        told = ["--json", "--stages", "--rounds", "3" if self._quick else "10"]
        self._results.stages = beat.ask_child(str(HERE / "tasks.py"), *told, timeout=600)

    def memory(self) -> None:
        known = [each for each in self._results.beats if each.load.entries == 10_000 and each.name != "bare"]
        if not known:
            load = Load(10_000, 5.0, 1.0, 8.0 if self._quick else 20.0, self._loads[0].patience)
            known = [Beat(name, load) for name in ("lockbeat", "redbeat", "celery")]
            for each in known:
                self._measure(each)
        self._results.memory = known

    def remembered(self) -> None:
        self._results.remembered = remembered.measure(20_000 if self._quick else remembered.RUNS)

    def faults(self) -> None:
        for row in faults.measure(max(1, self._rounds // 2), seed=7):
            self._results.faults.append(row)

    def gap(self) -> None:
        for _ in range(1 if self._quick else self._rounds):
            for label in replicas.FAILOVERS:
                if self._quick and label == "RedBeat, a lock of 25 s":
                    continue
                self.control()
                say(f"  kill: {label}")
                self._results.gaps.setdefault(label, []).append(replicas.kill_one(label))


SECTIONS: dict[str, Callable[[Run], None]] = {
    "beat": Run.beat,
    "replicas": Run.replicas,
    "lock": Run.lock,
    "pools": Run.pools,
    "memory": Run.memory,
    "remembered": Run.remembered,
    "gap": Run.gap,
    "faults": Run.faults,
}
#: label -> what tasks.py is asked for
POOLS = {
    "prefork": ["--pool", "prefork"],
    "two prefork": ["--pool", "prefork", "--workers", "2"],
    "threads": ["--pool", "threads", "--only", "locked"],
    "solo": ["--pool", "solo", "--only", "locked"],
    "gevent": ["--pool", "gevent", "--only", "locked"],
}
#: what takes as long as all others is there for who asks for it
ASKED_FOR = ("faults",)


def head(client, *, quick: bool) -> dict[str, str]:
    return {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}" + (" (--quick: few and short rounds)" if quick else ""),
        "versions": f"Python {platform.python_version()}, {versions(client)}",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "load average at start": f"{os.getloadavg()[0]:.1f}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks, one report.")
    parser.add_argument("--quick", action="store_true", help="few and short rounds, and no 100,000 entries")
    parser.add_argument(
        "--only", default=",".join(name for name in SECTIONS if name not in ASKED_FOR), help=",".join(SECTIONS)
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--page", action="store_true", help="fill the block of docs/comparison.md")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    with Server() as server, server.client() as client:
        results = Results(head(client, quick=options.quick))
        rounds = options.rounds or (1 if options.quick else 3)
        run = Run(client, quick=options.quick, rounds=rounds, results=results)
        for name in (name for name in SECTIONS if name in chosen):
            started = time.monotonic()
            say(f"{name} ...")
            try:
                SECTIONS[name](run)
            except KeyboardInterrupt:
                raise
            except BaseException as failure:  # those of pytest, which the tests' servers raise, are no Exceptions
                results.failed[name] = f"{type(failure).__name__}: {failure}"
            say(f"{name}: {time.monotonic() - started:.0f} s")
            write(results, options.output, page=options.page)  # what there is, whatever comes
        run.control()
    print(write(results, options.output, page=options.page))
    return 1 if results.failed else 0


def write(results: Results, directory: Path, *, page: bool) -> str:
    told = report.markdown(results)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "benchmarks.md").write_text(told)
    (directory / "benchmarks.svg").write_text(report.svg(results))
    if page:
        PAGE.write_text(report.replace_block(PAGE.read_text(), report.compact(results)))
    return told


if __name__ == "__main__":
    sys.exit(main())
