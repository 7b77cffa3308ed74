"""What the how-to pages show before and after a migration does what they say."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import threading
import time
from collections import Counter
from datetime import datetime
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
from celery import Celery, states
from celery.beat import Service
from messages import Queue
from servers import need_django, wait_until

import docs
from celery_lockbeat import Lock, LockNotAcquired


def need(module: str):
    """Import a peer that a page shows. Missing, it is no reason to fail, but in CI."""
    return importlib.import_module(module) if os.environ.get("CI") else pytest.importorskip(module)


@pytest.fixture
def run_page(server):
    with contextlib.ExitStack() as stack:

        def run(page, heading):
            scope = docs.run(f"how-to/{page}.md", heading, url=server.url)
            for name in {"app", "client"} & scope.keys():
                stack.callback(scope[name].close)
            return scope

        yield run


def test_celery_once_refuses_what_is_queued_already(run_page, server):
    once = need("celery_once")
    # its client is one for the whole process
    need("celery_once.backends.redis").redis = None
    before = run_page("migrate-from-celery-once", "Before")
    report, strict = before["report"], before["strict"]
    assert report.delay(1, "monday").state == states.PENDING
    assert report.delay(1, "tuesday").state == states.REJECTED
    assert report.delay(2, "monday").state == states.PENDING
    strict.delay(1)
    with pytest.raises(once.AlreadyQueued):
        strict.delay(1)


def test_celery_singleton_returns_what_is_queued_already(run_page):
    singleton = need("celery_singleton")
    before = run_page("migrate-from-celery-singleton", "Before")
    report, strict = before["report"], before["strict"]
    first = report.delay(1, "monday")
    assert report.delay(1, "tuesday").id == first.id
    assert report.delay(2, "monday").id != first.id
    strict.delay(1)
    with pytest.raises(singleton.exceptions.DuplicateTaskError):
        strict.delay(1)


@pytest.mark.parametrize("page", ["migrate-from-celery-once", "migrate-from-celery-singleton"])
def test_after_the_migration_the_second_run_is_skipped_or_fails(run_page, page):
    after = run_page(page, "After")
    report, strict = after["report"], after["strict"]
    with Lock("report:1", app=after["app"]), Lock("strict:1", app=after["app"]):
        assert report.apply([1, "monday"]).state == states.REVOKED
        assert report.apply([2, "monday"]).state == states.SUCCESS
        assert isinstance(strict.apply([1]).result, LockNotAcquired)
    assert report.apply([1, "tuesday"]).state == states.SUCCESS
    assert strict.apply([1]).state == states.SUCCESS


@pytest.mark.parametrize("page", ["migrate-from-celery-once", "migrate-from-celery-singleton"])
def test_after_the_migration_what_is_queued_is_not_sent_again(run_page, page, server):
    after = run_page(page, "After")
    report = after["report"]
    first = report.delay(1, "monday")
    assert report.delay(1, "tuesday").id == first.id
    assert report.delay(2, "monday").id != first.id
    strict = after["ask_for"](1)
    with pytest.raises(RuntimeError, match=f"1 is in the hands of {strict.id}"):
        after["ask_for"](1)
    with server.client() as client:
        assert client.llen("celery") == 3


def test_python_redis_lock_and_ours_wait_or_leave(run_page):
    redis_lock = need("redis_lock")
    before = run_page("migrate-from-python-redis-lock", "Before")
    assert before["export"](1) == before["export_unless_held"](1) == "exported 1"
    with redis_lock.Lock(before["client"], "export:1", expire=30):
        assert before["export_unless_held"](1) is None
    assert_waits_or_leaves(run_page("migrate-from-python-redis-lock", "After"))


def test_the_lock_of_redis_py_and_ours_wait_or_leave(run_page):
    before = run_page("migrate-from-redis-py-lock", "Before")
    assert before["export"](1) == before["export_unless_held"](1) == "exported 1"
    with before["client"].lock("export:1", timeout=30):
        assert before["export_unless_held"](1) is None
    assert_waits_or_leaves(run_page("migrate-from-redis-py-lock", "After"))


def assert_waits_or_leaves(after):
    """What a page shows of ours, while another holds the key for a moment."""
    export, unless_held, task, app = (after[name] for name in ("export", "export_unless_held", "export_task", "app"))
    assert export(1) == unless_held(1) == task.apply([1]).get() == "exported 1"
    held = Lock("export:1", app=app)
    assert held.acquire()
    assert unless_held(1) is None
    assert task.apply([1]).state == states.REVOKED
    leaving = threading.Timer(0.3, held.release)
    leaving.start()
    assert export(1) == "exported 1"
    leaving.join()


def test_the_recipe_of_celerys_cookbook_and_ours_let_one_run(run_page):
    before = run_page("migrate-from-celerys-cookbook", "Before")
    assert before["import_feed"].apply(["feed"]).get() == "imported feed"
    (name,) = _names_set(before, lambda: before["import_feed"].apply(["feed"]))
    before["client"].set(name, "another")
    assert before["import_feed"].apply(["feed"]).get() == "feed is being imported already"
    after = run_page("migrate-from-celerys-cookbook", "After")
    with Lock("import_feed:feed", app=after["app"]):
        assert after["import_feed"].apply(["feed"]).state == states.REVOKED
        assert after["import_feed"].apply(["other"]).get() == "imported other"
    assert after["import_feed"].apply(["feed"]).get() == "imported feed"


def _names_set(before, do) -> set[str]:
    """The keys that are set with an expiry meanwhile."""
    names, client = set(), before["client"]

    class Noting:
        def set(self, name, *args, **options):
            names.add(name)
            return client.set(name, *args, **options)

        def delete(self, name):
            return client.delete(name)

    before["client"] = Noting()
    do()
    before["client"] = client
    return names


def test_what_is_queued_is_not_sent_again(run_page, server):
    page = run_page("unique", None)
    with server.client() as client:
        assert client.llen("celery") == 1
    first = page["report"].delay(1)
    assert page["report"].delay(1).id == first.id
    assert page["report"].delay(2).id != first.id


def test_once_per_minute_and_key(run_page):
    remind = run_page("rate-and-debounce", None)["remind"]
    assert remind.apply([7]).get() == "reminded 7"
    assert remind.apply([7]).state == states.REVOKED
    assert remind.apply([8]).get() == "reminded 8"


@pytest.fixture
def debounced(run_page, server):
    """The page, and its messages, which are delivered whenever they are to run."""
    page = run_page("rate-and-debounce", None)
    page["app"].conf.task_default_queue = "debounced"
    return page, Queue(page["app"], server)


def test_of_what_is_typed_within_two_seconds_the_first_and_the_last_is_saved(debounced):
    page, queue = debounced
    results = [page["typed"](1, text) for text in "abcd"]
    sent = time.time()
    assert all(0 < _seconds_until(message, sent) <= 1 for message in queue.messages())
    queue.deliver()
    for _ in "bcd":
        queue.deliver()  # b, c, and d: each waits, and takes the place of the one before
    assert [result.state for result in results] == ["SUCCESS", "PENDING", "PENDING", "PENDING"]
    copies = len(queue)
    wait_until(lambda: len(queue) > copies, 10, "the last one is called when the two seconds are over")
    queue.deliver_all()
    assert [result.state for result in results] == ["SUCCESS", "REVOKED", "REVOKED", "SUCCESS"]
    assert results[3].get() == "saved 'd'"


def _seconds_until(message, now) -> float:
    return datetime.fromisoformat(message.headers["eta"]).timestamp() - now


def test_a_burst_of_calls_is_one_run_and_a_change_that_comes_while_it_runs_is_another(debounced, server):
    page, queue = debounced
    results = [page["changed"]("shop") for _ in range(9)]
    assert len({result.id for result in results}) == len(queue) == 1
    assert 4 < _seconds_until(queue.messages()[0], time.time()) <= 5
    with Lock("index:shop", app=page["app"]):  # the run goes on
        queue.deliver()
        assert results[0].state == "PENDING"
    queue.deliver_all()
    assert results[0].get() == "indexed all that has changed in shop"
    assert page["changed"]("shop").id != results[0].id


def tick_and_count(client, sent, *schedulers):
    """Let schedulers tick; ``sent`` has for each message when it was first seen."""
    for scheduler in schedulers:
        scheduler.tick()
    sent.extend([time.monotonic()] * (client.llen("celery") - len(sent)))
    return sent


def assert_each_in_its_second(sent):
    assert all(later - earlier < 4 for earlier, later in pairwise(sent))
    # what was seen late makes the next one look early: so from the first to the last
    assert sent[-1] - sent[0] > 0.9 * (len(sent) - 1)


def go_on_with_ours(run_page, server, page, alter=lambda _plain: None):
    """Let the scheduler that a page begins with send two ticks, and two of ours three more; return the messages' headers."""
    before = run_page(page, "Before")["app"]
    sent = []
    with server.client() as client:
        tick = partial(tick_and_count, client, sent)

        plain = Service(before, scheduler_cls=before.conf.beat_scheduler).scheduler
        alter(plain)
        wait_until(lambda: len(tick(plain)) == 2)
        plain.close()
        after = run_page(page, "After")["app"]
        ours = [Service(after, scheduler_cls=after.conf.beat_scheduler).scheduler for _ in range(2)]
        wait_until(lambda: len(tick(*ours)) == 5)
        for scheduler in ours:
            scheduler.close()
        assert_each_in_its_second(sent)
        headers = [json.loads(message)["headers"] for message in client.lrange("celery", 0, -1)]
    runs = Counter(each["lockbeat"]["run"] for each in headers if "lockbeat" in each)
    assert runs == {3: 1, 4: 1, 5: 1}
    return headers


