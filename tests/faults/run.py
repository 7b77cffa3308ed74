"""One run: bursts of faults, and after each all must be well again; then the end, and the verdict."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from faults.checker import Violation, check
from faults.harm import Harm
from faults.history import History
from faults.moments import STEPS, Cell, Sign
from faults.plan import THEMES, WITH_ELECTIONS, Plan, Planned
from faults.report import verdict
from faults.system import CLAIM_TTL, ENTRIES, GRACE, PAUSED, SLACK, Elected, System, wait

#: So long a burst of faults lasts, and so long is the peace between two of them, seconds.
BURST, PEACE = 20.0, 3.0

#: So long all may take to be at work again, and what is published to come to its end, seconds.
RECOVERY, DRAIN = 60.0, 90.0


class Run:
    """One run of so many seconds, or so many faults, whichever comes later."""

    def __init__(
        self,
        directory: Path,
        *,
        seed: int,
        seconds: float,
        faults: int = 0,
        burst: float = BURST,
        replica: bool = False,
        sentinels: bool = False,
    ) -> None:
        self.seed, self.seconds, self.faults, self.burst = seed, seconds, faults, burst
        self.replica, self.sentinels = replica, sentinels
        self.plan = Plan(seed, WITH_ELECTIONS if sentinels else THEMES)
        self.directory = directory
        self.moments: Counter[Cell] = Counter()

    def carry_out(self) -> History:
        """Return the history of it."""
        system = System(self.directory, random.Random(self.seed), replica=self.replica, sentinels=self.sentinels)
        harm = Harm(system)
        self.moments = harm.moments
        try:
            return History(self._carry_out(system, harm).lines)
        finally:
            harm.heal()
            system.close()

    def _carry_out(self, system: System, harm: Harm) -> History:
        history = system.history
        began = time.monotonic()
        wall = time.time() - began
        history.add(
            "setting",
            began,
            seed=self.seed,
            started=began,
            wall=wall,
            claim_ttl=CLAIM_TTL,
            slack=SLACK,
            grace=GRACE,
            entries={
                name: {
                    **{each: told[each] for each in ("every", "marks", "kind", "key", "ttl", "limit")},
                    "in_memory": told["task"] == "once_in_memory",
                    "pauses": name == PAUSED,
                }
                for name, told in ENTRIES.items()
            },
        )
        system.start()
        self._recover(system)
        began = history.setting["started"] = time.monotonic()
        for number, (theme, faults) in enumerate(self.plan.bursts()):
            told = len(history.of_now("fault"))
            if time.monotonic() > began + self.seconds and told >= self.faults:
                break
            if number:
                print(
                    f"{time.monotonic() - began:6.0f} s  {told:5} faults  {len(history.of_now('hang'))} hangs; next: {theme}",
                    flush=True,
                )
            self._burst(system, harm, theme, faults, until=time.monotonic() + self.burst)
            harm.heal()
            self._recover(system)
            self._let_pass(system, PEACE)
        self._end(system)
        return history

    def _burst(self, system: System, harm: Harm, theme: str, faults: Iterator[Planned], until: float) -> None:
        for planned in faults:
            if time.monotonic() > until:
                return
            harm.do(planned, theme)
            self._let_pass(system, planned.pause)

    def _let_pass(self, system: System, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            system.look()
            time.sleep(0.01)

    def _recover(self, system: System) -> None:
        """Wait until every process is at work, asks the store and is answered, and each entry ticks."""
        since = time.monotonic()
        wait(
            system,
            lambda: all(each.up for each in system.members),
            RECOVERY,
            lambda: f"up: {[each.name for each in system.members if not each.up]} are not",
        )
        if isinstance(system.store, Elected):
            store = system.store
            wait(
                system,
                lambda: store.replicas() == 2 and not store.is_doubted(),
                RECOVERY,
                lambda: f"replicas of {store.port}: there are {store.replicas()}",
            )
        healed = time.monotonic()
        asking = {
            member.name: Sign((lambda chunk: b"EVAL" in chunk) if member.beat else STEPS["acquire"][2])
            for member in system.members
        }
        for member in system.members:
            member.ways["store"].arm(asking[member.name])
        wait(
            system,
            lambda: all(sign.caught for sign in asking.values()),
            RECOVERY,
            lambda: f"asking the store: {[name for name, sign in asking.items() if not sign.caught]} do not",
        )
        known = {entry for beat in system.beats for entry in beat.entries}

        def silent() -> set[str]:
            return known - {line["entry"] for line in system.history.of_now("message") if line["at"] > healed}

        wait(system, lambda: not silent(), RECOVERY, lambda: f"ticking: {silent()} do not")
        for member in system.members:
            member.ways["store"].disarm(asking[member.name])
        system.history.add("quiet", time.monotonic(), since=since)

    def _end(self, system: System) -> None:
        history = system.history
        system.operator.end()
        if len({beat.release for beat in system.beats}) == 1:
            # somebody must know each entry, to take over what is left of it
            other = system.beats[0]
            other.release = "b" if other.release == "a" else "a"
            other.end()
            wait(system, lambda: other.up and other.ending_since is None, RECOVERY, "the other release")
        claimed = {each.task_id for each in system.pending()}
        wait(
            system,
            lambda: not claimed & {each.task_id for each in system.pending()},
            RECOVERY,
            "settling what is claimed",
        )
        history.setting["ended"] = time.monotonic()
        system.closing = True
        for beat in system.beats:
            beat.end()
        wait(system, lambda: all(beat.process is None for beat in system.beats), 40, "the end of the beats")
        keeper = system.keeper
        wait(system, lambda: keeper.unread() == 0, 10, "reading what is published")
        keeper.again_after, keeper.copies = 3.0, 0.0
        wait(system, lambda: not keeper.waiting(), DRAIN, lambda: f"coming to an end: {keeper.waiting()} do not")
        wait(system, lambda: not system.bodies.running(), 20, lambda: f"ending: {system.bodies.running()} do not")
        for worker in system.workers:
            worker.end()
        wait(system, lambda: all(worker.process is None for worker in system.workers), 40, "the end of the workers")
        system.bodies.look()
        system.bodies.beliefs()
        system.stories()
        system.journal()
        history.add("end", time.monotonic(), **system.left())


def main() -> int:
    """Run as the command line says; 0 if nothing that was promised was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--faults", type=int, default=0, help="go on until there were so many")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--replica", action="store_true", help="the store has a replica, which takes its place at times"
    )
    parser.add_argument(
        "--sentinels",
        action="store_true",
        help="the store has two replicas and three Sentinels, which choose the primary",
    )
    parser.add_argument("--keep", type=Path, help="a directory for the history and the logs")
    parser.add_argument("--check", type=Path, help="only check the history in this file again")
    asked = parser.parse_args()
    if asked.check:
        history = History.load(asked.check)
        return _tell(history, _moments_of(history))
    seed = random.randrange(10**6) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # with all that it has started
    with tempfile.TemporaryDirectory(prefix="lockbeat-faults-", ignore_cleanup_errors=True) as directory:
        where = asked.keep or Path(directory)
        where.mkdir(parents=True, exist_ok=True)
        run = Run(
            where,
            seed=seed,
            seconds=asked.minutes * 60,
            faults=asked.faults,
            replica=asked.replica,
            sentinels=asked.sentinels,
        )
        history = run.carry_out()
        history.save(where / "history.jsonl")
        return _tell(history, run.moments)


def _tell(history: History, moments: Counter[Cell]) -> int:
    violations: list[Violation] = check(history)
    print(verdict(history, moments, violations), flush=True)
    return 1 if violations else 0


def _moments_of(history: History) -> Counter[Cell]:
    moments: Counter[Cell] = Counter()
    for fault in history.faults:
        if fault.moment:
            told = fault.moment.split(", ")
            moments[(told[0], told[1], told[2]) if len(told) == 3 else (told[0], "during", told[1])] += 1
    return moments


if __name__ == "__main__":
    sys.exit(main())
