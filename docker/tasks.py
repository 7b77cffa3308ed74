"""The app of docker/compose.yml."""

import os
import time

from celery import Celery

from celery_lockbeat import cron, interval

app = Celery("docker", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.beat_scheduler = "celery_lockbeat:LockedScheduler"
app.conf.broker_connection_retry_on_startup = True


@interval(1, app=app, name="heartbeat")
def heartbeat() -> None:
    """Show by its events that each tick runs once."""


@interval(2, app=app, name="sync", lock_ttl=10)
def sync() -> None:
    """Take longer than its interval: the ticks meanwhile are skipped."""
    time.sleep(3)


@cron("* * * * *", app=app, name="report", timezone="Europe/Berlin")
def report() -> None:
    """Run at each full minute."""
