"""RedBeat's schedule and API, fired by any number of beats at once.

Promises: entries stay RedBeat's, in its Redis and its format, and what "due" means is RedBeat's own: by the score in its
sorted set, and by the entry's schedule since its last run. Each entry is read again right before it is claimed, and a tick
that nobody has published in time is dropped when its entry has been deleted or disabled meanwhile. RedBeat may run in turn
with this scheduler, not beside it. What a Redis that has lost its data lacks of the static entries is put back.

When did an entry run last? Between two writes by others the truth is the store's, where ticks are claimed; RedBeat's meta and
score follow once a tick is published. A meta that is not the one we wrote (``reschedule()``, a new entry, plain RedBeat)
is the new truth from then on: the entry goes on under another key in the store, so nothing that was claimed before counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from redbeat.schedulers import RedBeatScheduler
from redbeat.schedulers import logger as redbeats_logger
from redis.exceptions import RedisError

from celery_lockbeat.beat.scheduler import LockedSchedulerMixin, logger
from celery_lockbeat.contrib.policies import policy_headers
from celery_lockbeat.contrib.redbeat.entries import Entries
from celery_lockbeat.contrib.redbeat.hashes import FREE, Hashes, redbeats_redis
from celery_lockbeat.contrib.redbeat.inspection import (
    definition_of,
    names_of,
    plain_redbeat,
    stored_entries,
    stored_schedules,
)
from celery_lockbeat.contrib.redbeat.runs import Runs
from celery_lockbeat.contrib.redbeat.statics import Statics
from celery_lockbeat.contrib.redbeat.stored import KEY, life_of
from celery_lockbeat.contrib.versions import refuse_older
from celery_lockbeat.exceptions import StoreUnavailable

# all but the class are for the commands; the class is here, and not in a file of its own, as beats announce its name with its module's
__all__ = [
    "LockedRedBeatScheduler",
    "definition_of",
    "names_of",
    "plain_redbeat",
    "policy_headers",
    "stored_entries",
    "stored_schedules",
]

#: The oldest RedBeat that will do.
OLDEST: Final = (2, 2)


class LockedRedBeatScheduler(LockedSchedulerMixin, RedBeatScheduler):  # type: ignore[misc]
    """RedBeat's scheduler, on any number of replicas, without its leader lock; settings and entries are RedBeat's.

    What RedBeat cannot keep of ``beat_schedule`` (``Cron`` and its like, what a decorator makes of them, a solar schedule) is kept
    here, as :class:`~celery_lockbeat.LockedScheduler` does. Raises ConfigurationError for a RedBeat that is too old.
    """

    trusted_for = 0.5
    gather = 0.2

    def __init__(self, app: Any, **kwargs: Any) -> None:
        refuse_older("celery-redbeat", OLDEST)
        self._to_set_up = self._is_set_up = self._has_looked = False
        super().__init__(app, **kwargs)
        # before RedBeat's receiver of beat_init looks for it
        self.lock_key = None

    def _furnish(self, app: Any) -> None:
        super()._furnish(app)
        self._hashes = Hashes(app)
        self._statics = Statics(app, self.update_from_dict, self.install_default_entries)
        self._entries = Entries(app, self.Entry, self._hashes, self._statics, self._complaints)
        self._runs = Runs(self._entries, self._hashes)

    # -- the schedule --------------------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        """Leave it to the first tick: a Redis that does not answer yet is waited for."""
        self._to_set_up = True

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Store static entries, as far as RedBeat can read them again."""
        for name, definition in dict_.items():
            try:
                entry = self._maybe_entry(name, definition)
            except Exception:  # noqa: BLE001  whatever a user wrote
                logger.exception("static entry %r is skipped, for it is broken: %r", name, definition)
                continue
            if not self._statics.note(name, entry):
                continue
            try:
                super().update_from_dict({name: definition})
            except (RedisError, OSError):
                raise
            except Exception:  # noqa: BLE001  whatever is in there
                logger.exception("static entry %r is broken in Redis, and stored anew", name)
                entry.save()

    @property
    def schedule(self) -> dict[str, Any]:
        """All entries by their names: those in Redis, and those of our own. Raises StoreUnavailable before the first look."""
        if not self._has_looked:
            self.refresh_schedule()
        return {**{each.entry.name: each.entry for each in self._entries.stored.values()}, **self._statics.own}

    def _entries_by_key(self) -> Mapping[str, Any]:
        # not by their names: of what was written by hand, two may have one
        prefix = self.app.redbeat_conf.key_prefix
        hidden = {prefix + name for name in self._statics.own}
        stored = {each.key: each.entry for key, each in self._entries.stored.items() if key not in hidden}
        return {**stored, **self._keyed(self._statics.own)}

    def defines(self, entry: Any) -> bool:
        """Whether the entry is one of our own, that the others cannot read from where the rest is."""
        return getattr(entry, "lockbeat_stored", None) is None

    def refresh_schedule(self) -> None:
        """Follow what has changed in Redis, and write down what could not be written before."""
        with redbeats_redis():
            if self._to_set_up and not self._is_set_up:
                self._statics.set_up()
                self._is_set_up = True
            self._runs.write_down()
            look = self._hashes.look()
            if look.lock_rest is not None:
                self._notice_plain_redbeat(look.lock_rest)
            self._entries.follow(look)
            self._has_looked = True

    def _notice_plain_redbeat(self, rest: int) -> None:
        """Say that a plain RedBeat holds its lock, for another ``rest`` milliseconds."""
        about, key = "plain RedBeat", self.app.redbeat_conf.lock_key
        if rest == FREE:
            if self._complaints.end(about):
                logger.info("nobody holds RedBeat's lock %r any more", key)
            return
        text = (
            "a beat of plain RedBeat runs beside this one, and they double each other's ticks: it holds RedBeat's lock %r. "
            "Stop it; if it was killed, its lock ends in %.0f s"
        )
        self._complaints.make(about, text, key, max(0, rest) / 1000)

    # -- the life of a tick --------------------------------------------------------------------------------------------

    def is_due(self, entry: Any) -> tuple[bool, float | None]:
        """Return (is due, seconds until the next look), by RedBeat's two rules: the score, and the schedule."""
        stored = getattr(entry, "lockbeat_stored", None)
        if stored is None:
            due: tuple[bool, float | None] = super().is_due(entry)
            return due
        if stored.score < 0:
            return False, None
        wait = stored.score - self.app.now().timestamp()
        is_due, delay = entry.is_due()
        if wait > 0:
            # scores are whole seconds, and so a little early
            return False, wait if is_due or delay is None else max(wait, delay)
        if not is_due and delay is not None:
            # what has its score behind it may become due by a mere change of its fields
            delay = min(delay, self.max_interval)
        return is_due, delay

    def reread(self, keys: Sequence[str]) -> Mapping[str, tuple[str, Any]]:
        """Return what is behind these keys now, straight from Redis."""
        lives = {key: (match[1], match[2]) for key in keys if (match := KEY.fullmatch(key))}
        with redbeats_redis():
            self._entries.read(list({where for where, _ in lives.values()}))
        known, found = self._entries.stored, {}
        for key in keys:
            where, life = lives.get(key, ("", ""))
            stored = known.get(where)
            if stored is not None and life_of(stored.key) == life:
                found[key] = (stored.key, stored.entry)
            elif not life and (item := self._agenda.get(key)):
                found[key] = (key, item.entry)
        return found

    def _stand_in(self, key: str) -> Any:
        # deleted, rescheduled, or not seen yet
        return self.Entry(key, app=self.app, total_run_count=-1) if KEY.fullmatch(key) else None

    def reserve(self, entry: Any) -> Any:
        """Keep the entry; :meth:`record_runs` writes its run into Redis."""
        return entry

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send a message as RedBeat's ``maybe_due`` does, by ``apply_async`` alone: what wraps both would count it twice."""
        redbeats_logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as exc:  # noqa: BLE001  as RedBeat
            redbeats_logger.exception("Scheduler: Message Error: %s", exc)

    def record_runs(self, keys: Sequence[str]) -> None:
        """Write last runs and scores, as RedBeat does; what cannot be written now is with the next look."""
        self._runs.note(keys)
        try:
            with redbeats_redis():
                self._runs.write_down()
        except StoreUnavailable as exc:
            # the ticks are published: they are settled all the same
            self._complaints.make("redbeat", "beat cannot write down runs, and goes on: %s", exc)
