"""Real beats and workers of one app that disagree, as in a rolling update or by mistake: what they say, and what doctor finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import forker, running
from servers import Server, wait_until

PROJ = """
import json, os
from celery import Celery
from celery_lockbeat import LockedTask

app = Celery("shop", broker=os.environ["URL"])
app.conf.update(
    beat_scheduler="lockbeat",
    beat_schedule={"report": {"task": "proj.report", "schedule": 1, "args": [os.environ["RELEASE"]]}},
    task_ignore_result=True,
    **json.loads(os.environ["SETTINGS"]),
)

@app.task(base=LockedTask, lock_key=os.environ.get("KEY", "report"))
def report(release):
    pass
"""

BEAT = ["celery", "-A", "proj", "beat", "-l", "INFO", "--pidfile="]
WORKER = ["celery", "-A", "proj", "worker", "-l", "INFO", "-P", "solo"]


class Project:
    def __init__(self, directory: Path, server: Server) -> None:
        self.directory, self.server = directory, server
        (directory / "proj.py").write_text(PROJ)

    def environment(self, release: str, key: str = "report", **settings: object) -> dict[str, str]:
        return {"URL": self.server.url, "RELEASE": release, "KEY": key, "SETTINGS": json.dumps(settings)}

    def start(self, name: str, command: list[str], *told, **more):
        directory = self.directory / name
        directory.mkdir()
        (directory / "proj.py").write_text(PROJ)
        return running([command], directory, **self.environment(*told, **more))

    def finds(self, *told, **more) -> dict[str, list[str]]:
        command = ["-A", "proj", "lockbeat", "doctor", "--json"]
        done = forker.run(command, self.directory, self.environment(*told, **more))
        assert "Traceback" not in done.stderr, done.stderr
        found: dict[str, list[str]] = {}
        for finding in json.loads(done.stdout)["findings"]:
            found.setdefault(finding["kind"], []).append(f"{finding['about']}: {finding['what']}")
        return found

    def sent(self) -> list[str]:
        """The releases of all messages, the oldest first."""
        with self.server.client() as client:
            return [self._release(text) for text in reversed(client.lrange("celery", 0, -1))]

    @staticmethod
    def _release(text: str) -> str:
        headers = json.loads(text)["headers"]
        return headers["argsrepr"]


@pytest.fixture
def project(server: Server, tmp_path: Path) -> Project:
    return Project(tmp_path, server)


def test_of_two_releases_the_newer_sends_an_entry_and_both_say_what_differs(project):
    with project.start("old", BEAT, "1") as (old,):
        wait_until(lambda: len(project.sent()) > 1, 60, "the old one sends")
        with project.start("new", BEAT, "2") as (new,):
            text = "entries of 'shop' are defined otherwise by"
            wait_until(lambda: text in old.log() and text in new.log(), 60, "both say so")
            assert "report: left to them, theirs being newer" in old.log()
            assert "report: sent here, ours being newer" in new.log()
            before = len(project.sent())
            wait_until(lambda: len(project.sent()) > before + 4, 30, "it goes on")
            assert set(project.sent()[before + 1 :]) == {"['2']"}
            found = project.finds("2")
            assert "report" in found["definitions-differ"][0]
        before = len(project.sent())
        wait_until(lambda: "['1']" in project.sent()[before:], 30, "the old one takes it back")
    assert "no-beat" in project.finds("2")


def test_a_worker_with_another_key_or_another_store_is_named(project):
    kinds = {"locks-differ", "homes-differ"}
    with (
        project.start("same", WORKER, "1") as (same,),
        project.start("key", [*WORKER, "-n", "key@here"], "1", "another"),
        project.start("prefix", [*WORKER, "-n", "prefix@here"], "1", lockbeat_key_prefix="new:") as (prefix,),
    ):
        wait_until(lambda: " ready." in same.log() and " ready." in prefix.log(), 60, "they are ready")
        wait_until(lambda: project.finds("1").keys() >= kinds, 60, "both are found")
        found = project.finds("1")
        assert len(found["locks-differ"]) == 1
        assert "task proj.report: lock_key 'another' in the app's store for worker " in found["locks-differ"][0]
        assert "lock_key 'report' in the app's store for this app, worker " in found["locks-differ"][0]
        assert len(found["homes-differ"]) == 1
        assert "under 'new:', ours in" in found["homes-differ"][0]
    assert not project.finds("1").keys() & kinds, "they have ended, and said so"
