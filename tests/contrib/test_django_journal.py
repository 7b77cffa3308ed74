"""The journal in Django's database: those who write at once, a project that has not migrated yet, and what the admin shows."""

from __future__ import annotations

import contextlib
import html
import importlib
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from servers import need_django, wait_until

from celery_lockbeat import Lock
from celery_lockbeat.exceptions import ConfigurationError, StoreRefused
from celery_lockbeat.journal.records import encode
from celery_lockbeat.observe import events
from celery_lockbeat.stores.base import JOURNAL_MEMORY, Claim, EntryState

APP = "shop"


@pytest.fixture
def djangos():
    need_django()
    return importlib.import_module("djangos")


@pytest.fixture
def contrib(djangos):
    djangos.configure()
    return importlib.import_module("celery_lockbeat.contrib.django.store")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, djangos, tmp_path):
    """What Django's DATABASES have of a database with all tables, and nothing of the store in them."""
    if request.param == "sqlite":
        return djangos.make_sqlite(tmp_path / "db.sqlite3")
    return request.getfixturevalue("cluster").database


def open_one(contrib, alias):
    return contextlib.closing(contrib.open_database(alias, key_prefix="lockbeat:"))


def write(store, *texts, app=APP, keep=20_000):
    write.count += 1
    assert store.journal.append(app, f"batch {write.count}", texts, keep=keep)


write.count = 0


# -- written and read --------------------------------------------------------------------------------------------------


def test_who_reads_on_misses_no_record_of_one_who_began_to_write_earlier_and_ended_later(contrib, djangos, cluster):
    import psycopg

    with open_one(contrib, djangos.use(cluster.database)) as store, psycopg.connect(**cluster.conninfo) as slow:
        key = store.client.row_key(APP)
        slow.execute("SELECT lockbeat_append(%s, 'slow', '[\"first\"]', 100, 1000000, NULL, 1e9)", [key])
        second = threading.Thread(target=write, args=(store, "second"))
        second.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_until(lambda: not second.is_alive() or cluster.query(waiting) == [(1,)])
        write(store, "another app's", app="mail")  # which waits for nobody
        seen = store.journal.records(APP)
        slow.commit()
        second.join(30)
        seen += store.journal.records(APP, after=seen[-1].position if seen else None)
    assert [record.text for record in seen] == ["first", "second"]


def test_what_is_older_than_the_journals_memory_is_dropped(contrib, djangos, cluster):
    with open_one(contrib, djangos.use(cluster.database)) as store:
        write(store, "old")
        cluster.query("UPDATE lockbeat_journal SET written = written - %s", JOURNAL_MEMORY + 60)
        write(store, "new")
        write(store, *["x"] * 300)
        assert store.journal.records(APP, limit=1)[0].text == "new"


def test_an_app_that_writes_little_beside_another_has_its_oldest_dropped(contrib, djangos, cluster):
    with open_one(contrib, djangos.use(cluster.database)) as store:
        for number in range(300):
            # of all positions every other one
            write(store, f"{number}", keep=10)
            write(store, "x", app="mail", keep=10)
        assert len(store.journal.records(APP)) <= 10 + 256


def test_a_project_that_has_not_run_the_last_migration_is_refused_at_start_up_and_locks_nothing_until_it_has(
    contrib, djangos, database, make_app, request
):
    from django.core.management import call_command

    alias, expected = djangos.use(database), r"lockbeat_.*; has 'manage\.py migrate lockbeat' been run\?"
    # what Django alone takes note of, or another database, is of no matter to the store
    folder = Path(contrib.__file__).with_name("migrations")
    numbers = {
        path.stem.partition("_")[0] for path in folder.glob(f"0*_{request.node.callspec.params['database']}.sql")
    }
    migrations = sorted(path.stem for path in folder.glob("0*.py") if path.stem.partition("_")[0] in numbers)
    app = make_app(lockbeat_driver="database", lockbeat_connection=alias, broker_url="memory://")
    try:
        for last in reversed(migrations[:-1]):
            call_command("migrate", "lockbeat", last, database=alias, verbosity=0)
            with open_one(contrib, alias) as store, pytest.raises(ConfigurationError, match=expected):
                store.check()
        with pytest.raises(StoreRefused, match=expected), Lock("nightly", app=app):
            pytest.fail("it runs unlocked")
        with open_one(contrib, alias) as store:
            with pytest.raises(StoreRefused, match=expected):
                store.beats.claim(APP, "r", [Claim("id", "e", EntryState(1, "t"), {})], ttl=5)
            djangos.migrate(alias, "lockbeat")
            store.check()
            write(store, "x")
        with Lock("nightly", app=app):
            pass
    finally:
        djangos.migrate(alias, "lockbeat")


