"""Beats in simulated time: a world with a clock, a broker that keeps what it gets, and stores that read that clock.

A day takes some milliseconds. Nothing of the beats is replaced but what tells them the time: Celery's own schedulers and
ours run here side by side, each sleeping as long as its ``tick`` asks for.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import redis
from celery import Celery, _state
from celery.beat import Scheduler
from kombu.transport import TRANSPORT_ALIASES, memory

from celery_lockbeat import LockedScheduler, StoreUnavailable
from celery_lockbeat.beat.scheduler import LockedSchedulerMixin
from celery_lockbeat.stores import stores_of
from celery_lockbeat.stores.redis.scripts import Script
from celery_lockbeat.stores.redis.store import RedisStore
from celery_lockbeat.stores.sqlite.store import MemoryStore

#: Seconds until the next call of a ``tick`` that wants no sleep. Celery's beat wakes 10 ms early and then spins: 5 calls.
COST = 0.002

#: As many calls of ``tick`` in a row, without any time between them, are a beat that spins.
SPINNING = 3000

_names = itertools.count()
_brokers: dict[str, Broker] = {}


class World:
    """What time it is, and what has been sent."""

    def __init__(self, start: str = "2026-06-01T00:00:00+00:00") -> None:
        self.start = datetime.fromisoformat(start)
        self.elapsed = 0.0
        self.skew = 0.0  # of the host whose beat runs just now
        self.broker = Broker(self)

    def clock(self) -> float:
        """A monotonic clock."""
        return 1000.0 + self.elapsed

    def true_time(self) -> float:
        """The wall clock of the store's server."""
        return self.start.timestamp() + self.elapsed

    def time(self) -> float:
        """The wall clock of the host whose beat runs just now."""
        return self.true_time() + self.skew

    def now(self, zone: Any = timezone.utc) -> datetime:
        return (self.start + timedelta(seconds=self.elapsed + self.skew)).astimezone(zone)

    def app(self, *, broker: Broker | None = None, name: str = "simulated", **settings: Any) -> Celery:
        app = Celery(name, broker=f"simulated://{(broker or self.broker).name}", set_as_current=False)
        settings.setdefault("result_expires", None)
        settings.setdefault("timezone", "UTC")
        app.conf.update(settings)
        app.now = lambda: self.now(app.timezone)
        return app

    def run(self, *beats: Beat, seconds: float) -> None:
        """Let so much time pass; each beat sleeps as long as it wants to between its ticks."""
        end = self.elapsed + seconds
        for beat in beats:
            beat.wakes = max(beat.wakes, self.elapsed)
        while beats:
            beat = min(beats, key=lambda each: each.wakes)
            if beat.wakes >= end:
                break
            self.elapsed = max(self.elapsed, beat.wakes)
            beat.tick()
        self.elapsed = max(self.elapsed, end)


class Message(NamedTuple):
    at: float  # elapsed
    queue: str
    id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    headers: dict[str, Any]
    properties: dict[str, Any]

    @property
    def entry(self) -> str:
        return self.headers["lockbeat"]["entry"]

    @property
    def run(self) -> int:
        return self.headers["lockbeat"]["run"]


