"""What the pages on Redis say: their settings are right, and their numbers are those of the code."""

from __future__ import annotations

import re

import pytest
from celery import Celery

from celery_lockbeat.options import AppOptions, LockOptions
from docs import DOCS, python_of

PAGES = ["redis-topologies", "redis-security", "redis-production"]


@pytest.mark.parametrize("page", PAGES)
def test_each_example_is_a_setting_that_is_accepted(page):
    text = (DOCS / "how-to" / f"{page}.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        app = Celery("docs", broker="redis://h", set_as_current=False)
        exec(compile(block, page, "exec"), {"app": app, "__name__": "docs"})
        assert AppOptions.read(app.conf).connection("redis", "default")["url"]


def test_the_arithmetic_of_a_lease_is_that_of_the_code():
    page = re.sub(r"\s+", " ", (DOCS / "how-to" / "redis-production.md").read_text())
    default, short = LockOptions(), LockOptions(ttl=3)
    assert f"the first attempt after {default.extends_every:g} s, two pauses of {default.retries_every:g} s" in page
    assert f"and {default.attempt:.1f} s for each attempt" in page
    assert (
        f"after {short.extends_every:g} s, pauses of {short.retries_every:g} s, {short.attempt:.2f} s for each" in page
    )


def test_the_pages_are_found_from_the_reference_and_the_first_page():
    for page in PAGES:
        assert f"how-to/{page}.md" in (DOCS / "reference.md").read_text()
        assert f"how-to/{page}.md" in (DOCS / "index.md").read_text()
    assert python_of("how-to/redis-topologies.md", "Cluster")
