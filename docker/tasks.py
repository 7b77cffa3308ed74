"""The app of docker/compose.yml and deploy/kubernetes."""

import os
import time

from celery import Celery

from celery_lockbeat import cron, interval

app = Celery("docker", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.beat_scheduler = "celery_lockbeat:LockedScheduler"
app.conf.broker_connection_retry_on_startup = True
# touched by each beat and worker, for the probes
app.conf.lockbeat_health_file = os.environ.get("HEALTH_FILE")
# after a warm shutdown was asked for twice, or by SIGQUIT: so long runs may still take (Celery 5.5 and newer)
app.conf.worker_soft_shutdown_timeout = 20


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
