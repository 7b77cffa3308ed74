"""What only the database store promises: beside the project's own transactions, and with a server that hangs or is gone."""

from __future__ import annotations

import contextlib
import importlib
import re
import sqlite3
import threading
import time

import pytest
from servers import free_port, need_django, wait_until

from celery_lockbeat import ConfigurationError, Lock, StoreUnavailable
from celery_lockbeat.exceptions import StoreRefused
from celery_lockbeat.stores.base import TOKEN_MEMORY, Claim, EntryState, Held, Lease, Wanted


@pytest.fixture
def djangos():
    need_django()
    return importlib.import_module("djangos")


@pytest.fixture
def contrib(djangos):
    djangos.configure()
    return importlib.import_module("celery_lockbeat.contrib.django.store")


@pytest.fixture
def client(contrib):
    return importlib.import_module("celery_lockbeat.contrib.django.postgresql.client")


@pytest.fixture
def alias(djangos, cluster):
    return djangos.use(cluster.database)


@pytest.fixture
def store(contrib, alias):
    with contextlib.closing(contrib.PostgresStore(alias)) as store:
        yield store


@pytest.fixture
def spare_cluster(djangos):
    """A cluster of this test alone, and its alias."""
    from postgres import Postgres

    with Postgres() as cluster:
        alias = djangos.use(cluster.database)
        djangos.migrate(alias, "lockbeat")
        cluster.alias = alias
        yield cluster


@pytest.fixture
def file(djangos, tmp_path):
    return djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"))


def open_one(contrib, alias):
    return contextlib.closing(contrib.open_database(alias, key_prefix="lockbeat:"))


# -- transactions of the project ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["alias", "file"])
def test_a_lock_that_is_taken_in_a_transaction_is_seen_at_once_and_outlives_its_rollback(contrib, request, database):
    from django.db import transaction

    alias = request.getfixturevalue(database)
    with open_one(contrib, alias) as store, open_one(contrib, alias) as other:
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=alias):
            lease = store.locks.acquire("key", holder="a", ttl=30)
            assert isinstance(other.locks.acquire("key", holder="b", ttl=30), Held)
            raise ZeroDivisionError
        assert isinstance(other.locks.acquire("key", holder="b", ttl=30), Held)
        assert store.locks.extend([(lease, 30)]) == [True]
        assert store.locks.release(lease)


def test_a_transaction_that_has_failed_keeps_no_lock_from_being_released(store, alias):
    from django.db import DatabaseError, connections, transaction

    lease = store.locks.acquire("key", holder="a", ttl=30)
    with contextlib.suppress(DatabaseError), transaction.atomic(using=alias):
        with contextlib.suppress(DatabaseError), connections[alias].cursor() as cursor:
            cursor.execute("SELECT nonsense")
        assert store.locks.release(lease)


def test_on_sqlite_a_transaction_that_has_written_makes_the_store_wait_and_no_longer_than_its_time_limit(contrib, file):
    from django.contrib.auth.models import Group
    from django.db import transaction

    with contextlib.closing(contrib.SQLiteStore(file, timeout=0.3)) as store:
        with transaction.atomic(using=file):
            Group.objects.using(file).create(name="g")
            started = time.monotonic()
            with pytest.raises(StoreUnavailable, match="locked"):
                store.locks.acquire("key", holder="a", ttl=30)
            assert time.monotonic() - started < 3
        assert isinstance(store.locks.acquire("key", holder="a", ttl=30), Lease)


def test_a_task_and_a_lock_of_an_app_live_in_the_database(alias, make_app, store):
    app = make_app(lockbeat_driver="database", lockbeat_connection=alias, broker_url="memory://", result_backend=None)
    with Lock("nightly", app=app) as lock:
        assert isinstance(store.locks.acquire("nightly", holder="b", ttl=30), Held)
        assert lock.token > 0
    assert isinstance(store.locks.acquire("nightly", holder="b", ttl=30), Lease)


# -- connections -------------------------------------------------------------------------------------------------------


