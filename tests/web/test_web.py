"""The page over HTTP: what each view shows, that it only shows, and that whatever is in a name or an address is only text."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any

import days
import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar
from servers import Server, free_port, wait_until
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from celery_lockbeat import LockedTask
from celery_lockbeat.insight.feed import Feed
from celery_lockbeat.journal.ticks import OUTCOMES
from celery_lockbeat.schedules import Cron, Every, Once
from celery_lockbeat.stores.base import EntryState
from celery_lockbeat.web import drawing, hub, make_app, rows, views, words
from celery_lockbeat.web.app import Page

VIEWS = ("/", "/runs", "/locks", "/beats", "/health", "/entry?name=mail-digest", "/entry/story?name=mail-digest")

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7*7 }}{% raw %}",
    "../../etc/passwd",
    "javascript:alert(1)",
    "\u202ereversed\u2066\u200f",
    "😀👩‍👩‍👧 \x1b[2J\x00",
    "\ud800 half",
    "漢" * 60,
    "w" * 10_000,
)


class Elements(HTMLParser):
    """The elements of a page, and what is text in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def known(page: Page) -> Page:
    """A page that knows all that there is."""
    with page.hub.model():
        pass
    wait_until(lambda: _is_known(page), message="the page knows all")
    return page


def _is_known(page: Page) -> bool:
    with page.hub.model() as model:
        return bool(model.away) or (model.knows_beats and model.is_read and bool(model.locks_by_store()))


def client_for(page: Page, prefix: str = "") -> TestClient:
    served = Starlette(routes=[Mount(prefix, page.asgi)]) if prefix else page.asgi
    client = TestClient(served, raise_server_exceptions=False)
    client.page = page
    return client


@pytest.fixture
def client_of():
    """A client of the page of an app."""
    pages = []

    def make(app) -> TestClient:
        pages.append(known(Page(app)))
        return client_for(pages[-1])

    yield make
    for page in pages:
        page.hub.end()


@pytest.fixture(scope="module")
def shop():
    """An app with six hours behind it, for all tests that only look."""
    with Server() as server:
        app = days.app_of(lambda **settings: Celery("shop", broker=server.url, set_as_current=False))
        days.fill(app)
        yield app
        app.close()


@pytest.fixture(scope="module")
def client(shop):
    page = known(Page(shop))
    yield client_for(page)
    page.hub.end()


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_each_view_shows_what_there_is(client):
    told = {view: Elements(client.get(view).text).text for view in VIEWS}
    for name in days.JOBS:
        assert name in told["/"]
    for words_ in ("every 5 minutes", "at 03:00, on day 1 of the month", "failing", "skipped"):
        assert words_ in told["/"], words_
    assert "sync-orders" in told["/runs"]
    assert "its lock 'shop.sync_orders' was held by" in told["/runs"]
    assert "customers:4711" in told["/locks"]
    assert "merge_customer" in told["/locks"]
    assert "web-1.beat" in told["/beats"]
    assert "celery@jobs-1" in told["/beats"]
    assert "next due" in told["/entry?name=mail-digest"]
    assert "the run is skipped" in told["/entry?name=mail-digest"]
    story = told["/entry/story?name=mail-digest"]
    assert "SMTPServerDisconnected" in story
    assert "Failures, by error" in story


def test_what_an_entry_is_called_with_and_where_it_is_written_is_told(client_of, make_app):
    app = make_app(
        lockbeat_driver="redis", broker_url="redis://:hush@127.0.0.1:1/0", lockbeat_redis_url=make_app().conf.broker_url
    )
    app.task(name="t", base=LockedTask)(words.cut)
    called = {"args": (1, "<b>"), "kwargs": {"where": "redis://:hush@host", "long": "x" * 5_000}}
    app.conf.beat_schedule = {"e": {"task": "t", "schedule": 60, **called}}
    told = Elements(client_of(app).get("/entry?name=e").text).text
    assert "1, '<b>', where='redis://:**@host'" in told
    assert "x" * 400 not in told
    assert "words.py:" in told
    assert "beat_schedule, or a decorator" in told


