"""The code in docs/how-to is run as it stands there."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

import docs
from celery_lockbeat import Lock, LockLost, TaskSkipped
from celery_lockbeat.options import AppOptions

HOW_TO = Path(__file__).parent.parent / "docs" / "how-to"


def code_of(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (HOW_TO / page).read_text("utf-8"), re.DOTALL | re.MULTILINE))


@pytest.fixture
def fencing(app):
    connection = sqlite3.connect(":memory:")
    scope = {"__name__": "howto", "app": app, "connection": connection, "add_up": lambda customer: 10 * customer}
    exec(compile(code_of("fencing.md"), "fencing.md", "exec"), scope)
    connection.execute(scope["SCHEMA"])
    connection.execute("INSERT INTO report (customer, total) VALUES (7, 0)")
    connection.commit()
    yield scope
    connection.close()


def two_holders(app) -> tuple[int, int]:
    """The tokens of one that was lost unawares, and of the one that followed."""
    with Lock("report:7", app=app, logging=False) as old:
        pass
    with Lock("report:7", app=app, logging=False) as new:
        pass
    return old.token, new.token


def test_a_late_write_to_a_sql_row_is_refused(app, fencing):
    old, new = two_holders(app)
    save, connection = fencing["save_report"], fencing["connection"]
    save(connection, 7, 1, old)
    save(connection, 7, 2, new)
    save(connection, 7, 3, new)
    with pytest.raises(LockLost, match=f"customer 7 has been written under a later lock than {old}"):
        save(connection, 7, 4, old)
    assert connection.execute("SELECT total, fence FROM report").fetchall() == [(3, new)]
    fencing["report"](7)
    assert connection.execute("SELECT total FROM report").fetchall() == [(70,)]


def test_a_late_write_to_a_redis_key_is_refused(app, fencing, server):
    old, new = two_holders(app)
    save = fencing["save_total"]
    with server.client() as client:
        save(client, 7, 1, old)
        save(client, 7, 2, new)
        with pytest.raises(LockLost, match=f"customer 7 has been written under a later lock than {old}"):
            save(client, 7, 3, old)
        assert client.get("total:{7}") == "2"


def test_flasks_own_base_and_ours_make_one(app):
    flask = pytest.importorskip("flask")
    scope = {"__name__": "make_celery"}
    exec(compile(code_of("flask.md"), "flask.md", "exec"), scope)
    report = scope["report"]
    assert report.apply((7,)).get() == "shop"
    with Lock("report:7", app=scope["celery_app"]), pytest.raises(TaskSkipped):
        report(7)
    assert not flask.has_app_context()
    assert report.__wrapped__.__name__ == "report"


def test_a_web_process_sends_looks_and_locks(server):
    fastapi = pytest.importorskip("fastapi")
    scope = docs.run("how-to/fastapi.md", url=server.url)
    celery_app = scope["celery_app"]
    celery_app.conf.update(task_always_eager=True, task_store_eager_result=True)
    look = scope["look_at_a_report"]
    assert look(scope["ask_for_a_report"](7)["id"]) == {"state": "success", "report": "report of 7"}
    scope["import_now"](7)
    with Lock("report:7", app=celery_app):
        # as a worker answers for a run that it skips
        celery_app.backend.mark_as_revoked("an-id", "report:7 is held by w1@host")
        assert look("an-id") == {"state": "skipped", "why": "report:7 is held by w1@host"}
        with pytest.raises(fastapi.HTTPException) as refused:
            scope["import_now"](7)
    assert refused.value.status_code == 409
    celery_app.close()


@pytest.mark.parametrize("page", ["kubernetes", "systemd"])
def test_the_settings_of_a_deployment_are_read_from_its_environment(page, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://redis.example.com:6379/3")
    monkeypatch.setenv("HEALTH_FILE", "/tmp/{kind}")
    app = docs.run(f"how-to/{page}.md")["app"]
    options = AppOptions.read(app.conf)
    assert options.connection("redis", "default")["url"] == "redis://redis.example.com:6379/3"
    assert options.health_file == "/tmp/{kind}"
    app.close()


def test_a_base_that_awaits_holds_the_lock_of_a_coroutine(app):
    scope = {"__name__": "tasks", "app": app}
    exec(compile(code_of("async-tasks.md"), "async-tasks.md", "exec"), scope)
    assert scope["sync_shop"].apply(("x",)).get() == "sync:x"


def test_what_nest_schedule_calls_its_decorators_makes_tasks_and_entries():
    scope = {"__name__": "nest"}
    exec(compile(code_of("migrate-from-nest-schedule.md"), "nest.md", "exec"), scope)
    app = scope["app"]
    app.finalize()
    entries = app.conf.beat_schedule
    assert {name: str(entry["schedule"]) for name, entry in entries.items()} == {
        "report": "Cron('30 6 * * 1-5', timezone='Europe/Berlin')",
        "sync": "<freq: 10.00 seconds>",
        "nest.warm_up": "Once(after=5)",
    }
    assert app.tasks["sync"].lock_ttl == 60
    app.close()


def test_a_run_that_needs_several_keys_has_all_or_none(server):
    scope = docs.run("how-to/several-keys.md", url=server.url)
    app = scope["app"]
    assert scope["transfer"].apply((2, 1, 5)).get() == "5 from 2 to 1, under ['account:1', 'account:2']"
    assert scope["pack"].apply(({"articles": [7, 8]},)).get() == 2
    assert scope["audit"]() == "the two are at rest"
    with Lock("account:1", app=app):
        assert scope["transfer"].apply((2, 1, 5)).state == "REVOKED"
    with Lock("article:8", app=app):
        assert scope["pack"].apply(({"articles": [7, 8]},)).state == "REVOKED"
    app.close()
