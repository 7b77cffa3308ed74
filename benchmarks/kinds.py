"""The app of ``tasks.py``: one task of each kind, and the witness of its worker. Each peer is used as its README says."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import redis
from billiard.process import current_process
from celery import Celery, signals

from celery_lockbeat import LockedTask

URL = os.environ["LOCKBEAT_BENCH_URL"]
POOL = os.environ.get("LOCKBEAT_BENCH_POOL", "prefork")
#: how many tasks run at a time in each pool
CONCURRENCY = {"prefork": 2, "threads": 8, "gevent": 50, "solo": 1}
#: processes in which tasks run: those of one worker, and of all
CHILDREN = CONCURRENCY["prefork"] if POOL == "prefork" else 1
ALL_CHILDREN = CHILDREN * int(os.environ.get("LOCKBEAT_BENCH_WORKERS", "1"))
#: which of the workers this is
WORKER = int(os.environ.get("LOCKBEAT_BENCH_WORKER", "0"))

app = Celery("kinds", broker=URL)
app.conf.task_default_queue = "bench"
if "LOCKBEAT_BENCH_RESULTS" in os.environ:
    app.conf.result_backend = URL
else:
    app.conf.task_ignore_result = True
app.conf.lockbeat_redis_url = app.conf.singleton_backend_url = URL
app.conf.ONCE = {"backend": "celery_once.backends.Redis", "settings": {"url": URL, "default_timeout": 60 * 60}}

#: label -> task
kinds: dict[str, Callable[..., object]] = {}
#: packages that are not installed
missing: set[str] = set()


def kind(label: str, *packages: str, base: str | type | None = None, **options: object):
    """Add a task; ``base`` may be the name of a class in the first of ``packages``, for which nothing is imported here."""

    def add(body: Callable[..., None]) -> None:
        absent = {package for package in packages if find_spec(package) is None}
        missing.update(absent)
        if not absent:
            cls = getattr(import_module(packages[0]), base) if isinstance(base, str) else base
            kinds[label] = app.task(name=body.__name__, base=cls, **options)(body)

    return add


@kind("plain task")
def plain(n: int) -> None:
    pass


@kind("LockedTask, a key per call", base=LockedTask, lock_key="{n}")
def locked(n: int) -> None:
    pass


@kind("LockedTask, one key, most are skipped", base=LockedTask)
def locked_by_name(n: int) -> None:
    pass


@kind("celery-once", "celery_once", base="QueueOnce")
def once(n: int) -> None:
    pass


@kind("celery-singleton", "celery_singleton", base="Singleton")
def singleton(n: int) -> None:
    pass


client = redis.Redis.from_url(URL)


@kind("python-redis-lock", "redis_lock")
def redis_lock(n: int) -> None:
    import redis_lock

    with redis_lock.Lock(client, f"lock-{n}"):
        pass


@kind("python-redis-lock, renewed", "redis_lock")
def redis_lock_renewed(n: int) -> None:
    import redis_lock

    with redis_lock.Lock(client, name=f"lock-{n}", expire=60, auto_renewal=True):
        pass


bare = client.register_script("return 1")


@kind("two bare EVALSHA in the body")
def two_scripts(n: int) -> None:
    bare(["k1", "k2"], ["holder", "run", 30000, 3630000, "w@host pid 1 task[id]", 0])
    bare(["k1", "k2"], ["token", "holder", 0, 3600000, 60000])


@cache
def bare_socket(_thread: int) -> socket.socket:
    server = urlsplit(URL)
    connected = socket.create_connection((server.hostname, server.port), timeout=10)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


@kind("two round trips of a socket")
def round_trips(n: int) -> None:
    connected = bare_socket(threading.get_ident())
    for _ in range(2):
        connected.sendall(b"*3\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n0\r\n")
        connected.recv(64)


class Witness:
    """How many runs the workers' processes have finished: a counter of each, in a file that all of them map."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the threads and greenlets of one process
        with Path(os.environ["LOCKBEAT_BENCH_WITNESS"]).open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8 * ALL_CHILDREN)

    def count(self, child: int) -> None:
        with self._lock:
            struct.pack_into("q", self._page, 8 * child, struct.unpack_from("q", self._page, 8 * child)[0] + 1)

    def total(self) -> int:
        return sum(struct.unpack(f"{ALL_CHILDREN}q", self._page))


def count_runs(**_: object) -> None:
    witness, child = Witness(), WORKER * CHILDREN + (current_process().index if POOL == "prefork" else 0)
    # after all that a lock does at the end of a run
    signals.task_postrun.connect(lambda **_: witness.count(child), weak=False)


# only a child of prefork has an index; the other pools run their tasks in the worker itself
(signals.worker_process_init if POOL == "prefork" else signals.worker_init).connect(count_runs)

if "LOCKBEAT_BENCH_STAGES" in os.environ:
    import stages

    stages.measure(os.environ["LOCKBEAT_BENCH_STAGES"])