def test_a_beat_that_others_have_taken_off_the_list_is_silent_since_it_was_heard_from(client_of, make_app):
    app = make_app(lockbeat_driver="redis")
    day = days.Day(app)
    day.announce("dead.beat", "beat")
    tick = {"entry": "e", "task_name": "t", "late": 0.1, "hostname": "dead.beat"}
    day.journal([("tick_published", 20, {**tick, "due": datetime.now(timezone.utc).isoformat()})])
    told = Elements(client_of(app).get("/beats").text)
    assert "silent for" in told.text
    assert re.search(r"\+20\.\d s \(wrong\)", told.text), (
        "a tick that is due now was published 20 s ago: its clock is ahead"
    )
    (ago,) = [each["data-for"] for each in told.all("span") if "data-for" in each]
    assert 0 <= time.time() - float(ago) < 60


def test_who_else_holds_a_lock_and_who_waits_for_it_is_shown(client):
    page = client.get("/locks").text
    told = " ".join(Elements(page).text.split())
    assert "3 wait for it" in told
    line = re.findall(r"<li><bdi>(.*?)</bdi>", page)
    assert [re.search(r"\[(\w+)\]", each)[1] for each in line] == ["6d1f09aa", "e83b7c54", "1105fe9d"]
    # one key, and each of its holders
    assert page.count("<bdi>warehouse</bdi>") == 1
    assert "2 hold it" in told
    for holder in ("shop.export_orders[44d0c1b2]", "shop.count_stock[7f23ae60]"):
        assert holder in told
    assert "warehouse" in client.get("/locks?q=count_stock").text
    assert "customers:4711" not in client.get("/locks?q=count_stock").text


def test_what_is_left_of_a_lease_runs_down_though_nothing_new_is_known_of_it(client):
    def end() -> float:
        return float(re.search(r"sync_orders</bdi>.*?data-until=\"([\d.]+)\"", client.get("/locks").text, re.DOTALL)[1])

    first, began = end(), time.monotonic()
    wait_until(lambda: time.monotonic() > began + 0.7)
    assert abs(end() - first) < 0.3


def test_errors_that_differ_by_numbers_are_one(client):
    story = client.get("/entry/story?name=mail-digest&span=21600").text
    (group,) = re.findall(r'<td class="number">(\d+)</td>', story)
    assert int(group) >= 3


def test_the_search_the_filters_and_the_order_are_obeyed(client):
    def names(url: str) -> list[str]:
        return re.findall(r'<tr id="e\w+".*?<bdi>(.*?)</bdi>', client.get(url).text, re.DOTALL)

    assert names("/") == ["celery.backend_cleanup", *sorted(days.JOBS)]
    assert names("/?q=ORDERS") == ["export-orders", "sync-orders"]
    assert names("/?state=ok&q=orders") != names("/?q=orders")
    assert set(names("/?sort=next+due")) > set(days.JOBS)
    assert names("/?q=nothing-like-this") == []
    assert "show all of them" in client.get("/?q=nothing-like-this").text
    outcomes = set(re.findall(r'class="outcome o-(\w+)"', client.get("/runs?outcome=failed").text))
    assert outcomes == {"failed"}
    assert "mail-digest" not in client.get("/runs?q=sync-orders").text


def test_what_is_empty_says_what_to_do(client_of, make_app):
    client = client_of(make_app(lockbeat_driver="redis"))
    assert "celery -A proj beat" in client.get("/?q=nothing").text or "No entry" in client.get("/").text
    assert "Nothing has run yet" in client.get("/runs").text
    assert "No beat runs: nothing of this is published" in client.get("/").text
    assert "No lock is held" in client.get("/locks").text
    assert "No beat runs" in client.get("/beats").text
    assert "No worker has announced itself" in client.get("/beats").text


def test_without_a_journal_the_page_says_so(client_of, make_app):
    app = make_app(lockbeat_driver="redis", lockbeat_journal=0)
    page = Page(app)
    client = TestClient(page.asgi)
    assert "No journal is written" in client.get("/runs").text
    assert "Runs are not shown" in client.get("/").text
    page.hub.end()


