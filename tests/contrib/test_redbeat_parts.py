"""The parts of the scheduler over RedBeat's entries, each by itself."""

from __future__ import annotations

import json

import pytest
from celery.schedules import schedule
from redbeat import RedBeatSchedulerEntry
from redbeat.decoder import RedBeatJSONEncoder

from celery_lockbeat.beat.trouble import Complaints
from celery_lockbeat.contrib.redbeat.entries import Entries
from celery_lockbeat.contrib.redbeat.hashes import Look
from celery_lockbeat.contrib.redbeat.runs import Runs
from celery_lockbeat.contrib.redbeat.statics import Statics
from celery_lockbeat.contrib.redbeat.stored import KEY, after_run, first_mark, life_of, loaded

KEY_OF_A = "redbeat:a"


@pytest.fixture
def app(make_app):
    return make_app(redbeat_redis_url="redis://127.0.0.1:1/0")


def meta_of(app, **more):
    return json.dumps({"last_run_at": app.now(), **more}, cls=RedBeatJSONEncoder)


def definition_of(app, **more):
    fields = {"name": "a", "task": "t", "schedule": schedule(10, app=app), **more}
    return json.dumps(fields, cls=RedBeatJSONEncoder)


@pytest.fixture
def stored(app):
    """An entry that has run once, as we have written it down."""
    meta = meta_of(app)
    one = loaded(RedBeatSchedulerEntry, app, KEY_OF_A, 1.0, (definition_of(app), meta, first_mark(meta)))
    one.entry.total_run_count = 1
    return after_run(one)


# -- the key of an entry -----------------------------------------------------------------------------------------------


def key_with(app, stored, meta):
    definition, _, mark = stored.fields
    return loaded(RedBeatSchedulerEntry, app, KEY_OF_A, 1.0, (definition, meta, mark)).key


def test_an_entry_keeps_its_key_while_only_we_write_its_runs(app, stored):
    assert KEY.fullmatch(stored.key)[1] == KEY_OF_A
    assert key_with(app, stored, stored.fields[1]) == stored.key


def test_a_rescheduled_entry_has_another_key_in_the_same_life(app, stored):
    key = key_with(app, stored, meta_of(app))
    assert key != stored.key
    assert life_of(key) == life_of(stored.key)


def test_a_run_of_plain_redbeat_begins_another_life_which_is_the_same_for_all_beats(app, stored):
    meta = meta_of(app, total_run_count=2)
    key = key_with(app, stored, meta)
    assert life_of(key) != life_of(stored.key)
    assert key_with(app, stored, meta) == key


# -- what is in Redis, and what is known of it -------------------------------------------------------------------------


class FakeHashes:
    """A Redis: the score and the fields of each entry, by its key. ``others`` writes something before our next write."""

    def __init__(self):
        self.rows = {}
        self.others = lambda: None

    def look(self):
        return Look({key: score for key, (score, _) in self.rows.items()}, has_statics=False, lock_rest=None)

    def fetch(self, keys):
        rows = [self.rows.get(key, (None, (None, None, None))) for key in keys]
        return [score for score, _ in rows], [fields for _, fields in rows]

    def missing(self, keys):
        return []

    def write(self, becoming, known):
        self.others()
        done = [key in self.rows and self.rows[key][0] == known[key].score for key in becoming]
        self.rows |= {
            key: (each.score, each.fields) for (key, each), ok in zip(becoming.items(), done, strict=True) if ok
        }
        return done


class Parts:
    def __init__(self, app):
        self.hashes = FakeHashes()
        self.entries = Entries(
            app,
            RedBeatSchedulerEntry,
            self.hashes,
            Statics(app, lambda entries: None, lambda entries: None),
            Complaints(lambda: 0.0),
        )
        self.runs = Runs(self.entries, self.hashes)

    def save(self, stored, score=1.0):
        self.hashes.rows[KEY_OF_A] = (score, stored.fields)

    def run(self):
        """Let the entry run once, as the beat does when it has published a tick."""
        one = self.entries.stored[KEY_OF_A]
        one.entry.last_run_at, one.entry.total_run_count = one.entry.default_now(), one.entry.total_run_count + 1
        self.runs.note([one.key])
        self.runs.write_down()


@pytest.fixture
def parts(app, stored):
    parts = Parts(app)
    parts.save(stored)
    parts.entries.follow(parts.hashes.look())
    return parts


def test_a_run_is_written_down_under_the_same_key(parts, stored):
    parts.run()
    assert parts.entries.stored[KEY_OF_A].key == stored.key
    assert json.loads(parts.hashes.rows[KEY_OF_A][1][1])["total_run_count"] == 2


def test_a_run_is_written_down_though_somebody_has_just_changed_the_score(parts, stored):
    def change():
        parts.hashes.others = lambda: None
        parts.save(stored, score=0.0)

    parts.hashes.others = change
    parts.run()
    assert json.loads(parts.hashes.rows[KEY_OF_A][1][1])["total_run_count"] == 2


def test_a_run_of_an_entry_that_was_just_deleted_does_not_bring_it_back(parts):
    parts.hashes.others = parts.hashes.rows.clear
    parts.run()
    assert parts.hashes.rows == {}
    assert parts.entries.stored == {}


def test_what_only_ran_is_not_read_again_and_what_is_due_earlier_is(parts, stored):
    entry = parts.entries.stored[KEY_OF_A].entry
    parts.save(stored, score=2.0)
    parts.entries.follow(parts.hashes.look())
    assert parts.entries.stored[KEY_OF_A].entry is entry
    parts.save(stored, score=0.5)
    parts.entries.follow(parts.hashes.look())
    assert parts.entries.stored[KEY_OF_A].entry is not entry