PROJECT = """
import sys
import django
from django.conf import settings
from django.core.management import call_command

auto_field, *others = sys.argv[1:]
if not others:
    sys.modules["django_celery_beat"] = None
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD=f"django.db.models.{auto_field}",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", *others, "celery_lockbeat.contrib.django"],
)
django.setup()
call_command("check", fail_level="WARNING")
call_command("makemigrations", "lockbeat", check=True, dry_run=True)
call_command("migrate", verbosity=0)
"""


@pytest.mark.parametrize("project", [("AutoField", "django_celery_beat"), ("BigAutoField",)])
def test_a_project_has_nothing_to_make_migrations_of(djangos, project):
    done = subprocess.run(
        [sys.executable, "-c", PROJECT, *project], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No changes detected in app 'lockbeat'" in done.stdout


# -- the admin ---------------------------------------------------------------------------------------------------------

URL = "/admin/lockbeat/journalrecord/"


@pytest.fixture
def admin(contrib, djangos, database):
    """The store in the default database, and the page of the admin, as a superuser sees it."""
    from django.contrib.auth import get_user_model
    from django.test import Client

    alias = djangos.use(database, "default")
    users = get_user_model().objects
    users.all().delete()
    client = Client()
    client.force_login(users.create_superuser("admin"))
    with open_one(contrib, alias) as store:
        yield store, client
    importlib.import_module("django.db").connections[alias].close()


def rows_of(client, url=URL, **query):
    """The rows of the list, as the texts of their cells."""
    done = client.get(url, query)
    assert done.status_code == 200, done
    body = done.content.decode().partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


def test_the_admin_lists_the_newest_first(admin):
    store, client = admin
    write(store, encode("task_started", {"task_name": "shop.sweep", "schedule": "sweep", "hostname": "w1@host"}, 0))
    fields = {"task_name": "shop.ship", "reason": "locked", "holder": "w2@host", "hostname": "w1@host"}
    write(store, encode("task_skipped", fields, 0), encode("records_dropped", {"count": 3}, 0))
    newest, *rows = rows_of(client)
    # Django 4.2 leaves empty what newer ones show as "-"
    assert [[cell or "-" for cell in row[1:]] for row in rows] == [
        ["task_skipped", "-", "shop.ship", "skipped", "locked", "w1@host"],
        ["task_started", "sweep", "shop.sweep", "running", "-", "w1@host"],
    ]
    assert newest[1] == "records_dropped"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", newest[0])
    (position,) = [record.position for record in store.journal.records(APP, newest_first=True, limit=2)][1:]
    page = client.get(f"{URL}{position}/change/").content.decode()
    assert "holder: w2@host" in page
    assert APP in page


def test_nobody_adds_changes_or_deletes_in_the_admin(admin):
    store, client = admin
    write(store, encode("task_started", {}, 0))
    ((record),) = store.journal.records(APP)
    assert client.get(f"{URL}add/").status_code == 403
    assert client.post(f"{URL}{record.position}/change/", {"text": "forged"}).status_code == 403
    assert client.post(f"{URL}{record.position}/delete/", {"post": "yes"}).status_code == 403
    page = client.post(URL, {"action": "delete_selected", "_selected_action": [record.position], "post": "yes"})
    assert page.status_code in (200, 302)
    assert store.journal.records(APP) == [record]


def test_the_admin_shows_it_to_those_who_may_view_it(admin):
    from django.contrib.auth import get_user_model
    from django.contrib.auth.models import Permission

    store, client = admin
    write(store, encode("task_started", {}, 0))
    user = get_user_model().objects.create_user("staff", is_staff=True)
    client.force_login(user)
    assert client.get(URL).status_code == 403
    (permission,) = Permission.objects.filter(content_type__model="journalrecord")
    assert permission.codename == "view_journalrecord"
    user.user_permissions.add(permission)
    assert len(rows_of(client)) == 1


GARBAGE = [
    "",
    "nonsense",
    "[" * 100_000,
    "null",
    "{}",
    '{"e":1}',
    '{"e":"x","ago":NaN}',
    '{"e":"x","ago":1e300}',
    '{"e":"x","ago":-2e11}',
    '{"e":"x","entry":"\\ud800","host":"\\u0000","more":{"a":["\\udfff"]}}',
    '{"e":"<script>alert(1)</script>","entry":"<b>","task":"%s{0}{x}","why":"&"}',
    '{"e":"\\"","entry":"","task":[1],"run":1e400,"due":1e300}',
]


def test_the_admin_shows_whatever_stands_in_the_table(admin):
    store, client = admin
    write(store, *GARBAGE)
    assert len(rows_of(client)) == len(GARBAGE)
    assert "<script>alert" not in client.get(URL).content.decode()
    for record in store.journal.records(APP):
        assert client.get(f"{URL}{record.position}/change/").status_code == 200
    for query in ({"e": "x"}, {"event": "\0"}, {"entry": "\ud800"}, {"entry": '"\\'}, {"q": '%_\\"'}, {"q": "\0"}):
        shown = {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}
        assert client.get(URL, shown, follow=True).status_code == 200


def test_the_admin_survives_rows_that_no_store_has_written(djangos, contrib, tmp_path):
    """SQLite's columns take anything."""
    from celery_lockbeat.contrib.django.models import JournalRecord

    alias = djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"))
    with importlib.import_module("django.db").connections[alias].cursor() as cursor:
        for app, written, text in (
            (b"\xff", "x", b"\xff"),
            (None, None, None),
            ("text", 9e999, 7),
            (b"9 ", -1e11, "{}"),
        ):
            cursor.execute(
                "INSERT INTO lockbeat_journal (app, written, text) VALUES (%s, %s, %s)", [app, written, text]
            )
    rows = list(JournalRecord.objects.using(alias).order_by("position"))
    assert [row.record.event for row in rows] == ["unreadable"] * 4
    assert [row.app_name for row in rows] == ["\\xff", "None", "text", ""]


def test_the_admin_filters_by_event_and_entry_and_finds_any_text(admin):
    store, client = admin
    names = ["sweep", 'say "hi"\\', "Bücher 📚", "x" * 300, "100%"]
    for name in names:
        write(store, encode("task_started", {"schedule": name}, 0), encode("task_failed", {"schedule": name}, 0))
    write(store, encode("task_failed", {"error_message": '"entry":"100%" and "e":"task_started"'}, 0))
    assert {row[1] for row in rows_of(client, event="task_started")} == {"task_started"}
    assert len(rows_of(client, event="task_failed")) == len(names) + 1
    assert len(rows_of(client, event="task_failed", entry="100%")) == 1
    page = client.get(URL).content.decode()
    links = {html.unescape(found) for found in re.findall(rf'href="({URL}\?entry=[^"]*)"', page)}
    assert len(links) == len(names)
    for link in links:
        rows = rows_of(client, link)
        assert len(rows) == 2
        assert len({row[2] for row in rows}) == 1
    for found in ("sweep", "Bücher 📚", "hi", "x" * 100):
        assert len(rows_of(client, q=found)) == 2
    assert rows_of(client, q="nothing like it") == []


def test_a_page_of_the_admin_makes_as_many_queries_for_10000_records_and_counts_once(admin):
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    store, client = admin
    texts = [encode("task_succeeded", {"task_name": f"t{n}", "schedule": f"e{n}"}, 0) for n in range(500)]
    write(store, *texts[:10])

    def queries(**query):
        with CaptureQueriesContext(connections["default"]) as captured:
            started = time.monotonic()
            client.get(URL, query)
            took = time.monotonic() - started
        return [each["sql"] for each in captured], took

    client.get(URL)
    few = {name: len(queries(q=name)[0]) for name in ("", "e9")}
    for _ in range(20):
        write(store, *texts)
    for name, expected in few.items():
        asked, took = queries(q=name)
        assert len(asked) == expected
        assert sum("COUNT(" in sql for sql in asked) == 1
        assert took < 2
    assert len(rows_of(client, p=50)) == 100


def test_the_admin_of_a_project_that_has_not_migrated_yet_says_so(admin, djangos):
    from django.core.management import call_command

    _, client = admin
    call_command("migrate", "lockbeat", "0002", database="default", verbosity=0)
    try:
        page = client.get(URL, follow=True)
    finally:
        djangos.migrate("default", "lockbeat")
    assert page.status_code == 200
    assert "manage.py migrate lockbeat" in page.content.decode()


def test_the_admin_reads_the_database_that_the_store_is_in(admin, djangos, contrib, make_app, tmp_path):
    from celery import _state

    _, client = admin
    alias = djangos.use(djangos.make_sqlite(tmp_path / "other.sqlite3"))
    with open_one(contrib, alias) as store:
        write(store, encode("task_started", {"schedule": "of the other"}, 0))
    current = _state._tls.current_app
    try:
        make_app(lockbeat_driver="database", lockbeat_connection=alias).set_current()
        assert [row[2] for row in rows_of(client)] == ["of the other"]
        make_app(lockbeat_driver="nonsense").set_current()
        assert rows_of(client) == []
    finally:
        _state._tls.current_app = current


def test_the_admin_offers_every_event_that_is_written(contrib):
    from celery_lockbeat.contrib.django.admin import EVENTS

    assert set(EVENTS) >= events._JOURNALED
    assert json.dumps(EVENTS[0]) in encode(EVENTS[0], {}, 0)