def test_the_doctors_findings_are_shown_without_waiting_for_them(client_of, shop):
    client = client_of(shop)
    assert "This takes a moment" in client.get("/health").text
    wait_until(lambda: "what to do" in client.get("/health?part=0").text, message="findings")
    text = Elements(client.get("/health").text).text
    assert "celery -A proj lockbeat doctor" in text


def test_a_part_has_only_the_rows_that_have_changed(client_of, make_app):
    app = make_app(lockbeat_driver="redis")
    app.conf.beat_schedule = {f"entry-{n:03}": {"task": "t", "schedule": 3600} for n in range(100)}
    client = client_of(app)

    with client.page.hub.model() as model:
        before = model.version
    days.Day(app).journal([("tick_published", 1, {"entry": "entry-007", "task_name": "t", "late": 0.1})])

    def is_known() -> bool:
        with client.page.hub.model() as model:
            return bool(model.row("entry-007").records)

    wait_until(is_known, message="the record is known")
    part = client.get(f"/?part={before}").text
    assert re.findall(r"<bdi>(entry-\d+)</bdi></a>", part) == ["entry-007"]
    assert "<html" not in part
    assert len(re.findall(r"<bdi>(entry-\d+)</bdi></a>", client.get("/").text)) == 100


def test_a_part_has_who_has_become_late_since_and_not_who_was_before(client_of, make_app):
    app = make_app(lockbeat_driver="redis")
    names = [f"entry-{n:03}" for n in range(100)]
    app.conf.beat_schedule = {name: {"task": "t", "schedule": 60} for name in names}
    now, beats = datetime.now(timezone.utc), days.home_store_of(app).beats
    # due every minute: all but one are late for a while, that one since 3 s
    ago = dict.fromkeys(names, 100.0) | {"entry-007": 63.0}
    states = [(name, EntryState(1, (now - timedelta(seconds=ago[name])).isoformat())) for name in names]
    beats.join(app.main, "b")
    beats.list_entries(app.main, "b", states, complete=True)
    client = client_of(app)

    def late(at: float) -> list[str]:
        part = client.get(f"/?part={2**39}&at={at}").text  # to which nothing is new but by itself
        return re.findall(r"<bdi>(entry-\d+)</bdi></a>", part)

    assert len(late(0)) == 100
    assert late(now.timestamp() - 4) == ["entry-007"]
    assert client.get("/?part=1&at=x").status_code == 400


@pytest.fixture(scope="module")
def long_list(shop):
    """A client of the page of an app with 1,200 entries, one of which has run often, as has the first of all."""
    app = Celery("long", broker=shop.conf.broker_url, set_as_current=False)
    app.conf.beat_schedule = {f"entry-{n:04}": {"task": "t", "schedule": 3600} for n in range(1_200)}
    days.Day(app).journal(
        ("task_succeeded", n / 10, {"execution_id": f"x{n}", "task_name": "t", "duration_ms": 1, "entry": "entry-0001"})
        for n in range(1_000)
    )
    outcomes = (("task_failed", {"error_name": "E"}), ("task_succeeded", {"duration_ms": 1}), ("task_died", {}))
    days.Day(app).journal(
        (event, n / 10, {"execution_id": f"y{n}", "task_name": "t", "entry": "entry-0000", **more})
        for n in range(40)
        for event, more in [outcomes[n % 3]]
    )
    page = known(Page(app))
    yield client_for(page)
    page.hub.end()
    app.close()


def test_pages_are_bounded(long_list):
    first, second = long_list.get("/").text, long_list.get("/?page=2").text
    assert first.count('<th role="rowheader"') == rows.SHOWN
    assert second.count('<th role="rowheader"') >= 200
    assert "page 1 of 2" in first
    wait_until(lambda: long_list.get("/runs").text.count("<details>") == views.RUNS, message="runs")
    assert long_list.get("/entry/story?name=entry-0001&span=3600").text.count("<details>") == views.RUNS