def every_operation(store):
    lease = Lease("key", "a", "r", 1)
    return [
        lambda: store.locks.acquire("key", holder="a", ttl=30, run="r"),
        lambda: store.locks.extend([(lease, 30), (lease, 30)]),
        lambda: store.locks.release(lease, remember_for=30),
        lambda: store.locks.free("other", holder="a"),
        lambda: store.locks.acquire_all([("key", "a"), ("other", "a")], Wanted(30, "r2")),
        lambda: store.locks.acquire_all([("held", "a"), ("key", "b")], Wanted(30, "r3")),
        lambda: store.locks.release_all([lease, lease._replace(key="other")], remember_for=30),
        lambda: store.beats.join("app", "r"),
        lambda: store.beats.list_entries("app", "r", [("e", EntryState(0, "t"))], complete=True),
        lambda: store.beats.claim("app", "r", [Claim("id", "e", EntryState(1, "t"), {})], ttl=5),
        lambda: store.beats.take_over("app", "r", ["id"], ttl=5),
        lambda: store.beats.settle("app", "r", [("id", "e")]),
        lambda: store.beats.leave("app", "r"),
        lambda: store.journal.append("app", "batch", ["1", "2"], keep=100),
        lambda: store.journal.records("app"),
    ]


def assert_unavailable(store, within):
    for operation in every_operation(store):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            operation()
        assert time.monotonic() - started < within


def test_each_operation_is_one_round_trip_outside_of_any_transaction(store, client, monkeypatch):
    asked = []
    carry_out = client._carry_out
    monkeypatch.setattr(client, "_carry_out", lambda *args: asked.append(args) or carry_out(*args))
    for operation in every_operation(store):
        asked.clear()
        operation()
        (told,) = asked
        assert told[0].transaction_status == 0  # idle, and in none


def test_a_server_that_hangs_is_unavailable_in_bounded_time_and_comes_back(contrib, spare_cluster):
    with contextlib.closing(contrib.PostgresStore(spare_cluster.alias, timeout=0.3)) as store:
        lease = store.locks.acquire("key", holder="a", ttl=600)
        spare_cluster.pause()
        try:
            assert_unavailable(store, within=5)
        finally:
            spare_cluster.resume()
        wait_until(lambda: tried(store.locks.extend, [(lease, 600)]) == [True])


def tried(operation, *args):
    with contextlib.suppress(StoreUnavailable):
        return operation(*args)


def test_a_server_that_is_not_there_is_unavailable_at_once(contrib, djangos, cluster):
    alias = djangos.use({**cluster.database, "PORT": str(free_port())})
    assert_unavailable(contrib.PostgresStore(alias), within=5)


def test_a_server_that_was_restarted_has_kept_everything(contrib, spare_cluster):
    with open_one(contrib, spare_cluster.alias) as store:
        lease = store.locks.acquire("key", holder="a", ttl=600, run="r")
        done = store.locks.acquire("done", holder="a", ttl=600, run="r")
        store.locks.release(done, remember_for=600)
        spare_cluster.kill()
        assert_unavailable(store, within=5)
        spare_cluster.start()
        assert store.locks.extend([(lease, 600)]) == [True]
        assert not isinstance(store.locks.acquire("done", holder="b", ttl=600, run="r"), Lease)


def test_connections_that_the_server_closed_meanwhile_are_opened_anew(store, cluster):
    lease = store.locks.acquire("key", holder="a", ttl=600)
    for operation in every_operation(store)[1:]:
        cluster.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        operation()
    assert store.locks.extend([(lease, 600)]) == [True]


def test_an_acquire_that_nobody_waits_for_any_more_is_not_carried_out(contrib, spare_cluster):
    with contextlib.closing(contrib.PostgresStore(spare_cluster.alias, timeout=0.3)) as store:
        store.locks.release(store.locks.acquire("other", holder="a", ttl=30))  # the server's time is known
        spare_cluster.pause()
        try:
            with pytest.raises(StoreUnavailable):
                store.locks.acquire("key", holder="late", ttl=600)
            time.sleep(0.2)  # past the time limit and its slack, on every clock
        finally:
            spare_cluster.resume()
        # it reads now what it was sent
        wait_until(lambda: isinstance(tried_acquire(store), Lease))


def tried_acquire(store):
    with contextlib.suppress(StoreUnavailable):
        answer = store.locks.acquire("key", holder="next", ttl=600)
        assert isinstance(answer, Lease), "the late one has it"
        return answer


