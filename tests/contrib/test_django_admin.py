"""Locks and entries in Django's admin: what is shown to whom, what may be done by whom, and that names are only text."""

from __future__ import annotations

import html
import importlib
import json
import re
import time
from datetime import datetime, timedelta, timezone

import pytest
from servers import need_django, wait_until

from celery_lockbeat import LockedTask
from celery_lockbeat.control import schedules_of
from celery_lockbeat.journal import read
from celery_lockbeat.journal.records import encode
from celery_lockbeat.stores import home_store_of, name_of
from celery_lockbeat.stores.base import EntryState

LOCKS, ENTRIES = "/admin/lockbeat/lock/", "/admin/lockbeat/entry/"

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7*7 }}{% now 'Y' %}",
    "\u202ereversed\u2066\u200f",
    "w" * 10_000,
)


@pytest.fixture
def djangos():
    need_django()
    return importlib.import_module("djangos")


@pytest.fixture(params=["database", "redis"])
def driver(request):
    return request.param


@pytest.fixture
def shop(djangos, driver, make_app, tmp_path):
    """The app of this process, whose locks, ticks and journal are in Django's database, or in Redis."""
    from celery import _state

    djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"), "default")
    app = make_app(lockbeat_driver=driver, timezone="UTC")
    app.conf.beat_schedule = {name: {"task": "shop.work", "schedule": 60} for name in ("sweep", "ship")}

    @app.task(base=LockedTask, name="shop.work")
    def work():
        pass

    current = _state._tls.current_app
    app.set_current()
    yield app
    _state._tls.current_app = current
    importlib.import_module("django.db").connections["default"].close()


def client_of(name, *permissions):
    """A client of somebody of the staff who may do this; of who may do all where nothing is named."""
    from django.contrib.auth.models import Permission, User
    from django.test import Client

    user = User.objects.create_user(name, is_staff=True, is_superuser=not permissions)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions, content_type__app_label="lockbeat"))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def ada(shop):
    return client_of("ada")


def lock(app, key, holder="w1@host pid 7", ttl=300):
    return home_store_of(app).locks.acquire(key, holder=f"id of {key}", ttl=ttl, description=holder)


def live(app, *names):
    """Let a beat be there, which lists these entries."""
    store = home_store_of(app)
    store.beats.join(name_of(app), "b1")
    states = [(name, EntryState(3, datetime.now(timezone.utc).isoformat())) for name in names]
    store.beats.list_entries(name_of(app), "b1", states, complete=True)