def test_no_more_than_so_many_locks_are_listed(client_of, make_app):
    app = make_app(lockbeat_driver="redis")
    day = days.Day(app)
    for number in range(views.LOCKS + 10):
        day.lock(f"key-{number}", "somebody")
    page = client_of(app).get("/locks").text
    assert page.count("data-until=") == views.LOCKS
    assert f"The {views.LOCKS} that are held for longest, of {views.LOCKS + 10}" in page


def sent_by(page: Page, note: Callable[[], int]) -> list[tuple[str, int]]:
    """What a server is given of the list of entries, piece by piece, each with what was noted by then."""
    pieces: list[tuple[str, int]] = []

    async def receive() -> Any:
        await asyncio.Event().wait()  # nothing more is asked, and nobody goes

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            pieces.append((message["body"].decode(), note()))

    of_request = {"method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": [], "root_path": ""}
    asyncio.run(page.asgi({"type": "http", "scheme": "http", "server": ("127.0.0.1", 80), **of_request}, receive, send))
    return pieces


def test_what_is_seen_first_of_a_long_list_is_sent_before_its_end_is_made(long_list, monkeypatch):
    made: list[str] = []
    entry_row = rows._entry_row
    monkeypatch.setattr(
        rows, "_entry_row", lambda model, row, *more: made.append(row.name) or entry_row(model, row, *more)
    )
    (first, by_then), *rest = sent_by(long_list.page, lambda: len(made))
    assert 'id="counts"' in first
    # a tall window shows some forty
    assert first.count('<th role="rowheader"') > 40
    assert by_then < 200
    whole = first + "".join(piece for piece, _ in rest)
    assert re.findall(r"<bdi>(entry-\d+)</bdi></a>", whole) == [f"entry-{n:04}" for n in range(rows.SHOWN - 1)], (
        "all but Celery's own"
    )
    # a thousand of them are laid out: a strip has an element for each kind of outcome, not for each run
    (row,) = [each for each in whole.split("<tr id=") if "entry-0000" in each]
    assert "the last 30: " in row
    assert len(Elements(row).elements) < 26


def test_what_goes_wrong_within_a_long_list_is_said_at_its_end(long_list, monkeypatch):
    entry_row, made = rows._entry_row, iter(range(10_000))

    def breaks(*given):
        if next(made) == 500:
            raise IndexError("within a row")
        return entry_row(*given)

    monkeypatch.setattr(rows, "_entry_row", breaks)
    answer = long_list.get("/")
    assert answer.text.endswith(
        'role="alert"><strong>The page has failed here. What went wrong is in its log.</strong></p>'
    )
    assert "IndexError" not in answer.text
    assert "entry-0400" in answer.text


def test_a_time_with_many_runs_has_columns_and_one_with_few_has_bars(client_of, make_app):
    app = make_app(lockbeat_driver="redis", lockbeat_journal=100_000)
    app.conf.beat_schedule = {"busy": {"task": "t", "schedule": 10}}
    days.Day(app).journal(
        (
            "task_succeeded",
            3600 - 10 * n,
            {"execution_id": f"x{n}", "task_name": "t", "duration_ms": 900, "entry": "busy", "task_id": f"i{n}"},
        )
        for n in range(360 * 3)
        if 10 * n < 3600
    )
    client = client_of(app)
    story = client.get("/entry/story?name=busy&span=600").text
    few = story.count('class="b-succeeded"')
    assert 50 <= few <= 62
    days.Day(app).journal(
        (
            "task_failed",
            3000 - n,
            {
                "execution_id": f"y{n}",
                "task_name": "t",
                "duration_ms": 9,
                "entry": "busy",
                "task_id": f"j{n}",
                "error_name": "E",
            },
        )
        for n in range(2_000)
    )
    story = client.get("/entry/story?name=busy&span=3600").text
    assert story.count('<rect class="b-') <= 2 * drawing.COLUMNS
    assert "2000 failed" in story


# -- it only looks, and says what is wrong -----------------------------------------------------------------------------


