"""One real fleet: three beats of which one is killed, all gone for some seconds, and workers that are told which tick they run."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import pytest
from celery import Celery
from commands import running
from servers import Server, wait_until

from celery_lockbeat.journal import read

PROJ = """
import json, os
from datetime import datetime, timezone
from celery import Celery
from redis import Redis
from celery_lockbeat import current_tick
from celery_lockbeat.schedules import Cron, Every, Once

app = Celery("shop", broker=os.environ["URL"])
once = datetime.fromisoformat(os.environ["ONCE"])
app.conf.update(
    beat_scheduler="lockbeat",
    lockbeat_late_after=2,
    lockbeat_entries={"none": {"catchup": "none"}, "few": {"max_runs": 3}},
    task_ignore_result=True,
    beat_schedule={
        "all": {"task": "proj.plain", "schedule": Cron("* * * * * *", timezone="Europe/Berlin", catchup="all")},
        "latest": {"task": "proj.plain", "schedule": Every(1)},
        "none": {"task": "proj.plain", "schedule": 1.0},
        "few": {"task": "proj.plain", "schedule": Every(1)},
        "first": {"task": "proj.plain", "schedule": Every(600, run_at_start=True)},
        "once": {"task": "proj.plain", "schedule": Once(at=once)},
        "unbegun": {"task": "proj.plain", "schedule": Every(1, start_within=0.5), "options": {"queue": "slow"}},
    },
)
witness = Redis.from_url(os.environ["WITNESS"])

def tell():
    tick = current_tick()
    previous = tick.previous_due and tick.previous_due.isoformat()
    told = {"entry": tick.entry, "due": tick.due.isoformat(), "previous": previous, "run": tick.run, "kind": tick.kind}
    witness.rpush("ticks", json.dumps({**told, "lateness": tick.lateness}))

@app.task
def plain():
    tell()
"""

BEAT = ("celery", "-A", "proj", "beat", "-l", "INFO", "--pidfile=")
WORKER = ("celery", "-A", "proj", "worker", "-c", "2", "-n", "w1@tests", "-l", "INFO")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory):
    """What the tasks were told, by entry, and the journal."""
    directory = tmp_path_factory.mktemp("shop")
    (directory / "proj.py").write_text(PROJ)
    once = datetime.now(timezone.utc) + timedelta(seconds=40)
    with Server() as server, Server() as witness:
        client = witness.client()
        app = Celery("shop", broker=server.url, set_as_current=False)
        urls = {"URL": server.url, "WITNESS": witness.url, "ONCE": once.isoformat()}

        def ticks(entry: str) -> list[dict]:
            all_ = map(json.loads, client.lrange("ticks", 0, -1))
            return sorted((each for each in all_ if each["entry"] == entry), key=lambda each: each["run"])

        with running([WORKER, BEAT, BEAT, BEAT], directory, **urls) as programs:
            wait_until(lambda: len(ticks("all")) >= 3, 60, "they tick")
            programs[3].kill()
            for beat in programs[1:3]:
                beat.kill()
            killed = datetime.now(timezone.utc)
            wait_until(lambda: datetime.now(timezone.utc) > killed + timedelta(seconds=8), 20)
            (other := directory / "other").mkdir()
            (other / "proj.py").write_text(PROJ)
            with running([BEAT], other, **urls):
                wait_until(lambda: any(each["kind"] == "schedule" for each in ticks("all")[8:]), 60, "it catches up")
                wait_until(lambda: ticks("once"), 60, "the one of its own time comes")
            with running([(*WORKER[:-1], "INFO", "-Q", "slow")], other, **urls):
                late = "no worker began it within 0.5 s"
                wait_until(
                    lambda: any(late in (each.reason or "") for each in read(app)), 60, "a worker finds it expired"
                )
        found = {name: ticks(name) for name in ("all", "latest", "none", "few", "first", "once", "unbegun")}
        yield found, list(read(app, limit=None)), killed, once


def due(tick: dict) -> datetime:
    return datetime.fromisoformat(tick["due"])


def test_each_second_is_run_once_in_order_and_its_task_knows_which_it_is(told):
    ticks = told[0]["all"]
    assert {after - before for before, after in pairwise(map(due, ticks))} == {timedelta(seconds=1)}
    assert [each["previous"] for each in ticks[1:]] == [each["due"] for each in ticks[:-1]]
    assert {each["kind"] for each in ticks} == {"schedule", "catchup"}
    assert due(ticks[0]).utcoffset() == due(ticks[0]).astimezone(due(ticks[0]).tzinfo).utcoffset() != timedelta(0)


def test_one_run_stands_for_all_that_nobody_fired_and_leaves_no_hole(told):
    found, records, _killed, _once = told
    ticks = found["latest"]
    assert [each["previous"] for each in ticks[1:]] == [each["due"] for each in ticks[:-1]]
    assert [each["kind"] for each in ticks].count("catchup") == 1
    gap = max(after - before for before, after in pairwise(map(due, ticks)))
    assert gap >= timedelta(seconds=7)
    (missed,) = (each for each in records if each.event == "tick_missed" and each.entry == "latest")
    assert missed.count == gap.total_seconds() - 1


def test_none_of_what_nobody_fired_is_run_and_all_of_it_is_missed(told):
    found, records, _killed, _once = told
    assert "catchup" not in {each["kind"] for each in found["none"]}
    assert max(each["lateness"] for each in found["none"]) < 60
    assert sum(each.count for each in records if each.event == "tick_missed" and each.entry == "none") >= 4


def test_an_entry_is_over_after_its_runs_and_one_begins_at_once_and_one_has_its_own_time(told):
    found, _records, _killed, once = told
    assert [each["run"] for each in found["few"]] == [1, 2, 3]
    assert len(found["first"]) == 1
    (alone,) = found["once"]
    assert due(alone) == once.replace(microsecond=once.microsecond // 1000 * 1000)


def test_what_no_worker_has_begun_in_time_is_never_begun_and_said_to_be_missed(told):
    found, records, _killed, _once = told
    assert found["unbegun"] == []
    missed = [each for each in records if each.event == "tick_missed" and each.entry == "unbegun"]
    assert any("no worker began it within 0.5 s (start_within)" in each.reason for each in missed)
    assert all(each.count >= 1 for each in missed)