def test_what_redbeat_has_begun_several_of_our_beats_go_on_with(run_page, server):
    # its lock is taken by a signal of a beat that is a process
    go_on_with_ours(run_page, server, "migrate-from-redbeat", lambda plain: setattr(plain, "lock_key", None))


@pytest.fixture
def django_project(tmp_path):
    """Django, with a database of this test."""
    need_django()
    djangos = importlib.import_module("djangos")
    djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"), "default")
    yield
    from django.db import connections

    connections["default"].close()


def test_what_django_celery_beat_has_begun_several_of_our_beats_go_on_with(run_page, server, django_project):
    from django_celery_beat.models import PeriodicTask

    headers = go_on_with_ours(run_page, server, "migrate-from-django-celery-beat")
    assert {each["periodic_task_name"] for each in headers} == {"sync-7"}
    assert PeriodicTask.objects.get(name="sync-7").total_run_count == 5


def test_the_settings_for_django_are_enough(django_project):
    from django.apps import apps

    page = docs.run("how-to/django.md")
    assert all(apps.is_installed(name) for name in page["INSTALLED_APPS"])
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.config_from_object(SimpleNamespace(**page), namespace="CELERY")
    scheduler = Service(app, scheduler_cls=app.conf.beat_scheduler).scheduler
    assert type(scheduler).__name__ == "LockedDatabaseScheduler"
    assert scheduler._store.driver == "database"
    with Lock("key", app=app) as lock:
        assert lock.token
    scheduler.close()
    app.close()