def test_no_route_writes(client):
    for route in client.page.routes:
        assert route.methods == {"GET", "HEAD"}, route.path
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = client.request(
                method, route.path.format(digest="x", name="y"), headers={"Origin": "https://evil.example"}
            )
            assert answer.status_code == 405
    assert "set-cookie" not in client.get("/").headers


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/entry?name=unknown", 404),
        ("/entry?name=../../etc/passwd", 404),
        ("/entry", 400),
        ("/entry/story?name=unknown", 404),
        ("/entry/story?name=mail-digest&span=0", 400),
        ("/entry/story?name=mail-digest&span=nan", 400),
        ("/entry/story?name=mail-digest&span=1e99", 400),
        ("/entry/story?name=mail-digest&from=5&to=3", 400),
        ("/entry/story?name=mail-digest&from=1e300&to=1e301", 400),
        ("/entry/story?name=mail-digest&from=yesterday&to=today", 400),
        ("/?page=0", 400),
        ("/?page=-1", 400),
        ("/?page=99999999999999999999", 400),
        ("/?page=²", 400),
        ("/?part=x", 400),
        ("/?sort=password", 400),
        ("/?state=broken", 400),
        ("/?q=" + "x" * 201, 400),
        ("/runs?outcome=nothing", 400),
        ("/nowhere", 404),
        ("/static/x/../../../setup.cfg", 404),
        ("/static/x/..%2f..%2fapp.py", 404),
        ("/static/x/page.css", 404),
    ],
)
def test_what_is_asked_wrongly_is_told_on_a_page(client, url, status):
    answer = client.get(url)
    assert answer.status_code == status
    assert "Traceback" not in answer.text
    assert "<h1>" in answer.text or 'role="alert"' in answer.text


def test_no_traceback_reaches_the_browser(client, monkeypatch):
    monkeypatch.setattr(views, "RUNS", None)  # whatever goes wrong within a view
    for url in ("/runs", "/runs?part=1"):
        answer = client.get(url)
        assert answer.status_code == 500
        assert "TypeError" not in answer.text
        assert "in its log" in answer.text
        assert "Content-Security-Policy" in answer.headers


def test_a_store_that_is_away_is_shown_with_what_was_before(client_of, make_app, spare_server):
    app = days.app_of(make_app, lockbeat_redis_url=spare_server.url, lockbeat_redis_options={"socket_timeout": 0.3})
    days.fill(app, 600)
    client = client_of(app)
    spare_server.kill()
    wait_until(lambda: 'role="alert"' in client.get("/").text, message="it is said")
    answer = client.get("/")
    assert answer.status_code == 200
    assert "has not answered for" in answer.text
    assert "sync-orders" in answer.text
    assert client.get("/entry/story?name=sync-orders&span=900").status_code == 503
    assert client.get("/entry?name=sync-orders").status_code == 200
    spare_server.start()
    wait_until(lambda: 'role="alert"' not in client.get("/").text, message="it goes on by itself")


