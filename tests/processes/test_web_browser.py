"""The page in a browser, of real beats and a real worker: what a person finds out, and how soon."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from browsers import SHIFTS, browsing, page_of, violations
from celery import Celery
from commands import running
from programs import Program
from servers import Server, wait_until

from celery_lockbeat.journal import read

PROJ = """
import os, time
from celery import Celery
from celery_lockbeat import LockedTask

app = Celery("shop", broker=os.environ["URL"])
app.conf.update(
    beat_scheduler="lockbeat",
    task_ignore_result=True,
    beat_schedule={name: {"task": f"proj.{name}", "schedule": 1} for name in ("works", "slow", "fails")},
)

@app.task(base=LockedTask)
def works():
    time.sleep(0.05)

@app.task(base=LockedTask, lock_key="jobs:slow")
def slow():
    time.sleep(2.5)

@app.task(base=LockedTask)
def fails():
    raise ValueError("no <such> customer")
"""

BEAT = ("celery", "-A", "proj", "beat", "-l", "INFO", "--pidfile=")
WORKER = ("celery", "-A", "proj", "worker", "-c", "3", "-n", "w1@tests", "-l", "INFO")
WEB = ("celery", "-A", "proj", "lockbeat", "web", "--port", "0", "--allow-changes")

#: A killed beat is grey after so many seconds; on a busy machine one more round of all that has to ask for it.
GREY: float = 12.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as browser:
        yield browser


class Shop:
    def __init__(self, url: str, beats: list[Program], app: Celery) -> None:
        self.url, self.beats, self.app = url, beats, app

    def ticks(self, entry: str) -> int:
        """How many of its ticks were published."""
        return len(self.published(entry))

    def published(self, entry: str, since: datetime | None = None) -> list[str]:
        """The ids of the tasks of its ticks that were published."""
        found = read(self.app, entry=entry, since=since, limit=None)
        return [str(record.task_id) for record in found if record.event == "tick_published"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Shop]:
    """Two beats, a worker, and the page of them."""
    directory = tmp_path_factory.mktemp("shop")
    (directory / "proj.py").write_text(PROJ)
    with Server() as server:
        app = Celery("shop", broker=server.url, set_as_current=False)

        def has_all() -> bool:
            seen = {(each.entry, each.status) for each in read(app, limit=None)}
            return seen.issuperset([("works", "success"), ("slow", "skipped"), ("fails", "failed")])

        with running([WORKER, BEAT, BEAT, WEB], directory, URL=server.url) as (_, *beats, web):
            wait_until(lambda: re.search(r"http://\S+", web.log()), 60, "the page is served")
            wait_until(has_all, 60, "one of each kind has happened")
            yield Shop(re.search(r"http://\S+", web.log())[0], beats, app)
            app.close()
            web.process.send_signal(signal.SIGTERM)
            assert web.process.wait(20) == 0, web.log()


def test_why_a_tick_was_skipped_is_found_in_three_clicks(shop, browser):
    page = page_of(browser)
    page.goto(shop.url)
    page.click("text=slow")
    page.wait_for_selector("#runs summary")
    run = page.locator("#" + page.locator("#runs li", has_text="skipped").first.get_attribute("id"))
    run.locator("summary").click()
    sentence = run.locator(".told p").first
    sentence.wait_for()
    assert re.search(
        r"The tick of 'slow' at .* was skipped at .*: its lock 'jobs:slow' was held by .*, since ",
        sentence.inner_text(),
    )
    # it stays open while others come in
    before = page.locator("#runs li").count()
    page.wait_for_function("count => document.querySelectorAll('#runs li').length > count", arg=before)
    assert run.locator("details").get_attribute("open") is not None
    assert page.complaints == []


def test_what_happens_is_shown_while_it_does_and_nothing_moves(shop, browser):
    page = page_of(browser)
    page.add_init_script(SHIFTS)
    for view, rows in (("", "#rows tr"), ("runs", "#runs summary"), ("locks", "#held tbody tr")):
        page.goto(shop.url + view)
        page.wait_for_selector(rows)
        before = page.locator("main").inner_html()
        page.wait_for_function("before => document.querySelector('main').innerHTML !== before", arg=before)
        page.wait_for_timeout(1_500)  # some rounds
        assert page.evaluate("window.shifts") < 0.02, view
        assert page.complaints == []


_HIDE = """hidden => {
    Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_tab_that_was_asleep_catches_up_when_it_is_looked_at(shop, browser):
    page = page_of(browser)
    page.goto(shop.url + "runs")
    page.wait_for_selector("#runs summary")
    life, asked = page.context.new_cdp_session(page), []
    page.evaluate(_HIDE, True)
    page.on("request", lambda request: asked.append(request.url))
    life.send("Page.setWebLifecycleState", {"state": "frozen"})
    begun = datetime.now(timezone.utc)
    wait_until(lambda: len(shop.published("works", begun)) > 3)
    while_asleep = shop.published("works", begun)
    life.send("Page.setWebLifecycleState", {"state": "active"})
    assert asked == [], "it follows nothing meanwhile: others may want its connection"
    page.evaluate(_HIDE, False)
    for task_id in while_asleep:
        page.locator("#runs li", has_text=task_id).wait_for(state="attached", timeout=5_000)
    # rows that one reads do not move away
    page.hover("#runs li:nth-child(4)")

    def listed() -> list[str]:
        return page.evaluate("[...document.querySelectorAll('#runs li')].map(each => each.id)")

    def they_stay() -> bool:
        before, ticks = listed(), shop.ticks("works")
        wait_until(lambda: shop.ticks("works") > ticks + 1)
        return listed() == before

    wait_until(they_stay, 15)  # but for those that had been asked for
    before = listed()
    page.mouse.move(0, 0)
    wait_until(lambda: listed() != before)
    page.context.close()


def test_while_nothing_is_heard_of_the_server_nothing_becomes_late_and_then_it_goes_on(shop, browser):
    page = page_of(browser)
    page.clock.install()
    page.route("**/events", lambda route: route.abort())
    page.goto(shop.url)
    page.wait_for_selector(".status.is-cut")
    page.clock.fast_forward(4_000)  # each entry is due each second
    assert page.locator(".due").count() >= 3
    assert page.locator(".due.is-late").count() == 0
    page.unroute("**/events")
    page.clock.fast_forward(6_000)
    page.wait_for_selector(".status.is-live")
    page.context.close()


#: What is shown, and what has to be there first.
VIEWS = {
    "": "#rows tr",
    "entry?name=slow": "#runs summary",
    "runs": "#runs summary",
    "locks": "#held tbody",
    "beats": "#members tr",
    "health": ".findings",
    "act?act=pause&name=works": "form",
    "act?act=release&key=k&holder=h": "form",
    "nowhere": ".failed",
    "?q=nothing+like+this": "#none",
}


# a narrow window has places of its own for all there is, and in the dark only the colours are others; the soak looks at all of it
@pytest.mark.parametrize(
    ("width", "schemes"),
    [
        (360, ("light",)),
        (1280, ("light", "dark")),
        *(
            pytest.param(width, (scheme,), marks=pytest.mark.soak)
            for width in (360, 768, 1280, 3840)
            for scheme in ("light", "dark")
            if (width, scheme) not in ((360, "light"), (1280, "light"))
        ),
    ],
)
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_window(shop, browser, width, schemes):
    page = page_of(browser, width=width, height=2160 if width > 2000 else 800)
    for view, selector in VIEWS.items():
        page.emulate_media(color_scheme=schemes[0])
        page.goto(shop.url + view)
        page.wait_for_selector(selector)
        for opened in ("#runs summary", ".beside summary"):
            if page.locator(opened).count():
                page.locator(opened).first.click()
        assert violations(page) == [], view
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        for scheme in schemes[1:]:
            page.emulate_media(color_scheme=scheme)
            assert violations(page, "color-contrast") == [], (view, scheme)
    page.context.close()


def test_it_is_used_by_the_keyboard_alone(shop, browser):
    page = page_of(browser)
    page.goto(shop.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("/")
    page.keyboard.type("slo")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=slo*")
    assert page.locator("#rows tr").count() == 1
    page.focus("#rows a")
    page.keyboard.press("Enter")
    page.wait_for_selector("#runs summary")
    page.focus("a[aria-label='Zoom out']")
    before = page.locator(".range").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.querySelector('.range').textContent !== before", arg=before)
    page.wait_for_function("document.activeElement.getAttribute('aria-label') === 'Zoom out'")


def test_who_pauses_an_entry_sees_no_tick_of_it_until_it_is_resumed(shop, browser):
    page = page_of(browser)
    page.goto(shop.url + "entry?name=works")
    page.click("text=Pause")
    page.fill("input[name=note]", "the database moves")
    page.click("button.does")
    page.wait_for_selector("text=in the journal, with who did it")
    wait_until(lambda: shop.ticks("works") and shop.ticks("slow"))
    before, others = shop.ticks("works"), shop.ticks("slow")
    page.click("text=Back")
    page.wait_for_selector(".state.s-paused")
    assert "the database moves" in page.locator(".paused").inner_text()
    wait_until(lambda: shop.ticks("slow") >= others + 4, message="other entries go on")
    # one that was published before the pause may have been written after it
    assert shop.ticks("works") <= before + 1
    page.click("text=Resume")
    page.click("button.does")
    page.wait_for_selector("text=is resumed")
    wait_until(lambda: shop.ticks("works") > before + 2, message="its ticks come again")
    assert page.complaints == []


# the last one, for it kills
def test_a_killed_beat_turns_grey(shop, browser):
    page = page_of(browser)
    page.goto(shop.url + "beats")
    page.wait_for_function("document.querySelectorAll('.beats tr.is-alive').length >= 3")  # two beats and a worker
    dead = shop.beats[0]
    os.kill(dead.pid, signal.SIGKILL)
    began = time.monotonic()
    gone = page.locator("tr.is-gone", has_text=f"-{dead.pid}-")
    gone.wait_for()
    took = time.monotonic() - began
    assert took < GREY, took
    assert "silent for" in gone.inner_text()
    assert page.locator("table[aria-label=Beats] tr.is-alive").count() == 1
