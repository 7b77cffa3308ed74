"""Real beats and workers, each a session of its own that is ended by its id, and the witness of what their tasks do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from celery.result import AsyncResult
from celery.utils import uuid
from programs import Program
from servers import Server, wait_until

from celery_lockbeat.tasks.copies import NONCE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

_numbers = itertools.count()


class Process(Program):
    """One ``celery worker`` or ``celery beat``, with the children of its pool."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], directory: Path) -> None:
        self.name = name
        self.started_at = time.monotonic()
        self.events_path = directory / f"{name}.stderr"
        self.levels_path = directory / f"{name}.stdout"
        self.log_path = directory / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", "apps", *arguments, "--logfile", str(self.log_path)]
        super().__init__(command, self.levels_path, directory, environment, errors=self.events_path)
        self._killed = False
        self.log_before = len(self.log())  # of an earlier process of this name

    def wait_for_log(self, text: str, timeout: float = 60) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, f"{self.name} ended: {self.events_path.read_text()[-2000:]}"
            return text in self.log()

        wait_until(is_there, timeout, f"{self.name} says {text!r}")

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def events(self, **fields: object) -> list[dict[str, Any]]:
        """What it has told so far, in order: the JSON lines whose fields have these values."""
        # the last line may be half written
        lines = self.events_path.read_text().split("\n")[:-1]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in events if all(event.get(name) == value for name, value in fields.items())]

    def levels(self) -> list[str]:
        """The events as ``LEVEL {...}`` lines."""
        return self.levels_path.read_text().split("\n")[:-1]

    def family(self) -> list[psutil.Process]:
        """Itself and the children of its pool, dead or alive."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def freeze(self) -> None:
        self.signal_all(signal.SIGSTOP)
        wait_until(lambda: all(p.status() == psutil.STATUS_STOPPED for p in self.family()), message="it is frozen")

    def thaw(self) -> None:
        self.signal_all(signal.SIGCONT)

    def terminate(self, timeout: float = 20) -> int:
        """SIGTERM it, wait for its end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self._killed = True
        return status

    def cpu_seconds(self) -> float:
        """What it has used up so far, without its children."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def kill(self) -> None:
        """SIGKILL the worker and all its children; idempotent."""
        if self._killed:
            return  # the id may be another's by now
        family = self.family()
        self.signal_all(signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(_alive(each) for each in family), message=f"{self.name} is dead")
        self._killed = True


def _alive(process: psutil.Process) -> bool:
    try:
        # orphans stay zombies where nobody reaps them
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Fleet:
    """Workers and beats of one app, with a queue for all of them and one for each, and a client that sends to them."""

    def __init__(self, broker: Server, witness: Server, directory: Path, **settings: object) -> None:
        self.queue = f"q{next(_numbers)}"
        self.directory = directory
        self.settings = {
            "broker_url": broker.url,
            "result_backend": broker.url,
            "task_default_queue": self.queue,
            "worker_prefetch_multiplier": 1,
            "broker_connection_retry_on_startup": True,
            "lockbeat_ttl": 2,
            "lockbeat_memory_path": str(directory / "memory"),
            **settings,
        }
        self.witness_url = witness.url
        self.processes: list[Process] = []
        backend = self.settings["result_backend"]
        self.client = Celery("client", broker=broker.url, backend=backend, set_as_current=False)
        self.client.conf.task_default_queue = self.queue

    def workers(
        self,
        *names: str,
        pool: str = "prefork",
        concurrency: int = 4,
        heartbeat: bool = False,
        shared: bool = True,
        more: Sequence[str] = (),
        **settings: object,
    ) -> list[Process]:
        """Start workers, and wait until they are ready. Each has a queue of its name, and if it is ``shared`` that of all."""
        arguments = ["--without-gossip", "--without-mingle", "-l", "INFO"]
        arguments += [] if heartbeat else ["--without-heartbeat"]
        arguments += ["-P", pool, "-c", str(concurrency), *more]
        started = [
            self._start(
                name,
                ["worker", "-n", f"{name}@tests", "-Q", ",".join(queues[not shared :]), *arguments],
                settings,
            )
            for name in names
            for queues in [[self.queue, self.queue_of(name)]]
        ]
        for worker in started:
            worker.wait_for_log(f"{worker.name}@tests ready.")
        return started

    def beat(
        self,
        name: str,
        schedule: dict[str, dict[str, object]],
        *,
        level: str = "INFO",
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> Process:
        """Start a beat with our scheduler, by its short name where the package is installed."""
        installed = "lockbeat" in entry_points(group="celery.beat_schedulers").names
        scheduler = "lockbeat" if installed else "celery_lockbeat:LockedScheduler"
        arguments = ["beat", "-S", scheduler, "-l", level, "--pidfile="]
        return self._start(name, arguments, {"beat_schedule": schedule, **settings}, environment)

    def queue_of(self, name: str) -> str:
        return f"{self.queue}-{name}"

    def _start(
        self, name: str, arguments: list[str], settings: dict[str, object], more: Mapping[str, str] | None = None
    ) -> Process:
        more = more or {}
        path = [more.get("PYTHONPATH", ""), str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **more,
            "PYTHONPATH": os.pathsep.join(each for each in path if each),
            "LOCKBEAT_TEST_WITNESS": self.witness_url,
            "LOCKBEAT_TEST_SETTINGS": json.dumps({**self.settings, **settings}),
        }
        process = Process(name, arguments, environment, self.directory)
        self.processes.append(process)
        return process

    def send(
        self, task: str, *args: object, to: str | None = None, anew: bool = False, **options: object
    ) -> AsyncResult:
        """Send a task to the worker of that name, or to whoever takes it.

        What is sent under the ``task_id`` of an earlier message is a copy of it, as a broker makes them, unless it is sent
        ``anew``, as somebody would who sends it once more.
        """
        if not anew:
            task_id = options.setdefault("task_id", uuid())
            options["headers"] = {**options.get("headers", {}), NONCE: f"of-{task_id}"}
        return self.s(task, *args, to=to, **options).apply_async()

    def s(self, task: str, *args: object, to: str | None = None, **options: object) -> Any:
        """A signature; the client knows the task by its name only."""
        return self.client.signature(task, args=args, queue=self.queue if to is None else self.queue_of(to), **options)

    def events(self, **fields: object) -> list[dict[str, Any]]:
        """What all processes have told, those of one in order."""
        return [event for process in self.processes for event in process.events(**fields)]

    def told(self, result: AsyncResult, *, runs: int = 1) -> list[dict[str, Any]]:
        """Wait until this task has told of so many runs to their end; return all events of it, in order of time."""
        wait_until(
            lambda: len(self.events(task_id=result.id, event="task_finished")) >= runs,
            message=f"{runs} runs of {result.id} have told their end",
        )
        return sorted(self.events(task_id=result.id), key=lambda event: event["timestamp"])

    def close(self) -> None:
        with contextlib.ExitStack() as endings:  # one that fails keeps none of the others from its turn
            endings.callback(self.client.close)
            for process in self.processes:
                endings.callback(process.kill)
        for process in self.processes:
            # shown where a test has failed
            print(f"---- {process.name}\n{process.log()[-6000:]}{process.events_path.read_text()[-3000:]}")


def names(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def stories(events: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The events of each run, by its execution_id."""
    runs = defaultdict(list)
    for event in events:
        runs[event["execution_id"]].append(event)
    return dict(runs)


