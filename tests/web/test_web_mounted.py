"""The page within apps of others: FastAPI, Starlette and Django, under any prefix, behind a proxy that takes its own off or not."""

from __future__ import annotations

import http.client
import re
import signal
import sys
from urllib.parse import urlencode

import days
import pytest
from programs import Program
from servers import need_django
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from test_web import VIEWS, Elements, known

import docs
from celery_lockbeat.control import schedules_of
from celery_lockbeat.web import hub
from celery_lockbeat.web.app import Page
from celery_lockbeat.web.guard import Rooted

HOSTS = ("fastapi", "starlette", "django")


@pytest.fixture(scope="module")
def shop():
    with days.shop() as app:
        yield app


@pytest.fixture(scope="module")
def page(shop):
    page = known(Page(shop, allow_changes=True, user=lambda scope: "ada"))
    yield page
    page.hub.end()


def host_of(kind, asgi):
    """An app that has the page at /deep/lockbeat, and something of its own at /own/."""
    if kind == "fastapi":
        from fastapi import FastAPI

        api = FastAPI()
        api.get("/own/")(lambda: "mine")
        api.mount("/deep/lockbeat", asgi)
        return api
    own = [Route("/own/", lambda request: PlainTextResponse("mine"))]
    if kind == "django":
        need_django()
        import djangos
        from django.core.asgi import get_asgi_application

        djangos.configure()
        own = [Mount("/", get_asgi_application())]
    return Starlette(routes=[Mount("/deep/lockbeat", asgi), *own])


@pytest.fixture(params=HOSTS)
def host(request, page):
    return request.param, host_of(request.param, page.asgi)


# each is told by what a server makes of it: the root, and the path that is asked for
@pytest.mark.parametrize(
    ("root", "before"),
    [
        pytest.param("", "", id="no proxy"),
        pytest.param("/proxy", "/proxy", id="a proxy that passes its prefix on"),
        pytest.param("/proxy", "", id="a proxy that takes its prefix off"),
        pytest.param("/de", "", id="a prefix that is like ours"),
    ],
)
def test_all_of_it_works_wherever_it_is_mounted(host, root, before, shop):
    kind, app = host
    client = TestClient(app, root_path=root)
    inner, outer = f"{before}/deep/lockbeat", f"{root}/deep/lockbeat"
    for view in VIEWS:
        answer = client.get(inner + view)
        assert answer.status_code == 200, view
        elements = Elements(answer.text)
        for element in (*elements.all("a"), *elements.all("link"), *elements.all("script"), *elements.all("form")):
            target = element.get("href") or element.get("src") or element.get("action") or "?"
            assert target.startswith((f"{outer}/", "#", "?")), (kind, target)
    for each in (
        *Elements(client.get(f"{inner}/").text).all("link"),
        *Elements(client.get(f"{inner}/").text).all("script"),
    ):
        asked = (each.get("href") or each.get("src")).removeprefix(root if not before else "")
        assert client.get(asked).status_code == 200
    assert client.get(f"{inner}/nowhere").status_code == 404
    assert client.get(f"{inner}/entry?name=unknown").status_code == 404
    # what it is mounted in goes on as before
    if kind != "django":
        assert "mine" in client.get(f"{before}/own/").text
    else:
        assert client.get(f"{before}/admin/nowhere/", follow_redirects=False).status_code == 302


def test_an_act_counts_wherever_it_is_mounted(host, shop):
    _, app = host
    client = TestClient(app)
    asked = client.get("/deep/lockbeat/act?act=pause&name=mail-digest")
    assert "; Path=/deep/lockbeat" in asked.headers["set-cookie"]
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', asked.text))
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    assert "is paused" in client.post("/deep/lockbeat/act", content=urlencode(form), headers=headers).text
    assert schedules_of(shop)["mail-digest"].flag_now().paused
    schedules_of(shop)["mail-digest"].resume()