def test_who_waits_for_a_row_gives_up_in_time(store, cluster):
    import psycopg

    store.locks.acquire("key", holder="a", ttl=600)
    with psycopg.connect(**cluster.conninfo) as other:
        other.execute("SELECT FROM lockbeat_lock FOR UPDATE")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.locks.free("key", holder="a")
        assert 0.5 < time.monotonic() - started < 2
    assert store.locks.free("key", holder="a")


def test_a_call_that_was_broken_off_leaves_no_answer_for_the_next(store, client, monkeypatch):
    class Stop(BaseException):
        pass

    def stop(*args):
        raise Stop

    lease = store.locks.acquire("key", holder="a", ttl=600)
    with monkeypatch.context() as broken:
        # as a soft time limit does it: the call is sent, its answer is not read
        broken.setattr(client, "_wait", stop)
        with pytest.raises(Stop):
            store.locks.acquire("key", holder="b", ttl=600)
    assert store.locks.extend([(lease, 600)]) == [True]
    assert store.locks.release(lease) is True


def test_a_stricter_isolation_is_no_trouble(contrib, djangos, cluster):
    database = {**cluster.database, "OPTIONS": {"options": "-c default_transaction_isolation=serializable"}}
    taken = []

    def take(n):
        with open_one(contrib, djangos.use(database)) as store:
            for _ in range(20):
                if isinstance(lease := store.locks.acquire("key", holder=str(n), ttl=60), Lease):
                    taken.append(lease.token)
                    assert store.locks.release(lease)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken
    assert len(taken) == len(set(taken))


def test_the_databases_role_and_options_are_honoured_and_its_pool_is_not_used(contrib, djangos, cluster):
    cluster.query("DROP ROLE IF EXISTS locker")
    cluster.query("CREATE ROLE locker")
    alias = djangos.use({**cluster.database, "OPTIONS": {"assume_role": "locker", "pool": True}})
    with open_one(contrib, alias) as store, pytest.raises(StoreUnavailable, match="permission denied"):
        store.locks.acquire("key", holder="a", ttl=30)
    cluster.query("DROP ROLE locker")


def test_a_burst_leaves_few_connections(client, store, cluster):
    threads = [
        threading.Thread(target=store.locks.acquire, args=(f"{n}",), kwargs={"holder": "a", "ttl": 30})
        for n in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.client._idle) <= client.KEPT_IDLE


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_for_ever(client, store, cluster, monkeypatch):
    monkeypatch.setattr(client, "PURGE_EVERY", 5)
    for number in range(20):
        store.locks.release(store.locks.acquire(f"key {number}", holder="a", ttl=30, run="r"), remember_for=10)
    past = f"forget = forget - {round((TOKEN_MEMORY + 60) * 1e6)}"
    for table in ("lockbeat_lock", "lockbeat_done"):
        cluster.query(f"UPDATE {table} SET {past}")
    for _ in range(10):
        store.locks.release(store.locks.acquire("other", holder="a", ttl=30))
    assert cluster.query("SELECT count(*) FROM lockbeat_lock") == [(1,)]
    assert cluster.query("SELECT count(*) FROM lockbeat_done") == [(0,)]


def test_the_migration_can_be_undone_and_done_again(contrib, djangos, cluster, file):
    from django.core.management import call_command

    for alias in (djangos.use(cluster.database), file):
        call_command("migrate", "lockbeat", "zero", database=alias, verbosity=0)
        expected = r"(has no such table as lockbeat_host|does not exist); has 'manage\.py migrate lockbeat' been run\?"
        with open_one(contrib, alias) as store, pytest.raises(StoreRefused, match=expected):
            store.locks.acquire("key", holder="a", ttl=30)
        djangos.migrate(alias, "lockbeat")
        with open_one(contrib, alias) as store:
            assert isinstance(store.locks.acquire("key", holder="a", ttl=30), Lease)


def test_there_is_nothing_left_to_migrate(djangos):
    from django.core.management import call_command

    djangos.configure()
    call_command("makemigrations", "lockbeat", check=True, dry_run=True, verbosity=0)


