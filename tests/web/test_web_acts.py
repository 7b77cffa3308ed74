"""What may be done by the page, by whom, and what a page of somebody else's cannot do by it."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import days
import pytest
from servers import wait_until
from starlette.testclient import TestClient
from test_web import HOSTILE, is_harmless, known

from celery_lockbeat.control import schedules_of
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.journal import read
from celery_lockbeat.web import make_app
from celery_lockbeat.web.acts import ACTS
from celery_lockbeat.web.app import Page

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def shop():
    with days.shop() as app:
        yield app


@pytest.fixture
def client(shop):
    page = known(Page(shop, allow_changes=True, user=lambda scope: "ada"))
    client = TestClient(page.asgi, raise_server_exceptions=False)
    client.page = page
    yield client
    page.hub.end()


def ask(client, **form: str) -> dict[str, str]:
    """Open the page on which an act is asked for; return what its form would send."""
    answer = client.get(f"/act?{urlencode(form)}")
    assert answer.status_code == 200, answer.text
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', answer.text))


def send(client, form: dict[str, str], **headers: str):
    return client.post("/act", content=urlencode(form), headers={**FORM, "Sec-Fetch-Site": "same-origin", **headers})


def told(app, event: str) -> list:
    return [record for record in read(app, limit=50) if record.event == event]


def test_a_pause_is_asked_done_shown_and_in_the_journal_with_who_did_it(client, shop):
    form = ask(client, act="pause", name="mail-digest")
    answer = send(client, {**form, "until": "2h", "note": "the <mail> moves"})
    assert answer.status_code == 200
    assert "is paused until" in answer.text
    assert schedules_of(shop)["mail-digest"].flag_now().paused
    wait_until(lambda: told(shop, "entry_paused"), message="it is in the journal")
    (record,) = told(shop, "entry_paused")
    assert (record.entry, record.more.get("who") or record.who) == ("mail-digest", "ada")
    wait_until(lambda: "Paused by ada" in client.get("/entry?name=mail-digest").text, message="it is shown")
    page = client.get("/entry?name=mail-digest").text
    assert "the &lt;mail&gt; moves" in page
    assert ">Resume</a>" in page
    assert ">Pause</a>" not in page
    assert "mail-digest" in client.get("/?state=paused").text
    form = ask(client, act="resume", name="mail-digest")
    assert "is resumed" in send(client, form).text
    assert not schedules_of(shop)["mail-digest"].flag_now().paused


def test_a_run_and_a_skip_are_done(client, shop):
    answer = send(client, ask(client, act="run", name="warm-cache"))
    assert re.search(r"publishes (&#39;|')warm-cache(&#39;|'), run \d+", answer.text)
    assert "are passed over" in send(client, {**ask(client, act="skip", name="warm-cache"), "count": "3"}).text
    assert schedules_of(shop)["warm-cache"].flag_now().skip == 3
    for wrong in ("-1", "x", "", "9" * 20, "²"):
        assert send(client, {**ask(client, act="skip", name="warm-cache"), "count": wrong}).status_code == 400


def test_a_backfill_is_a_dry_run_first_and_can_be_cancelled(client, shop):
    first = client.get("/act?act=backfill&name=purge-sessions").text
    assert 'method="get"' in first
    form = ask(client, act="backfill", name="purge-sessions", **{"from": "5h ago", "to": "now"})
    shown = client.get("/act?act=backfill&name=purge-sessions&from=5h+ago&to=now").text
    assert re.search(
        r"A dry run: [45] ticks .*? would be published:</p>\s*<ul>(<li>[^<]*:15:00 UTC</li>){4,5}</ul>", shown
    )
    assert not schedules_of(shop)["purge-sessions"].backfills(), "nothing was asked for yet"
    assert re.search(r"The beats publish [45] ticks", send(client, form).text)
    (backfill,) = schedules_of(shop)["purge-sessions"].backfills()
    assert backfill.who == "ada"
    asked = f"0 of {backfill.total} ticks of"
    wait_until(lambda: asked in client.get("/entry?name=purge-sessions").text, message="how far it is is shown")
    assert client.get("/act?act=backfill&name=purge-sessions&from=nonsense&to=now").status_code == 400
    (link,) = re.findall(
        r'<a href="(/act\?act=cancel[^"]*)">Cancel it</a>', client.get("/entry?name=purge-sessions").text
    )
    shown = client.get(link.replace("&amp;", "&")).text
    assert f"ends here: 0 of {backfill.total} ticks are published, and no more of them are" in shown
    form = ask(client, act="cancel", name="purge-sessions")
    assert f"0 of {backfill.total} ticks are published" in send(client, form).text
    assert all(each.cancelled for each in schedules_of(shop)["purge-sessions"].backfills())
    wait_until(lambda: told(shop, "entry_backfill_cancelled"), message="it is in the journal")
    (record,) = told(shop, "entry_backfill_cancelled")
    assert (record.entry, record.more.get("who") or record.who) == ("purge-sessions", "ada")
    wait_until(
        lambda: "Cancel it" not in client.get("/entry?name=purge-sessions").text, message="nothing is left to cancel"
    )
    # who was late cancels nothing, and is told so
    assert send(client, form).status_code == 409
    assert client.get(link.replace("&amp;", "&")).status_code == 404


def test_a_lock_is_taken_only_from_who_held_it_when_it_was_shown(client, shop):
    page = client.get("/locks").text
    link = next(each for each in re.findall(r'href="(/act\?act=release[^"]*)"', page) if "4711" in each).replace(
        "&amp;", "&"
    )
    shown = client.get(link).text
    assert "until then another may run beside it" in shown
    assert re.search(r'aria-current="page">Locks<', shown), "it is where it was asked for"
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', shown))
    assert send(client, {**form, "holder": "another"}).status_code == 409
    assert "is free" in send(client, form).text
    wait_until(lambda: told(shop, "lock_freed"), message="it is in the journal")
    assert told(shop, "lock_freed")[-1].lock_key == "customers:4711"


def test_a_page_of_somebody_elses_does_nothing(client, shop):
    form = ask(client, act="pause", name="clean-carts")
    cookie = client.cookies.get("lockbeat_token")
    refused = [
        send(client, form, **{"Sec-Fetch-Site": "cross-site"}),
        send(client, form, **{"Sec-Fetch-Site": "same-site"}),
        client.post("/act", content=urlencode(form), headers={**FORM, "Origin": "https://evil.example"}),
        client.post("/act", content=urlencode(form), headers={**FORM, "Origin": "null"}),
        send(client, {**form, "token": ""}),
        send(client, {**form, "token": cookie[:-1] + "x"}),
        send(client, {name: value for name, value in form.items() if name != "token"}),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert client.post("/act", json=form).status_code == 415
    assert send(client, {**form, "note": "x" * 100_000}).status_code == 413
    client.cookies.clear()
    assert send(client, form).status_code == 403
    assert client.get(f"/act?{urlencode(form)}").status_code == 200, "it is asked, and not done"
    assert not schedules_of(shop)["clean-carts"].flag_now().paused
    set_cookie = client.get("/act?act=run&name=clean-carts").headers["set-cookie"]
    assert "HttpOnly" in set_cookie
    assert "samesite=strict" in set_cookie.lower()


def test_nothing_is_done_for_who_is_not_known(shop):
    page = known(Page(shop, allow_changes=True, user=lambda scope: None))
    client = TestClient(page.asgi)
    assert send(client, ask(client, act="pause", name="clean-carts")).status_code == 403
    assert not schedules_of(shop)["clean-carts"].flag_now().paused
    page.hub.end()
    with pytest.raises(ConfigurationError, match="user"):
        make_app(shop, allow_changes=True)


@pytest.mark.parametrize("bad", [each for each in HOSTILE if "\ud800" not in each])
def test_whatever_is_asked_for_is_text(client, bad):
    shown = client.get(f"/act?{urlencode({'act': 'release', 'key': bad, 'holder': bad})}")
    assert shown.status_code == 200
    # what is sent back is as it was, where nobody sees it
    is_harmless(re.sub(r'<input type="hidden"[^>]*>', "", shown.text))
    refused = client.get(f"/act?{urlencode({'act': 'pause', 'name': bad})}")
    assert refused.status_code == 404
    is_harmless(refused.text)


@pytest.mark.parametrize("query", ["", "act=drop", "act=pause", "act=pause&name=unknown", "act=backfill&name=../x"])
def test_what_is_asked_wrongly_is_told(client, query):
    answer = client.get(f"/act?{query}")
    assert answer.status_code in (400, 404)
    assert "Traceback" not in answer.text


def test_where_it_only_looks_there_is_no_act(shop):
    page = known(Page(shop))
    client = TestClient(page.asgi)
    for act in ACTS:
        assert client.get(f"/act?act={act}&name=mail-digest").status_code == 404
        assert client.post("/act", content=f"act={act}&name=mail-digest", headers=FORM).status_code == 404
    for url in ("/", "/entry?name=mail-digest", "/locks"):
        assert "/act?" not in client.get(url).text
    page.hub.end()