def rows_of(client, url, **query):
    """The rows of a list: what each is chosen by, and the texts of its cells."""
    page = shown(client, url, **query)
    found = re.findall(r"<tr>(<t[dh].*?)</tr>", page.partition("<tbody>")[2], re.DOTALL)
    return [
        (
            html.unescape((re.findall(r'name="_selected_action" value="([^"]*)"', row) or [""])[0]),
            *(html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<bdi>(.*?)</bdi>", row, re.DOTALL)),
        )
        for row in found
    ]


def shown(client, url, status=200, **query):
    answer = client.get(url, query)
    assert answer.status_code == status, answer
    return answer.content.decode()


def act(client, url, action, chosen, **asked):
    """Choose an action in a list, and answer what it asks for; return what it asked, and what it told."""
    asks = client.post(url, {"action": action, "_selected_action": chosen})
    assert asks.status_code == 200, asks
    sent = {"action": action, "_selected_action": chosen, "post": "yes", **asked}
    return asks.content.decode(), told(client.post(url, sent, follow=True))


def told(answer):
    messages = re.findall(r'<ul class="messagelist">(.*?)</ul>', answer.content.decode(), re.DOTALL)
    return html.unescape(re.sub("<.*?>", "", "".join(messages))).strip()


def recorded(app, event):
    """The records of an event: they are written by a thread."""
    return [record for record in read(app, limit=None) if record.event == event]


# -- locks -------------------------------------------------------------------------------------------------------------


def test_the_locks_of_the_app_are_listed_wherever_they_are(shop, ada):
    first, _ = lock(shop, "shop.sweep", "w1@host pid 7 sweep[1]"), lock(shop, "shop.ship", "w2@host pid 8 ship[2]")
    assert [row[1:3] for row in rows_of(ada, LOCKS)] == [
        ("shop.sweep", "w1@host pid 7 sweep[1]"),
        ("shop.ship", "w2@host pid 8 ship[2]"),
    ]
    assert str(first.token) in rows_of(ada, LOCKS)[0]
    assert [row[1] for row in rows_of(ada, LOCKS, q="W2@HOST")] == ["shop.ship"]
    assert "Nothing is like that" in shown(ada, LOCKS, q="none of these")
    assert "Locks" in shown(ada, "/admin/")


def test_a_lock_is_released_as_an_action_which_asks_tells_and_is_in_the_journal(shop, ada):
    lock(shop, "shop.sweep", "w1@host pid 7"), lock(shop, "shop.ship")
    ((chosen, *_),) = rows_of(ada, LOCKS, q="sweep")
    asks, said = act(ada, LOCKS, "release", [chosen])
    assert "until then another may run beside it" in asks
    assert "<bdi>shop.sweep</bdi>" in asks
    assert said == "'shop.sweep' is free; it was held by w1@host pid 7."
    assert [row[1] for row in rows_of(ada, LOCKS)] == ["shop.ship"]
    wait_until(lambda: recorded(shop, "lock_freed"), message="it is in the journal")
    ((record),) = recorded(shop, "lock_freed")
    assert (record.lock_key, record.holder, record.who) == ("shop.sweep", "w1@host pid 7", "ada")
    assert "nothing was done" in act(ada, LOCKS, "release", [chosen])[1]


def test_a_lock_is_taken_only_from_who_held_it_when_it_was_shown(shop, ada):
    lease = lock(shop, "shop.sweep")
    ((chosen, *_),) = rows_of(ada, LOCKS)
    locks = home_store_of(shop).locks
    locks.release(lease)
    locks.acquire("shop.sweep", holder="another", ttl=30)
    assert "not held by that holder any more" in act(ada, LOCKS, "release", [chosen])[1]
    assert len(locks.held("shop.sweep")) == 1


def test_who_may_only_view_locks_does_nothing_with_them_and_others_see_none(shop):
    lock(shop, "shop.sweep")
    sent = {"action": "release", "_selected_action": [json.dumps(["shop.sweep", "id of shop.sweep"])], "post": "yes"}
    viewer, stranger = client_of("viewer", "view_lock"), client_of("stranger", "view_entry")
    assert [row[:2] for row in rows_of(viewer, LOCKS)] == [("", "shop.sweep")]
    assert "Release" not in shown(viewer, LOCKS)
    assert viewer.post(LOCKS, sent).status_code == 403
    assert stranger.get(LOCKS).status_code == stranger.post(LOCKS, sent).status_code == 403
    assert len(home_store_of(shop).locks.held("shop.sweep")) == 1
    assert "is free" in act(client_of("changer", "change_lock"), LOCKS, "release", sent["_selected_action"])[1]


def test_a_form_of_somebody_elses_page_does_nothing(shop, ada):
    lock(shop, "shop.sweep")
    ada.handler.enforce_csrf_checks = True
    chosen = [json.dumps(["shop.sweep", "id of shop.sweep"])]
    sent = {"action": "release", "_selected_action": chosen, "post": "yes"}
    assert ada.post(LOCKS, sent).status_code == 403
    assert ada.get(LOCKS, sent).status_code == 200, "it is shown, and not done"
    assert len(home_store_of(shop).locks.held("shop.sweep")) == 1


@pytest.mark.parametrize("driver", ["database"], indirect=True)
def test_what_is_no_lock_of_the_list_is_told(shop, ada):
    for chosen in ("", "nonsense", "[]", "[1]", '["a"]', "{}", '["a", "b", "c"]', "\0", '["a", "b"]'):
        assert "nothing was done" in act(ada, LOCKS, "release", [chosen])[1], chosen
        assert "nothing was done" in act(ada, ENTRIES, "pause", [chosen])[1], chosen


def test_without_a_choice_nothing_is_done(shop, ada):
    for sent in ({}, {"action": "release"}, {"action": "drop", "_selected_action": ["x"]}):
        assert "Nothing was done" in told(ada.post(LOCKS, sent, follow=True))


@pytest.mark.parametrize("driver", ["redis"], indirect=True)
def test_of_10000_locks_a_page_has_100_and_any_is_found(shop, ada, server):
    store = home_store_of(shop).locks
    for number in range(10_050):
        store.acquire(f"customers:{number:05}", holder="h", ttl=300, description="w1@host")
    began = time.monotonic()
    page = shown(ada, LOCKS)
    took = time.monotonic() - began
    assert page.count('class="action-select"') == 100
    assert "search for a key" in page
    assert took < 5, took
    assert len(rows_of(ada, LOCKS, p=2)) == 100
    assert [row[1] for row in rows_of(ada, LOCKS, p="nonsense")] == [row[1] for row in rows_of(ada, LOCKS, p=1)]
    # beyond what is listed, too
    for number in (0, 9_999, 10_049):
        assert [row[1] for row in rows_of(ada, LOCKS, q=f"customers:{number:05}")] == [f"customers:{number:05}"]


# -- entries -----------------------------------------------------------------------------------------------------------


def test_an_entry_is_paused_and_resumed_as_actions_with_who_did_it(shop, ada):
    live(shop, "sweep", "ship")
    ((chosen, name, wanted, beats, published, _),) = rows_of(ada, ENTRIES, q="swe")
    assert (name, wanted, beats, published) == ("sweep", "", "1", "3")
    asks, said = act(ada, ENTRIES, "pause", [chosen], until="2h", note="the <db> moves")
    assert "No tick of these is published any more" in asks
    assert re.match(r"Paused until 20\d\d-.*: 'sweep'", said)
    assert schedules_of(shop)["sweep"].flag_now().paused
    assert re.match(r"paused by ada until 20\d\d-.*: the <db> moves", rows_of(ada, ENTRIES, q="sweep")[0][2])
    wait_until(lambda: recorded(shop, "entry_paused"), message="it is in the journal")
    ((record),) = recorded(shop, "entry_paused")
    assert (record.entry, record.who) == ("sweep", "ada")
    assert "the <db> moves" in record.reason
    assert act(ada, ENTRIES, "resume", [chosen])[1] == "Resumed: 'sweep'"
    assert not schedules_of(shop)["sweep"].flag_now().paused
    assert "Not paused, so nothing was done: 'sweep'" in act(ada, ENTRIES, "resume", [chosen])[1]
    wait_until(lambda: recorded(shop, "entry_resumed"), message="it is in the journal")
    assert recorded(shop, "entry_resumed")[0].who == "ada"


def test_ticks_are_skipped_and_a_run_is_asked_for(shop, ada):
    live(shop, "ship")
    assert "The next 4 ticks are passed over: 'ship'" in act(ada, ENTRIES, "skip", ['"ship"'], count="4")[1]
    assert schedules_of(shop)["ship"].flag_now().skip == 4
    assert re.match(r"A beat publishes 'ship', run 4, as task \S+\.", act(ada, ENTRIES, "run", ['"ship"'])[1])
    # it is no beat's entry
    assert "o beat that runs lists 'sweep'" in act(ada, ENTRIES, "run", ['"sweep"'])[1]


@pytest.mark.parametrize("driver", ["database"], indirect=True)
@pytest.mark.parametrize(
    ("action", "asked", "said"),
    [
        ("pause", {"until": "yesterday"}, "until is &#x27;yesterday&#x27;"),
        ("pause", {"until": "2001-01-01T00:00"}, "a time in ISO 8601"),
        ("skip", {"count": "-1"}, "greater than or equal to 0"),
        ("skip", {"count": ""}, "required"),
        ("resume", {"catchup": "some"}, "not one of the available choices"),
    ],
)
def test_what_is_asked_wrongly_is_said_beside_it_and_nothing_is_done(shop, ada, action, asked, said):
    live(shop, "sweep")
    answer = ada.post(ENTRIES, {"action": action, "_selected_action": ['"sweep"'], "post": "yes", **asked})
    assert answer.status_code == 200
    assert said in answer.content.decode()
    flag = schedules_of(shop)["sweep"].flag_now()
    assert (flag.paused, flag.skip) == (False, 0)


def test_who_may_only_view_entries_does_nothing_with_them(shop):
    live(shop, "sweep")
    viewer, stranger = client_of("viewer", "view_entry"), client_of("stranger", "change_lock")
    sent = {"action": "pause", "_selected_action": ['"sweep"'], "post": "yes"}
    assert {row[0] for row in rows_of(viewer, ENTRIES)} == {""}
    assert "Pause" not in shown(viewer, ENTRIES)
    assert viewer.post(ENTRIES, sent).status_code == 403
    assert stranger.get(ENTRIES).status_code == stranger.post(ENTRIES, sent).status_code == 403
    assert stranger.get(f"{ENTRIES}runs/", {"name": "sweep"}).status_code == 403
    assert not schedules_of(shop)["sweep"].flag_now().paused


@pytest.mark.parametrize("driver", ["database"], indirect=True)
def test_what_is_in_no_table_has_no_form(shop, ada):
    for url in (f"{ENTRIES}add/", f"{ENTRIES}1/change/", f"{LOCKS}add/", f"{LOCKS}1/delete/"):
        assert ada.get(url).status_code == 404, url


# -- the runs of an entry ----------------------------------------------------------------------------------------------


def journal(app, *records):
    texts = [encode(event, fields, ago) for event, ago, fields in records]
    journal.count += 1
    assert home_store_of(app).journal.append(name_of(app), f"batch {journal.count}", texts, keep=10_000)


journal.count = 0


def skipped(entry, ago=60.0, **more):
    due = (datetime.now(timezone.utc) - timedelta(seconds=ago)).isoformat()
    tick = {"entry": entry, "task_name": "shop.work", "task_id": f"{entry}-{ago}", "due": due}
    of_run = {**tick, "execution_id": f"{entry}-{ago}.1", "hostname": "w2@host", "lock_key": "shop.work"}
    return (
        ("tick_published", ago, {**tick, "run": 1, "late": 0.1, "hostname": "b1"}),
        ("task_skipped", ago - 0.2, {**of_run, "reason": "locked", "holder": "w1@host pid 7", **more}),
    )


def test_from_a_periodic_task_one_comes_to_its_runs_and_why_one_was_skipped(shop, ada):
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    every = IntervalSchedule.objects.create(every=1, period="hours")
    row = PeriodicTask.objects.create(name="clean & <b>tidy</b>", task="shop.work", interval=every)
    journal(shop, *skipped(row.name))
    for page in ("/admin/django_celery_beat/periodictask/", f"/admin/django_celery_beat/periodictask/{row.pk}/change/"):
        (link,) = re.findall(rf'href="({ENTRIES}runs/[^"]*)"', shown(ada, page))
        runs = shown(ada, html.unescape(link))
        assert "was skipped at" in runs
        assert "was held by w1@host pid 7" in html.unescape(runs)
        assert "<b>tidy" not in runs
    assert "runs/" not in shown(ada, "/admin/django_celery_beat/periodictask/add/")


def test_the_page_of_an_entry_tells_what_it_is_and_when_it_is_due(shop, ada):
    live(shop, "sweep")
    journal(shop, *(record for ago in range(600, 60, -5) for record in skipped("sweep", ago)))
    page = html.unescape(shown(ada, f"{ENTRIES}runs/", name="sweep"))
    for said in ("shop.work", "every minute", "next due", "skipped"):
        assert said in page, said
    assert page.count("<bdi>skipped</bdi></td>") == 100


def test_an_entry_that_nobody_knows_is_a_page_that_says_so(shop, ada):
    for name in ("unknown", "", "../../etc/passwd", "<script>alert(1)</script>", "\0", "x" * 5_000):
        page = shown(ada, f"{ENTRIES}runs/", 404, name=name)
        assert "Nothing is known of an entry" in page
        assert "<script>alert" not in page


# -- whatever is in a name, and whatever is away -----------------------------------------------------------------------


def test_whatever_is_in_a_name_or_a_key_is_text(shop, ada):
    for bad in HOSTILE:
        lock(shop, bad, bad)
        journal(shop, *skipped(bad, holder=bad, hostname=bad))
    live(shop, *HOSTILE)
    chosen = [row[0] for row in rows_of(ada, ENTRIES)]
    assert len(chosen) == len(HOSTILE) + 2
    pages = [shown(ada, LOCKS), shown(ada, ENTRIES)]
    pages += [shown(ada, f"{ENTRIES}runs/", name=bad) for bad in HOSTILE]
    pages += [act(ada, ENTRIES, "pause", chosen, note=HOSTILE[0])[0], shown(ada, ENTRIES)]
    pages.append(
        ada.post(LOCKS, {"action": "release", "_selected_action": [r[0] for r in rows_of(ada, LOCKS)]}).content.decode()
    )
    for page in pages:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "49" not in re.findall(r"<bdi>(.*?)</bdi>", page)
        visible = re.sub(r'value="[^"]*"|href="[^"]*"', "", page)
        assert not set("\u202e\u2066\u200f") & set(visible)
        assert "w" * 400 not in visible
    paused = schedules_of(shop)
    assert all(paused[name].flag_now().paused for name in HOSTILE)


def test_a_store_that_is_away_is_a_message(djangos, make_app, tmp_path, spare_server):
    from celery import _state

    djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"), "default")
    client = client_of("ada")
    options = {"socket_timeout": 0.3, "socket_connect_timeout": 0.3}
    url = spare_server.url.replace("redis://", "redis://:secret@")
    app = make_app(lockbeat_driver="redis", lockbeat_redis_url=url, lockbeat_redis_options=options)
    spare_server.stop()
    current = _state._tls.current_app
    try:
        app.set_current()
        for page in (LOCKS, ENTRIES, f"{ENTRIES}runs/?name=sweep"):
            said = shown(client, page)
            assert "secret" not in said
            assert "errornote" in said or 'class="warning"' in said
        assert "nothing was done" not in act(client, ENTRIES, "pause", ['"sweep"'])[1]
        make_app(lockbeat_driver="nonsense").set_current()
        assert "nonsense" in shown(client, LOCKS)
    finally:
        _state._tls.current_app = current


@pytest.mark.parametrize("driver", ["redis"], indirect=True)
def test_a_journal_that_is_elsewhere_is_said(shop, ada):
    assert "Entries" in told(ada.get("/admin/lockbeat/journalrecord/"))


def test_locks_and_entries_are_in_no_table_and_a_dump_asks_for_none(shop, tmp_path):
    from django.core.management import call_command

    dump = tmp_path / "dump.json"
    with pytest.warns(Warning, match="proxy model"):
        call_command("dumpdata", "lockbeat.lock", "lockbeat.entry", output=str(dump))
    assert json.loads(dump.read_text() or "[]") == []