def test_the_tables_in_sqlite_are_those_of_the_memory_store(file, tmp_path):
    from celery_lockbeat.stores.sqlite.store import MemoryStore

    memory = MemoryStore(tmp_path / "memory")
    memory.locks.acquire("key", holder="a", ttl=30)
    memory.close()

    def tables(path):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            # an app of its own, whose tables no store has
            ours = "name LIKE 'lockbeat_%' AND name NOT LIKE 'lockbeat_policies_%'"
            rows = connection.execute(f"SELECT name, sql FROM sqlite_master WHERE {ours}").fetchall()
        return {name: " ".join(sql.split()) for name, sql in rows if sql}

    assert tables(tmp_path / "db.sqlite3") == tables(tmp_path / "memory" / "state.db")


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_wrong_database_is_refused_by_name(contrib, djangos, tmp_path):
    with pytest.raises(ConfigurationError, match=r"lock_connection is 'nonsense'; allowed: .*default"):
        contrib.open_database("nonsense", key_prefix="lockbeat:")
    memory = djangos.use(djangos.sqlite(":memory:"))
    with pytest.raises(ConfigurationError, match="in memory; allowed: a file, or PostgreSQL"):
        contrib.open_database(memory, key_prefix="lockbeat:")
    dummy = djangos.use({"ENGINE": "django.db.backends.dummy"})
    with pytest.raises(ConfigurationError, match="unknown; allowed: postgresql, sqlite"):
        contrib.open_database(dummy, key_prefix="lockbeat:")


def test_a_database_that_says_no_is_refused_at_start_up_by_its_name_and_place(contrib, djangos, cluster, file):
    from django.core.management import call_command

    place = re.escape(f"{cluster.database['HOST'] or 'localhost'}:{cluster.database['PORT']}")
    for wrong in ({"USER": "nobody-there"}, {"NAME": "nothing-there"}):
        alias = djangos.use({**cluster.database, **wrong})
        expected = rf"at {place} \(DATABASES\['{alias}'\]\) refuses us: .*does not exist"
        with open_one(contrib, alias) as store:
            with pytest.raises(ConfigurationError, match=expected):
                store.check()
            with pytest.raises(StoreRefused, match=expected):
                store.locks.acquire("key", holder="a", ttl=30)
    for alias in (djangos.use(cluster.database), file):
        with open_one(contrib, alias) as store:
            store.check()
            call_command("migrate", "lockbeat", "zero", database=alias, verbosity=0)
        with open_one(contrib, alias) as store, pytest.raises(ConfigurationError, match="manage.py migrate lockbeat"):
            store.check()
        djangos.migrate(alias, "lockbeat")
    away = djangos.use({**cluster.database, "PORT": str(free_port())})
    with open_one(contrib, away) as store, pytest.raises(StoreUnavailable, match="does not answer"):
        store.check()


def test_a_project_without_our_app_is_told_so(contrib):
    from django.test import override_settings

    with override_settings(INSTALLED_APPS=["django_celery_beat"]):
        with pytest.raises(ConfigurationError, match=r"celery_lockbeat\.contrib\.django in INSTALLED_APPS"):
            contrib.open_database("default", key_prefix="lockbeat:")


def test_psycopg2_is_refused(contrib, alias, monkeypatch):
    monkeypatch.setattr("django.db.backends.postgresql.psycopg_any.is_psycopg3", False)
    with pytest.raises(ConfigurationError, match="allowed: psycopg 3"):
        contrib.open_database(alias, key_prefix="lockbeat:")


def test_a_file_that_is_not_there_is_not_made(contrib, djangos, tmp_path):
    alias = djangos.use(djangos.sqlite(tmp_path / "none.sqlite3"))
    with open_one(contrib, alias) as store, pytest.raises(StoreUnavailable, match=r"none\.sqlite3"):
        store.locks.acquire("key", holder="a", ttl=30)
    assert not (tmp_path / "none.sqlite3").exists()


def test_without_django_the_extra_is_named(make_app, monkeypatch):
    monkeypatch.setattr("celery_lockbeat.options.app.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"lock_driver is 'database'.*pip install 'celery-lockbeat\[django\]'"):
        Lock("key", app=make_app(lockbeat_driver="database"))