def test_a_store_that_is_away_from_the_start_on_is_shown(make_app):
    page = Page(make_app(lockbeat_driver="redis", lockbeat_redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    client = client_for(page)
    wait_until(lambda: 'role="alert"' in client.get("/").text, message="it is said")
    assert [client.get(view).status_code for view in VIEWS[:5]] == [200] * 5
    page.hub.end()


# -- names, errors and keys are text -----------------------------------------------------------------------------------


def test_whatever_is_in_a_name_or_an_error_is_text(client_of, make_app):
    app = make_app(lockbeat_driver="redis")
    day = days.Day(app)
    app.conf.beat_schedule = {name: {"task": name, "schedule": 60} for name in HOSTILE if name.isprintable()}
    for number, bad in enumerate(HOSTILE):
        tick = {"entry": bad, "task_name": bad, "task_id": f"id-{number}", "hostname": bad}
        of_run = {**tick, "execution_id": f"x{number}", "lock_key": bad, "holder": bad}
        day.journal(
            [
                (
                    "tick_published",
                    20,
                    {**tick, "late": 0.1, "due": (datetime.now(timezone.utc) - timedelta(seconds=20)).isoformat()},
                ),
                ("task_skipped", 15, {**of_run, "reason": bad}),
                (
                    "task_failed",
                    10,
                    {**of_run, "execution_id": f"y{number}", "duration_ms": 5, "error_name": bad, "error_message": bad},
                ),
                ("tick_missed", 5, {**tick, "count": 3, "reason": bad}),
            ]
        )
        day.announce(f"member-{number}", "worker", node=bad, host=bad, version=bad)
        with suppress(UnicodeEncodeError):
            day.lock(bad, bad)
    client = client_of(app)
    with client.page.hub.model() as model:
        known = [row.name for row in model.all_rows()]
    assert len(known) >= len(HOSTILE)
    wait_until(lambda: client.get("/health?part=0") and client.page.known.health.at is not None, message="the doctor")
    urls = ["/", "/runs", "/locks", "/beats", "/health"]
    for name in known:
        urls += [
            str(client.build_request("GET", path, params={"name": name.encode("utf-8", "replace").decode()}).url)
            for path in ("/entry", "/entry/story")
        ]
    for url in urls:
        answer = client.get(url)
        if "ud800" not in url and "%3F" not in url:
            assert answer.status_code in (200, 404), url
        is_harmless(answer.text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in client.get("/").text
    assert "49" not in re.findall(r"<bdi>(.*?)</bdi>", client.get("/").text)


def is_harmless(html: str) -> None:
    page = Elements(html)
    own = ("script", "link", "meta", "style", "img", "iframe", "object", "embed", "base")
    for tag, attributes in page.elements:
        if tag in own:
            assert tag in ("link", "meta") or (tag == "script" and str(attributes["src"]).startswith("/static/")), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style"
            assert (
                "javascript:" not in (value or "")
                or name in ("title", "aria-label", "value")
                or "javascript%3A" in (value or "")
            ), (name, value)
    for bad in "\u202e\u2066\u200f\x1b\x00":
        assert bad not in html
    assert max(map(len, re.findall("w+", page.text))) < 2_000


def test_every_answer_tells_the_browser_to_run_nothing_else(client):
    for url in (*VIEWS, "/nowhere", "/entry", client.get("/").text.split('src="')[1].split('"')[0]):
        headers = client.get(url).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_it_is_mounted_under_any_prefix(client):
    client = client_for(client.page, "/deep/prefix")
    page = Elements(client.get("/deep/prefix/").text)
    for element in (*page.all("a"), *page.all("link"), *page.all("script")):
        target = element.get("href") or element.get("src")
        assert target.startswith(("/deep/prefix/", "#", "?")), target
    for each in (*page.all("link"), *page.all("script")):
        assert client.get(each.get("href") or each.get("src")).status_code == 200
    assert client.get("/deep/prefix/entry?name=mail-digest").status_code == 200
    assert client.get("/").status_code == 404
    assert client.get("/deep/").status_code == 404
    assert client.get("/deep/prefixed/").status_code == 404


def test_make_app_is_an_asgi_app(shop):
    client = TestClient(make_app(shop))
    assert "Schedules" in client.get("/").text


# -- who follows -------------------------------------------------------------------------------------------------------


def test_who_follows_is_told_of_news_and_lets_go_at_the_end(make_app):
    page = Page(make_app(lockbeat_driver="redis"))
    page.hub.start()

    async def follow() -> int:
        told = 0
        async for _ in page.hub.news():
            told += 1
            if told == 2:
                page.hub.end()
        return told

    assert asyncio.run(asyncio.wait_for(follow(), 20)) == 2
    assert not page.hub._followers


def test_nobody_follows_for_long_without_asking_anew(client, monkeypatch):
    monkeypatch.setattr(hub, "FOLLOWED_FOR", 0.5)
    answer = client.get("/events")  # which ends
    assert answer.text.startswith("retry: 2000\n\nevent: news\n")
    assert answer.text.endswith("event: again\ndata: \n\n")
    assert not client.page.hub._followers


def test_no_more_than_so_many_follow(client, monkeypatch):
    monkeypatch.setattr(hub, "FOLLOWERS", 0)
    assert client.get("/events").status_code == 503


def test_while_nobody_looks_the_store_is_not_asked(make_app, monkeypatch):
    app = make_app(lockbeat_driver="redis")
    kind = type(days.home_store_of(app).journal)
    records, asked = kind.records, []

    def counted(store, name, **options):
        asked.extend([1] * (name == app.main))
        return records(store, name, **options)

    monkeypatch.setattr(kind, "records", counted)
    looks = [True]
    feed = Feed(app, lambda: None, lambda: looks[0])
    monkeypatch.setattr("celery_lockbeat.insight.feed.ASKED_EVERY", 0.02)
    feed.start()
    wait_until(lambda: len(asked) > 3)
    looks[0] = False
    wait_until(lambda: _is_quiet(asked), message="it is asked no more")
    looks[0] = True
    before = len(asked)
    wait_until(lambda: len(asked) > before, message="it is asked again")
    feed.end()


def _is_quiet(asked: list[int]) -> bool:
    before = len(asked)
    with suppress(BaseException):
        wait_until(lambda: len(asked) > before, 0.5)
    return len(asked) == before


def test_the_journal_is_read_once_for_an_entry_and_then_only_what_is_new(client, shop, monkeypatch):
    url = "/entry/story?name=warm-cache&span=900"
    first = client.get(url).text
    read = []
    kind = type(days.home_store_of(shop).journal)
    records = kind.records

    def counted(*arguments, **options):
        found = records(*arguments, **options)
        read.extend(found)
        return found

    monkeypatch.setattr(kind, "records", counted)
    tick = {"entry": "warm-cache", "task_name": "shop.warm_cache", "task_id": "the-new-one", "late": 0.1}
    days.Day(shop).journal([("tick_published", 0, {**tick, "due": datetime.now(timezone.utc).isoformat()})])
    second = client.get(url).text
    assert "the-new-one" in second
    assert "the-new-one" not in first
    assert len(read) < 50


# -- words and signs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (schedule(timedelta(seconds=1)), "every second"),
        (schedule(timedelta(seconds=90)), "every 90 seconds"),
        (schedule(timedelta(minutes=5)), "every 5 minutes"),
        (schedule(timedelta(hours=1)), "every hour"),
        (schedule(timedelta(days=7)), "every 7 days"),
        (schedule(timedelta(milliseconds=250)), "every 250 ms"),
        (crontab(minute="0", hour="3"), "at 03:00"),
        (Cron("0 3 * * *"), "at 03:00"),
        (Cron("*/10 * * * * *"), "every 10 seconds"),
        (Cron("H 3 * * *"), "H 3 * * *"),
        (Every(90), "every 90 seconds"),
        (Once(after=5), "once, 5 s after a cold start of the beats"),
        (Once(at=datetime(2027, 1, 1, tzinfo=timezone.utc)), "once, at 2027-01-01 00:00:00+00:00"),
        (crontab(minute="*/15"), "every 15 minutes"),
        (crontab(minute="30", hour="4", day_of_week="mon"), "at 04:30, only on Monday"),
    ],
)
def test_a_schedule_is_said_in_words(when, said):
    assert words.words_of(when) == said


def test_a_schedule_that_nobody_can_say_is_written_as_it_is():
    assert (
        words.words_of(solar("sunset", 52.5, 13.4, nowfun=lambda: datetime.now(timezone.utc))) == "sunset at 52.5, 13.4"
    )
    assert words.words_of(object()).startswith("object object")


def test_each_outcome_has_a_shape_of_its_own():
    shapes = {outcome: re.search(r' d="([^"]+)"', drawing.mark(outcome))[1] for outcome in OUTCOMES}
    assert len(set(shapes.values())) == len(OUTCOMES)
    strip = drawing.strip(["succeeded", "failed", "skipped"])
    assert 'aria-label="the last 3: 1 succeeded, 1 failed, 1 skipped; the newest skipped"' in strip
    assert strip.count("<path") == 3
    assert "no runs yet" in drawing.strip([])
