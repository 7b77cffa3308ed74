"""Pictures of the page: ``python tests/web/shots.py`` draws those of the documentation anew, with a folder's name all there are."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import days  # noqa: E402
import uvicorn  # noqa: E402
from browsers import browsing, page_of  # noqa: E402
from celery import Celery  # noqa: E402
from servers import wait_until  # noqa: E402

from celery_lockbeat.web.app import Page  # noqa: E402

DOCS = ROOT / "docs" / "web"

VIEWS = {
    "schedules": "",
    "entry": "entry?name=mail-digest&span=21600",
    "busy": "entry?name=sync-orders&span=3600",
    "runs": "runs",
    "locks": "locks",
    "beats": "beats",
    "health": "health",
    "acts": "entry?name=sync-orders&span=3600",
    "pause": "act?act=pause&name=sync-orders",
    "backfill": "act?act=backfill&name=purge-sessions&from=5h+ago&to=now",
    "release": "act?act=release&key=shop.sync_orders&holder=holder-of-shop.sync_orders",
    "nothing": "?q=nothing+is+like+this",
    "unknown": "entry?name=unknown",
}

#: Those of a page on which something may be done.
ACTING = ("acts", "pause", "backfill", "release")

#: Those of the documentation: the name of a view, whether it is dark, and how wide it is.
KEPT = {
    "schedules": ("schedules", False, 1280),
    "entry-dark": ("entry", True, 1280),
    "runs": ("runs", False, 1280),
    "locks-dark": ("locks", True, 1280),
    "beats": ("beats", False, 1280),
    "health": ("health", False, 1280),
    "pause": ("pause", False, 1280),
    "narrow": ("schedules", False, 360),
    "narrow-entry-dark": ("entry", True, 360),
}


@contextlib.contextmanager
def serving(app: Celery, *, allow_changes: bool = False) -> Iterator[str]:
    """Serve the page of an app; give its address."""
    page = Page(app, allow_changes=allow_changes)
    server = uvicorn.Server(uvicorn.Config(page.asgi, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    page.hub.start()
    thread.start()
    wait_until(lambda: server.started, message="the page is served")
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        page.hub.end()
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def shop() -> Iterator[Any]:
    """The page of an app with a day behind it: what tells the address of a view."""
    with days.shop(6 * 3600) as app, serving(app) as looks, serving(app, allow_changes=True) as acts:
        yield lambda view: (acts if view in ACTING else looks) + VIEWS[view]


def take(browser: Any, address_of: Any, view: str, path: Path, *, dark: bool, width: int) -> None:
    """Take a picture of a view."""
    high = 740 if width < 600 else 2160 if width > 2000 else 1240 if view == "entry" else 800
    page = page_of(browser, dark=dark, width=width, height=high)
    page.goto(address_of(view))
    if VIEWS[view].startswith("entry?name=") and view != "unknown":
        page.wait_for_selector("#runs summary")
        if view == "entry":
            # as a click does, but that it scrolls to nothing
            page.locator("#runs li", has_text="failed").first.locator("details").evaluate("each => each.open = true")
    if view == "health":
        page.wait_for_selector(".findings")
    page.mouse.move(0, 0)
    page.screenshot(path=path)
    page.context.close()


def main() -> None:
    with shop() as address_of, browsing() as browser:
        if len(sys.argv) > 1:
            folder = Path(sys.argv[1])
            folder.mkdir(parents=True, exist_ok=True)
            for view in sys.argv[2:] or VIEWS:
                for dark in (False, True):
                    for width in (360, 1280, 3840):
                        name = f"{view}-{width}{'-dark' if dark else ''}.png"
                        take(browser, address_of, view, folder / name, dark=dark, width=width)
            return
        DOCS.mkdir(exist_ok=True)
        for name, (view, dark, width) in KEPT.items():
            take(browser, address_of, view, DOCS / f"{name}.png", dark=dark, width=width)


if __name__ == "__main__":
    main()