def test_news_come_wherever_it_is_mounted(host, monkeypatch):
    monkeypatch.setattr(hub, "FOLLOWED_FOR", 0.3)
    answer = TestClient(host[1]).get("/deep/lockbeat/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "event: news" in answer.text


@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
def test_a_fastapi_with_a_root_path_of_its_own_works_behind_a_proxy_that_takes_it_off(page):
    from fastapi import FastAPI

    api = FastAPI(root_path="/api")
    api.mount("/lockbeat", page.asgi)
    client = TestClient(api)
    assert 'href="/api/lockbeat/runs"' in client.get("/lockbeat/").text
    assert "sync-orders" in client.get("/lockbeat/runs").text


@pytest.mark.parametrize(
    ("path", "root", "whole"),
    [
        ("/runs", "", "/runs"),
        ("/a/runs", "/a", "/a/runs"),
        ("/a", "/a", "/a"),
        ("/ab/runs", "/a", "/a/ab/runs"),
        ("/runs", "/a/b", "/a/b/runs"),
        ("/b/runs", "/a/b", "/a/b/runs"),
        ("/c/runs", "/a/b/c", "/a/b/c/runs"),
        ("/b/c/runs", "/a/b/c", "/a/b/c/runs"),
        ("/bc/runs", "/a/b", "/a/b/bc/runs"),
    ],
)
def test_a_path_of_which_a_proxy_has_taken_a_part_off_is_whole(path, root, whole):
    async def told(scope, receive, send):
        await PlainTextResponse(scope["path"])(scope, receive, send)

    assert TestClient(Rooted(told), root_path=root).get(path).text == whole


# -- as the documentation has it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(shop, tmp_path_factory):
    """A Django project whose asgi.py is that of the documentation. Its threads keep their connections, so it has one database."""
    need_django()
    import djangos
    from django.db import connections

    djangos.use(djangos.make_sqlite(tmp_path_factory.mktemp("project") / "db.sqlite3"), "default")
    scope = docs.run("how-to/web.md", "In an app of your own", url=shop.conf.broker_url)
    scope["celery_app"].main = shop.main
    yield scope
    scope["celery_app"].close()
    connections["default"].close()


def log_in(client, name, *permissions, is_staff=True):
    from django.conf import settings
    from django.contrib.auth.models import Permission, User
    from django.test import Client

    User.objects.filter(username=name).delete()
    user = User.objects.create_user(name, is_staff=is_staff, is_superuser=not permissions and is_staff)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions, content_type__app_label="lockbeat"))
    browser = Client()
    browser.force_login(user)
    client.cookies.set(settings.SESSION_COOKIE_NAME, browser.cookies[settings.SESSION_COOKIE_NAME].value)


LOOKS = ("view_lock", "view_entry", "view_journalrecord")


def test_the_pages_of_the_documentation_are_pages(project):
    assert "Schedules" in TestClient(project["api"]).get("/lockbeat/").text
    assert "Schedules" in TestClient(project["page_with_acts"]).get("/").text


def test_in_django_who_is_not_logged_in_is_sent_to_the_admins_login(project):
    client = TestClient(project["application"], follow_redirects=False)
    answer = client.get("/lockbeat/entry?name=a%26b")
    assert (answer.status_code, answer.headers["location"]) == (
        302,
        "/admin/login/?next=%2Flockbeat%2Fentry%3Fname%3Da%2526b",
    )
    assert "Log in" in client.get("/admin/login/").text
    # what a script asks for, and what is sent, is only refused
    assert client.get("/lockbeat/events", headers={"Sec-Fetch-Dest": "empty"}).status_code == 403
    assert client.post("/lockbeat/act", content="act=pause").status_code == 403
    client.cookies.set("sessionid", "made-up")
    assert client.get("/lockbeat/").status_code == 302


@pytest.mark.parametrize(
    ("permissions", "is_staff", "status", "may_act"),
    [
        ((), True, 200, True),
        (LOOKS, True, 200, False),
        ((*LOOKS, "change_lock", "change_entry"), True, 200, True),
        ((*LOOKS, "change_lock"), True, 200, False),
        (LOOKS[:2], True, 403, False),
        ((), False, 302, False),
    ],
)
def test_in_django_its_permissions_count(project, permissions, is_staff, status, may_act):
    client = TestClient(project["application"], follow_redirects=False)
    log_in(client, "ada", *permissions, is_staff=is_staff)
    assert client.get("/lockbeat/locks").status_code == status
    asked = client.get("/lockbeat/act?act=release&key=k&holder=h")
    assert asked.status_code == (200 if may_act else 404 if status == 200 else status)


def test_in_django_what_is_done_is_done_in_the_name_of_the_user(project, shop):
    client = TestClient(project["application"])
    log_in(client, "ada")
    live = schedules_of(shop)["mail-digest"]
    form = dict(
        re.findall(
            r'<input type="hidden" name="(\w+)" value="([^"]*)">',
            client.get("/lockbeat/act?act=pause&name=mail-digest").text,
        )
    )
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    answer = client.post("/lockbeat/act", content=urlencode(form), headers=headers)
    assert "with who did it: ada" in answer.text
    assert '"who":"ada"' in live.flag_now().told.replace(" ", "")
    live.resume()


# -- a server that is to end -------------------------------------------------------------------------------------------

SERVED = """
import os
import uvicorn
from celery import Celery
from fastapi import FastAPI
from celery_lockbeat.web import hub, make_app

hub.FOLLOWED_FOR = 2.0
api = FastAPI()
api.mount("/lockbeat", make_app(Celery("shop", broker=os.environ["URL"], set_as_current=False)))
uvicorn.run(api, port=0, log_level="info")
"""


def test_a_server_that_is_to_end_waits_for_no_tab_for_long(server, tmp_path):
    (tmp_path / "served.py").write_text(SERVED)
    served = Program([sys.executable, "served.py"], tmp_path / "log", tmp_path, {"URL": server.url})
    try:
        served.wait_for_log("Uvicorn running on http://127.0.0.1:", 30)
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", served.log())[1])
        tab = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        tab.request("GET", "/lockbeat/events")
        assert b"retry" in tab.getresponse().read(20)
        served.process.send_signal(signal.SIGTERM)
        # one that waits for the tab waits for ever
        assert served.process.wait(20) in (0, -signal.SIGTERM), served.log()
        tab.close()
    finally:
        served.kill()
