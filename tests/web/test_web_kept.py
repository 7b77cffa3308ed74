"""Entries that RedBeat or django-celery-beat keep, on the page: in words, when they are due, with the policies beside them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import days
import pytest
from celery.schedules import schedule
from servers import need_django, wait_until
from starlette.testclient import TestClient
from test_web import Elements, known

from celery_lockbeat.insight import feed
from celery_lockbeat.stores import home_store_of, name_of
from celery_lockbeat.stores.base import EntryState
from celery_lockbeat.web.app import Page


@pytest.fixture
def client_of(monkeypatch):
    monkeypatch.setattr(feed, "SCHEDULES_EVERY", 0.5)
    pages = []

    def make(app):
        pages.append(known(Page(app)))
        return TestClient(pages[-1].asgi)

    yield make
    for page in pages:
        page.hub.end()


def text_of(client, url):
    return " ".join(Elements(client.get(url).text).text.split())


def live(app, key):
    """Let a beat list this entry, whose last tick was a minute ago."""
    store, last = home_store_of(app), datetime.now(timezone.utc) - timedelta(minutes=1)
    store.beats.join(name_of(app), "b1")
    store.beats.list_entries(name_of(app), "b1", [(key, EntryState(1, last.isoformat()))], complete=True)


def test_entries_of_redbeat_are_told_as_redbeat_has_them_and_followed(make_app, client_of):
    from redbeat import RedBeatSchedulerEntry

    from celery_lockbeat.contrib.redbeat import policy_headers

    app = make_app(lockbeat_driver="redis", beat_scheduler="celery_lockbeat.contrib.redbeat:LockedRedBeatScheduler")
    app.conf.lockbeat_entries = {"sweep*": {"catchup_limit": 7}}
    options = {"headers": policy_headers(catchup="all", start_within=90)}
    entry = RedBeatSchedulerEntry("sweep", "shop.sweep", schedule(300, app=app), app=app, options=options)
    entry.save()
    live(app, entry.key)
    client = client_of(app)
    wait_until(lambda: "every 5 minutes" in text_of(client, "/"), message="it is said in words")
    page = client.get("/entry?name=sweep").text
    told = " ".join(Elements(page).text.split())
    for said in (
        "RedBeat's Redis",
        "each is run, the last 7 at most",
        "1 min 30 s",
        "shop.sweep",
        "When it is due next",
    ):
        assert said in told, said
    assert 'class="due" data-due=' in page
    RedBeatSchedulerEntry("sweep", "shop.sweep", schedule(7200, app=app), app=app, options=options).save()
    wait_until(lambda: "every 2 hours" in text_of(client, "/"), message="the change is seen")


def test_rows_of_django_are_told_as_the_admin_has_them(make_app, client_of, tmp_path):
    need_django()
    import djangos

    djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"), "default")
    from django.db import connections
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

    from celery_lockbeat.contrib.django.policies.models import EntryPolicy

    app = make_app(lockbeat_driver="redis", beat_scheduler="celery_lockbeat.contrib.django:LockedDatabaseScheduler")
    app.conf.timezone = "UTC"
    nightly = CrontabSchedule.objects.create(minute="30", hour="4", timezone="Europe/Berlin")
    row = PeriodicTask.objects.create(name="report", task="shop.report", crontab=nightly)
    EntryPolicy.objects.create(task=row, catchup="none", jitter=30)
    often = IntervalSchedule.objects.create(every=10, period="minutes")
    PeriodicTask.objects.create(name="off", task="shop.off", interval=often, enabled=False)
    live(app, f"periodictask:{row.pk}")
    client = client_of(app)
    wait_until(lambda: "at 04:30" in text_of(client, "/"), message="it is said in words")
    told = text_of(client, "/entry?name=report")
    for said in (
        f"row {row.pk} of django-celery-beat",
        "Europe/Berlin",
        "they are missed",
        "jitter30.0 s",
        "shop.report",
    ):
        assert said in told, said
    assert "off" not in text_of(client, "/"), "no beat lists what is disabled"
    # a table that does not answer takes nothing away of what was known
    connections["default"].close()
    (tmp_path / "db.sqlite3").rename(tmp_path / "gone.sqlite3")
    assert "at 04:30" in text_of(client, "/")
    assert client.get("/entry?name=report").status_code == 200


# -- policies of settings ----------------------------------------------------------------------------------------------


def test_what_settings_say_of_an_entry_is_among_its_policies(make_app, client_of):
    app = days.app_of(make_app)
    app.conf.lockbeat_entries = {"mail-*": {"catchup": "all"}}
    client = client_of(app)
    assert "each is run, the last 100 at most" in text_of(client, "/entry?name=mail-digest")
    assert "one run for all of them" in text_of(client, "/entry?name=sync-orders")
