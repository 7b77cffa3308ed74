"""Debian's Chromium, or Chrome, driven by Playwright: what a person sees of the page, and what axe finds in it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from servers import debian_binary

#: A script that adds up by how much what is shown moves by itself.
SHIFTS = """window.shifts = 0;
new PerformanceObserver(list => { for (const each of list.getEntries()) if (!each.hadRecentInput) window.shifts += each.value; })
    .observe({type: "layout-shift", buffered: true});"""


@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """A browser, which ends with the block."""
    for module in ("playwright", "axe_playwright_python"):
        if importlib.util.find_spec(module) is None:
            if os.environ.get("CI"):
                pytest.fail(f"{module} is missing: pip install -e '.[dev]'")
            pytest.skip(f"{module} is missing")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = _started(playwright.chromium)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def another(browser: Any) -> Iterator[Any]:
    """One more browser, of which nothing is in memory yet."""
    started = _started(browser.browser_type)
    try:
        yield started
    finally:
        started.close()


def _started(kind: Any) -> Any:
    # root has no sandbox, and a container little /dev/shm
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"]
    path = shutil.which("google-chrome") or debian_binary("chromium", "chromium")
    return kind.launch(executable_path=path, args=arguments)


def page_of(browser: Any, *, dark: bool = False, width: int = 1280, height: int = 800) -> Any:
    """A tab whose scripts and style sheets are those that the page may have; what it complains of is in ``complaints``."""
    context = browser.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda told: page.complaints.append(told.text) if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    return page


def violations(page: Any, *rules: str) -> list[str]:
    """What axe finds serious or critical, by all its rules or by these."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": {"type": "rule", "values": list(rules)}} if rules else {}
    found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
