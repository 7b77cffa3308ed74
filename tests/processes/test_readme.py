"""The README's own example, run as it stands there, does what the README says. And one screen shows all that decides."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

import pytest
from browsers import browsing, page_of
from commands import running
from servers import Server, wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_readmes_example_runs_on_two_beats_and_skips_the_ticks_meanwhile(spare_server: Server, tmp_path: Path):
    (source,) = re.findall(r"```python\n(# tasks\.py\n.*?)```", README, re.DOTALL)
    beat, worker = (command.split() for command in re.findall(r"^celery -A tasks [^#\n]*", README, re.MULTILINE))
    (tmp_path / "tasks.py").write_text(source.replace("redis://localhost:6379/0", spare_server.url))
    with running([beat, beat, worker], tmp_path) as (first, second, log):

        def ticks(event: str) -> list[str]:
            return re.findall(rf'"event":"{event}".*"task_name":"tasks\.sync_report".*"tick":"([^"]+)"', log.log())

        wait_until(lambda: ticks("task_succeeded") and ticks("task_skipped"), 60, "a run and a skip")
        assert '"reason":"locked","holder":"celery@' in log.log()
        first.kill()
        before = len(ticks("task_finished"))
        wait_until(lambda: len(ticks("task_finished")) >= before + 3, 30, "ticks of the other beat")
        assert second.process.poll() is None
    # each tick once
    assert len(ticks("task_started")) == len(set(ticks("task_started"))) > 3


#: The narrowest: a repository's first page, beside what it tells of the repository.
COLUMN = 830
#: Sizes as those of the pages on which it is read: a repository's host, a package's index.
STYLE = """
article { box-sizing: content-box; margin: 0 auto; padding: 32px; font: 16px/1.5 "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif }
h1, h2 { margin: 24px 0 16px; padding-bottom: .3em; border-bottom: 1px solid #d1d9e0; font-size: 2em; line-height: 1.25 }
h1 { margin-top: 0 } h2 { font-size: 1.5em }
p, pre, table { margin: 0 0 16px }
img { max-width: 100% }
pre { padding: 16px; background: #f6f8fa; font: 13.6px/1.45 Menlo, Consolas, "Liberation Mono", monospace; overflow: auto }
code { font-family: Menlo, Consolas, "Liberation Mono", monospace }
:not(pre) > code { padding: .2em .4em; background: #818b981f; font-size: 85% }
table { border-collapse: collapse; display: block; overflow: auto }
th, td { padding: 6px 13px; border: 1px solid #d1d9e0 }
body { margin: 0; background: #fff }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #f0f6fc } pre { background: #151b23 } a { color: #4493f8 } }
"""


def test_one_screen_of_the_readme_says_what_it_is_shows_it_installs_it_and_compares_it(tmp_path):
    markdown = importlib.import_module if os.environ.get("CI") else pytest.importorskip
    shown = markdown("markdown_it").MarkdownIt("commonmark").enable("table").render(README)
    file = tmp_path / "readme.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><base href="{ROOT.as_uri()}/"><style>{STYLE}</style><article style="width: {COLUMN}px">{shown}'
    )
    with browsing() as browser:
        page = page_of(browser, width=1920, height=1080)
        page.goto(file.as_uri())
        seen = page.locator("article > *").evaluate_all(
            "all => all.filter(each => each.getBoundingClientRect().bottom < innerHeight).map(each => each.innerText)"
        )
        picture = page.locator("picture img").evaluate(
            "picture => picture.naturalWidth && picture.getBoundingClientRect().width"
        )
        lines = page.locator("tr").evaluate_all("rows => rows.map(row => row.getBoundingClientRect().height)")
    assert picture >= 600
    assert len(lines) == 1 + 6
    assert max(lines) < 2 * 24, "a row is a line"
    assert [each for each in ("pip install", "@interval", "RedBeat", "comparison") if each not in "\n".join(seen)] == []