def assert_whole_story(run: list[dict[str, Any]]) -> None:
    """P7, of one run that is over."""
    told = [name for name in names(run) if name.startswith("task_")]
    assert told[0] == "task_started", run
    statuses = {
        "task_succeeded": "success",
        "task_failed": "failed",
        "task_retried": "retry",
        "task_skipped": "skipped",
    }
    assert told[1] in statuses, run
    assert told[2:] == ["task_finished"], run
    assert len({(event["task_id"], event["task_name"], event["lock_key"], event["pid"]) for event in run}) == 1, run
    assert run[-1]["event"] == "task_finished", run
    assert run[-1]["status"] == statuses[told[1]], run


class Witness:
    """What the bodies say, on a server that neither Celery nor the locks know of."""

    def __init__(self, server: Server) -> None:
        self._client = server.client()

    def lines(self, key: str, what: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._client.lrange(f"seen:{key}", 0, -1)]
        return [line for line in lines if what in (None, line["what"])]

    def entered(self, key: str, result: AsyncResult | None = None) -> list[dict[str, Any]]:
        """Every time a body, or that of one task, was entered."""
        return [line for line in self.lines(key, "enter") if result is None or line["id"] == result.id]

    def wait_for(self, key: str, what: str, result: AsyncResult, timeout: float = 20) -> dict[str, Any]:
        """Wait until the body of this task says so."""
        wait_until(
            lambda: any(line["id"] == result.id for line in self.lines(key, what)),
            timeout,
            f"{key}: {what} of {result.id}",
        )
        return next(line for line in self.lines(key, what) if line["id"] == result.id)

    def let_go(self, *results: AsyncResult) -> None:
        """End the body of a ``hold`` without a time."""
        for result in results:
            self._client.set(f"go:{result.id}", 1)

    def never_overlapped(self, key: str) -> bool:
        return all(line["inside"] == 1 for line in self.entered(key))

    def last_beat(self, key: str) -> float:
        """When a body that tells it all the time was last there."""
        return float(self._client.get(f"beat:{key}") or 0)

    def close(self) -> None:
        self._client.close()
