"""``celery beat -S lockbeat`` and ``celery worker -B`` from outside: what they start, refuse, answer, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import celery.beat
import psutil
import pytest
from servers import wait_until

#: Those that are to end come to their end within so many seconds.
SOON = 8.0


@pytest.fixture
def fleet(make_fleet, broker):
    return make_fleet(lockbeat_redis_url=broker.url)


def start_beat(fleet, name, *arguments, every=0.3, scheduler="lockbeat", **settings):
    schedule = {"e": {"task": "note", "schedule": every, "args": [name]}}
    return fleet._start(
        name, ["beat", "-S", scheduler, "-l", "DEBUG", *arguments], {"beat_schedule": schedule, **settings}
    )


def sent(broker, fleet):
    """How many messages wait in the queue of all workers."""
    with broker.client() as client:
        return client.llen(fleet.queue)


def ended(process):
    """Its exit status, once it has ended."""
    wait_until(lambda: process.process.poll() is not None, SOON, f"{process.name} ends: {process.log()[-2000:]}")
    return process.process.returncode


def test_beats_of_the_short_name_write_a_pidfile_and_end_at_sigterm_with_status_0(fleet, broker, tmp_path):
    pidfiles = [tmp_path / f"{name}.pid" for name in ("one", "two")]
    one, two = (
        start_beat(fleet, name, "--pidfile", str(pidfile), "--max-interval", "2")
        for name, pidfile in zip(("one", "two"), pidfiles, strict=True)
    )
    for beat, pidfile in zip((one, two), pidfiles, strict=True):
        beat.wait_for_log("has joined the replicas")
        assert pidfile.read_text().strip() == str(beat.pid)
        assert "Ticking with max interval->2.00 seconds" in beat.log()
        assert "LockedScheduler" in beat.levels_path.read_text() + beat.log()
    wait_until(lambda: sent(broker, fleet) >= 5, message="they send")
    os.kill(one.pid, signal.SIGTERM)
    assert ended(one) == 0
    assert not pidfiles[0].exists()
    before = sent(broker, fleet)
    wait_until(lambda: sent(broker, fleet) >= before + 3, message="the other goes on")
    os.kill(two.pid, signal.SIGINT)
    assert ended(two) == 0
    for beat in (one, two):
        assert "Traceback" not in beat.log() + beat.events_path.read_text()


def test_a_beat_detaches_and_ends_by_its_pidfile(fleet, broker, tmp_path):
    pidfile = tmp_path / "detached.pid"
    parent = start_beat(fleet, "detached", "--detach", "--pidfile", str(pidfile))
    pid = None
    try:
        wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), message="it writes its pidfile")
        pid = int(pidfile.read_text())
        assert ended(parent) == 0
        assert pid != parent.pid
        wait_until(lambda: sent(broker, fleet) >= 3, message="it sends")
    finally:
        if pid is not None:
            detached = psutil.Process(pid)
            os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(psutil.NoSuchProcess):
                detached.wait(SOON)
    assert not pidfile.exists()
    assert "Traceback" not in parent.log()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lockbeat_claim_ttl": "soon"}, "lockbeat_claim_ttl is 'soon'"),
        ({"lockbeat_redis_url": "http://nowhere"}, "lockbeat_redis_url"),
        ({"lockbeat_claim_tll": 5}, "lockbeat_claim_tll"),
        ({"beat_schedule": {"e": {"task": "note", "schedule": "often"}}}, "beat_schedule['e']"),
    ],
)
def test_a_wrong_setting_keeps_a_beat_from_starting_and_is_named_in_one_line(fleet, broker, settings, told):
    beat = start_beat(fleet, "wrong", "--pidfile=", **settings)
    assert ended(beat) == 1
    (line,) = beat.events_path.read_text().splitlines()
    assert told in line
    assert "Traceback" not in beat.log() + beat.levels_path.read_text()
    assert sent(broker, fleet) == 0


def test_a_store_that_says_no_keeps_a_beat_from_starting_and_is_told_in_one_line(fleet, broker, locks):
    url = locks.url.replace("//", "//nobody:wrong@")
    beat = start_beat(fleet, "refused", "--pidfile=", lockbeat_redis_url=url)
    assert ended(beat) == 1
    # Celery has made the standard error a log by then
    told = (beat.log() + beat.events_path.read_text()).splitlines()
    assert len([line for line in told if "(lockbeat_redis_url) refuses us" in line]) == 1, told
    assert "Traceback" not in "".join(told)
    assert sent(broker, fleet) == 0


def test_a_worker_with_a_beat_inside_fires_runs_and_ends(fleet, witness):
    schedule = {"e": {"task": "note", "schedule": 0.3, "args": ["embedded"]}}
    worker = fleet._start(
        "embedded",
        ["worker", "-B", "-n", "embedded@tests", "-Q", fleet.queue, "-c", "1", "-l", "INFO"],
        {"beat_schedule": schedule, "beat_scheduler": "lockbeat"},
    )
    worker.wait_for_log("embedded@tests ready.")
    wait_until(lambda: len(witness.entered("embedded")) >= 5, message="its beat fires and it runs")
    assert "has joined the replicas" in worker.log()
    ids = [line["id"] for line in witness.entered("embedded")]
    assert len(ids) == len(set(ids))
    os.kill(worker.pid, signal.SIGTERM)
    assert ended(worker) == 0
    wait_until(lambda: not worker.family(), SOON, "nothing of it is left")


SIGNALS = """
import os
from pathlib import Path
from celery import signals
from apps import app