class Broker:
    """Keeps each message with its time. ``down``: out of reach; ``refuses``: returns what to raise for a message."""

    def __init__(self, world: World) -> None:
        self.name = f"broker{next(_names)}"
        self.world = world
        self.messages: list[Message] = []
        self.down = False
        self.refuses: Callable[[Message], Exception | None] = lambda _message: None
        _brokers[self.name] = self

    def put(self, queue: str, message: dict[str, Any]) -> None:
        if self.down:
            raise ConnectionResetError("the simulated broker is down")
        body = message["body"]
        if message["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        args, kwargs, _embed = json.loads(body)
        headers = message["headers"]
        told = Message(
            self.world.elapsed, queue, headers["id"], headers["task"], args, kwargs, headers, message["properties"]
        )
        refusal = self.refuses(told)
        if refusal is not None:
            raise refusal
        self.messages.append(told)

    def times(self, key: str = "task") -> dict[str, list[float]]:
        """When each task was sent."""
        times = defaultdict(list)
        for message in self.messages:
            times[message.task].append(message.at)
        return dict(times)

    def runs(self, entry: str) -> list[int]:
        return [message.run for message in self.messages if message.entry == entry]


class Channel(memory.Channel):
    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        _brokers[self.connection.client.hostname].put(queue, message)


class Transport(memory.Transport):
    Channel = Channel

    def establish_connection(self) -> Any:
        if _brokers[self.client.hostname].down:
            raise ConnectionRefusedError("the simulated broker is down")
        return super().establish_connection()


TRANSPORT_ALIASES["simulated"] = f"{__name__}:Transport"


class Beat:
    """A scheduler and when it wakes up. ``skew``: its host's wall clock is ahead by so many seconds."""

    def __init__(
        self, world: World, app: Celery, scheduler: type[Scheduler], *, skew: float = 0.0, **options: Any
    ) -> None:
        self.world, self.app, self.skew = world, app, skew
        app.finalize()  # as celery/apps/beat.py does
        # celery's persistent scheduler finds the app of what it has pickled as the current one
        self._makes_current = not issubclass(scheduler, LockedSchedulerMixin)
        with self._on_its_host():
            self.scheduler = scheduler(app=app, **options)
        self.wakes = world.elapsed
        self.ticks = 0
        self._in_a_row = 0

    def tick(self) -> None:
        """What Celery's Service does in its loop (celery/beat.py, Service.start)."""
        with self._on_its_host():
            rest = self.scheduler.tick()
        self.ticks += 1
        self._in_a_row = 0 if rest > 0 else self._in_a_row + 1
        assert self._in_a_row < SPINNING, "it spins"
        # a sleep is never too short; whole microseconds, as datetime has them
        self.wakes = (math.floor((self.world.elapsed + (rest if rest > 0 else COST)) * 1_000_000) + 1) / 1_000_000

    def close(self) -> None:
        with self._on_its_host():
            self.scheduler.close()

    @contextlib.contextmanager
    def _on_its_host(self) -> Iterator[None]:
        skew, current = self.world.skew, _state._tls.current_app
        self.world.skew = self.skew
        if self._makes_current:
            self.app.set_current()
        try:
            yield
        finally:
            self.world.skew, _state._tls.current_app = skew, current


class Stores:
    """In place of celery_lockbeat.stores.Stores: the one store of the simulation."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def choose(self, *_: str) -> tuple[Any, None]:
        return self.store, None


class SimulatedRedis(RedisStore):
    """Its scripts read the world's time in place of the server's."""

    def __init__(self, url: str, world: World) -> None:
        super().__init__(url)
        self._world = world
        self._time = redis.Redis.from_url(url)
        for part in (self.beats, self.controls, self.announcements):
            for name, script in list(vars(part).items()):
                if isinstance(script, Script):
                    simulated = script.source.replace(
                        "redis.call('TIME')", "cjson.decode(redis.call('GET', 'simulated time'))"
                    )
                    setattr(part, name, Script(simulated))
        self._call, self.client.call = self.client.call, self._call_now

    def _call_now(self, *args: Any, **options: Any) -> Any:
        micros = round(self._world.true_time() * 1_000_000)
        self._time.set("simulated time", json.dumps(divmod(micros, 1_000_000)))
        return self._call(*args, **options)


class NoJournal:
    """In place of a store's: it is written by threads, at moments that no simulation has."""

    def append(self, *_: Any, **__: Any) -> bool:
        return True

    def records(self, *_: Any, **__: Any) -> list[Any]:
        return []


class Weak:
    """A store that can be made to fail: ``fails`` tells, by the name of each call, "before", "after" or None."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.fails: Callable[[str], str | None] = lambda _name: None
        self.calls: Counter[str] = Counter()
        self.locks, self.beats = WeakPart(self, "locks"), WeakPart(self, "beats")
        self.controls, self.announcements = WeakPart(self, "controls"), WeakPart(self, "announcements")
        self.journal = NoJournal()

    def twin(self) -> Weak:
        return self

    def __getattr__(self, name: str) -> Any:
        return self.guarded(name, getattr(self.store, name))

    def guarded(self, name: str, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            how = self.fails(name)
            if how == "before":
                raise StoreUnavailable(f"{name} was not carried out")
            answer = method(*args, **options)
            if how == "after":
                raise StoreUnavailable(f"the answer of {name} was lost")
            return answer

        return call


class WeakPart:
    """A part of it."""

    def __init__(self, weak: Weak, part: str) -> None:
        self._weak, self._part = weak, part

    def __getattr__(self, name: str) -> Any:
        return self._weak.guarded(name, getattr(getattr(self._weak.store, self._part), name))


class Simulation:
    """Our beats over one store, in one world."""

    def __init__(self, open_store: Callable[[World], Any], make_world: Callable[[str], World] = World) -> None:
        self._open_store, self._make_world = open_store, make_world
        self.apps: list[Celery] = []
        self.restart()

    def restart(self, start: str = "2026-06-01T00:00:00+00:00") -> World:
        """A new world, which begins at this time, and a new store."""
        self.world = self._make_world(start)
        self.store = Weak(self._open_store(self.world))
        return self.world

    def app(self, schedule: dict[str, Any] | None = None, **settings: Any) -> Celery:
        app = self.world.app(**settings)
        app.conf.beat_schedule = dict(schedule or {})
        vars(app)["lockbeat_stores"] = Stores(self.store)
        assert stores_of(app).choose()[0] is self.store
        self.apps.append(app)
        return app

    def beat(
        self,
        schedule: dict[str, Any] | Celery | None = None,
        *,
        skew: float = 0.0,
        scheduler: type[Scheduler] = LockedScheduler,
        **settings: Any,
    ) -> Beat:
        app = schedule if isinstance(schedule, Celery) else self.app(schedule, **settings)
        return Beat(self.world, app, scheduler, skew=skew)

    def celery(
        self,
        schedule: dict[str, Any],
        scheduler: type[Scheduler] = Scheduler,
        *,
        prepare: Callable[[Celery], object] = lambda _app: None,
        **settings: Any,
    ) -> Beat:
        """A beat of Celery's own, with a broker of its own: ``beat.broker``."""
        options = {"schedule_filename": settings.pop("schedule_filename")} if "schedule_filename" in settings else {}
        broker = settings.pop("broker", None) or Broker(self.world)
        app = self.world.app(broker=broker, **settings)
        app.conf.beat_schedule = dict(schedule)
        prepare(app)
        self.apps.append(app)
        beat = Beat(self.world, app, scheduler, **options)
        beat.broker = broker
        return beat

    @property
    def messages(self) -> list[Message]:
        return self.world.broker.messages

    def times(self) -> dict[str, list[float]]:
        return self.world.broker.times()

    def close(self) -> None:
        for app in self.apps:
            app.close()


def open_store(driver: str, world: World, url: str, path: Any) -> Any:
    if driver == "redis":
        return SimulatedRedis(url, world)
    return MemoryStore(path, clock=world.clock, wall=world.true_time)


def every(seconds: Any, task: str = "t", **more: Any) -> dict[str, Any]:
    return {"task": task, "schedule": seconds, **more}


def named(schedules: dict[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """A beat_schedule of one entry for each schedule, whose task has the entry's name."""
    pairs = schedules.items() if isinstance(schedules, dict) else ((repr(each), each) for each in schedules)
    return {name: {"task": name, "schedule": when} for name, when in pairs}


def assert_same(ours: dict[str, list[float]], theirs: dict[str, list[float]], tolerance: float = 0.05) -> None:
    """The same ticks, but for the time that each run of Celery's spinning beat may be late."""
    assert ours.keys() == theirs.keys()
    for name, times in theirs.items():
        assert len(ours[name]) == len(times), (name, ours[name][:5], times[:5], ours[name][-5:], times[-5:])
        for number, (one, other) in enumerate(zip(ours[name], times, strict=True)):
            assert abs(one - other) <= tolerance + COST * number, (name, number, one, other)


class _Host:
    """In place of the module ``time`` of the scheduler."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def monotonic(self) -> float:
        return self._simulation.world.clock()

    def time(self) -> float:
        return self._simulation.world.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def set_clocks(monkeypatch: Any, simulation: Simulation) -> None:
    """What the scheduler reads its host's clocks with."""
    host = _Host(simulation)
    monkeypatch.setattr("celery_lockbeat.beat.scheduler.monotonic", host.monotonic)
    monkeypatch.setattr("celery_lockbeat.beat.scheduler.time", host)


def let_them_sleep(monkeypatch: Any) -> None:
    """Keep a beat that sleeps for hours of simulated time from showing every few seconds that it is alive."""
    monkeypatch.setattr("celery_lockbeat.beat.claims.ALIVE", 4 * 3600.0, raising=False)
    monkeypatch.setattr("celery_lockbeat.beat.controls.LOOKS_EVERY", 3600.0, raising=False)
