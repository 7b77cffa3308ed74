"""What becomes free without anybody's doing is given to who waits, by the process that has put it into the line.

With real workers: processes/test_waiting.py.
"""

from __future__ import annotations

import threading
import time

import pytest
from servers import wait_until
from test_lines import deliver, messages, queue, waits  # noqa: F401  a fixture

from celery_lockbeat import Lock, LockedTask
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.locks.lookout import Lookout
from celery_lockbeat.stores.base import Served


@pytest.fixture
def app(make_app, driver):
    return make_app(lockbeat_driver=driver)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lockbeat-lookout"]


def called(queue) -> list:  # noqa: F811
    return [message for message in messages(queue) if message.headers["eta"] is None]


def held_by_the_dead(app, ttl: float) -> None:
    """As a host that died left it: nobody extends it, or frees it."""
    Lock("k", app=app)._store.locks.acquire("k", holder="dead", ttl=ttl)


def test_the_key_of_a_dead_host_is_given_away_when_its_lease_has_ended(app, queue):  # noqa: F811
    held_by_the_dead(app, 1)
    began = time.monotonic()
    task = waits(app, lock_ttl=30)
    deliver(task)
    assert threads()
    sent = []
    wait_until(lambda: sent.extend(called(queue)) or sent, 10)
    assert time.monotonic() - began < 4
    assert deliver(task, sent[0].headers) is None
    wait_until(lambda: not threads(), 10)


def test_who_was_called_and_does_not_come_is_passed_over_within_its_lease(app, queue):  # noqa: F811
    task = waits(app, lock_ttl=0.5)
    with Lock("k", app=app, ttl=60):
        deliver(task, id="dead")
        deliver(task, id="next")
        messages(queue)
    began, sent = time.monotonic(), []
    wait_until(lambda: sent.extend(called(queue)) or len(sent) == 2, 10)
    assert [message.headers["id"] for message in sent] == ["dead", "next"]
    assert time.monotonic() - began < 4


def test_what_is_held_on_after_its_run_is_given_away_when_that_is_over(app, queue):  # noqa: F811
    sent, told = [], []

    @app.task(base=LockedTask, name="holds", lock_key="k", lock_if_held="wait", lock_hold_at_least=2, lock_ttl=300)
    def holds():
        deliver(task)
        messages(queue)
        told.append(time.monotonic())

    task = waits(app)
    holds()
    wait_until(lambda: sent.extend(called(queue)) or sent, 10)
    assert 1.5 < time.monotonic() - told[0] < 6


class Asked:
    """A store that is asked to serve, and answers by a script."""

    driver = "redis"

    def __init__(self, *script: Served | Exception) -> None:
        self.script, self.asked = list(script), []

    @property
    def locks(self) -> Asked:
        return self

    def serve(self, key: str) -> Served:
        self.asked.append(key)
        answer = self.script.pop(0) if self.script else Served(0, None)
        if isinstance(answer, Exception):
            raise answer
        return answer


NOBODY = Served(0, None)


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        pytest.param([NOBODY], 1, id="where nobody waits any more it ends"),
        pytest.param([Served(2, 0.01), Served(1, 0.01), NOBODY], 3, id="it looks again when the next lease ends"),
        pytest.param([StoreUnavailable("down"), ZeroDivisionError(), NOBODY], 3, id="it goes on after trouble"),
        pytest.param([Served(2, 3600), NOBODY], 1, id="it ends where nobody may wait by then"),
    ],
)
def test_a_line_is_looked_after_while_somebody_may_wait(script, asked, monkeypatch):
    monkeypatch.setattr("celery_lockbeat.locks.lookout.TRIES_EVERY", 0.01)
    store, lookout = Asked(*script), Lookout()
    lookout.look_after(store, "k", ends_in=0.01, lasts=5)
    wait_until(lambda: not lookout._runs, 10)
    assert store.asked == ["k"] * asked
    assert (lookout._next, lookout._until) == ({}, {})


def test_one_thread_looks_after_all_lines_each_at_its_time_and_forgets_those_of_an_app_that_is_closed():
    store, other, lookout = Asked(Served(1, 3600)), Asked(), Lookout()
    lookout.look_after(store, "late", ends_in=3600, lasts=7200)
    lookout.look_after(store, "soon", ends_in=0.01, lasts=7200)
    lookout.look_after(store, "soon", ends_in=3600, lasts=7200)
    lookout.look_after(other, "another", ends_in=3600, lasts=7200)
    wait_until(lambda: store.asked, 10)
    assert store.asked == ["soon"]
    lookout.forget(store)
    assert list(lookout._next) == [(other, "another")]
    lookout.forget()
    wait_until(lambda: not lookout._runs, 10)


def test_no_thread_can_be_had(monkeypatch):
    def start(run):
        raise RuntimeError("can't start new thread")

    lookout = Lookout(start=start)
    lookout.look_after(Asked(), "k", ends_in=1, lasts=1)
    lookout.look_after(Asked(), "k", ends_in=1, lasts=1)
    assert not lookout._runs