def tell(name):
    def receiver(sender, **_):
        with Path(os.environ["LOCKBEAT_TEST_SIGNALS"]).open("a") as file:
            file.write(f"{name} {type(sender.scheduler).__name__}\\n")
    return receiver

beat_init, beat_embedded_init = tell("beat_init"), tell("beat_embedded_init")
signals.beat_init.connect(beat_init)
signals.beat_embedded_init.connect(beat_embedded_init)
"""


def test_celerys_signals_of_a_beats_start_are_sent(fleet, tmp_path, monkeypatch):
    told = tmp_path / "told"
    (tmp_path / "with_signals.py").write_text(SIGNALS)
    monkeypatch.setenv("LOCKBEAT_TEST_SIGNALS", str(told))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    beat = start_beat(fleet, "alone", "--pidfile=", include=["with_signals"])
    wait_until(told.exists, message="beat_init is sent")
    assert told.read_text() == "beat_init LockedScheduler\n"
    beat.kill()
    told.unlink()
    fleet._start(
        "inside",
        ["worker", "-B", "--scheduler", "lockbeat", "-n", "inside@tests", "-Q", fleet.queue, "-c", "1"],
        {"beat_schedule": {}, "include": ["with_signals"]},
    )
    wait_until(lambda: told.exists() and "embedded" in told.read_text(), message="beat_embedded_init is sent")
    assert told.read_text() == "beat_init LockedScheduler\nbeat_embedded_init LockedScheduler\n"


def test_a_beat_answers_celerys_ping(fleet):
    if not hasattr(celery.beat, "BeatPidbox"):
        pytest.skip("this Celery's beat answers no ping")
    beat = start_beat(fleet, "answers", "--pidfile=", beat_enable_remote_control=True)
    beat.wait_for_log("has joined the replicas")
    wait_until(
        lambda: any("celerybeat@" in name for answer in fleet.client.control.ping(timeout=0.5) for name in answer),
        message="it answers",
    )


SWALLOWS = """
import os, signal
from celery import signals

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            pass  # Python runs the handler here, and what it raises is ignored in a finalizer

@signals.before_task_publish.connect(weak=False)
def publish(**_):
    Swallows()
    signals.before_task_publish.disconnect(publish)
"""


def test_a_beat_ends_at_sigterm_though_what_celerys_handler_raises_is_swallowed(fleet, tmp_path, monkeypatch):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    beat = start_beat(fleet, "swallows", "--pidfile=", include=["swallows"])
    beat.wait_for_log("Sending due task")
    assert ended(beat) == 0
    assert "Exception ignored in" in beat.log() + beat.events_path.read_text(), "else this test says nothing"


def test_a_beat_without_its_broker_waits_ends_at_sigterm(fleet, spare_server):
    spare_server.kill()
    beat = start_beat(fleet, "waits", "--pidfile=", broker_url=spare_server.url)
    beat.wait_for_log("cannot publish, and keeps what is due")
    started = time.monotonic()
    os.kill(beat.pid, signal.SIGTERM)
    assert ended(beat) == 0
    assert time.monotonic() - started < SOON


def test_a_beat_without_its_store_waits_and_goes_on_when_it_is_there(fleet, broker, spare_server):
    spare_server.kill()
    beat = start_beat(fleet, "waits", "--pidfile=", lockbeat_redis_url=spare_server.url)
    beat.wait_for_log("waits for the store of its ticks")
    assert sent(broker, fleet) == 0
    spare_server.start()
    wait_until(lambda: sent(broker, fleet) >= 3, message="it sends")
    assert beat.log().count("waits for the store") == 1
    os.kill(beat.pid, signal.SIGTERM)
    assert ended(beat) == 0
