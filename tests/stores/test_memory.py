"""What only the memory store promises: death frees at once, the state lasts, and nobody else gets at it."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from servers import wait_until

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.stores.base import TOKEN_MEMORY, Finished, Held, Lease
from celery_lockbeat.stores.sqlite import database, directory
from celery_lockbeat.stores.sqlite import store as memory
from celery_lockbeat.stores.sqlite.liveness import this_process
from celery_lockbeat.stores.sqlite.store import MemoryStore

FILES = ["state.db", "state.db-wal", "state.db-shm", "alive", "choosing"]

#: A lease that no test waits for.
LONG = 600


class Clock:
    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return monotonic() + self.ahead


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory"


@pytest.fixture
def store(path, clock):
    store = MemoryStore(path, clock=clock)
    yield store
    store.close()


def take(store, key="key", holder="a", ttl=LONG, **more) -> Lease:
    lease = store.locks.acquire(key, holder=holder, ttl=ttl, **more)
    assert isinstance(lease, Lease), lease
    return lease


def is_held(store, key="key"):
    """Ask from another process: a process never conflicts with its own record locks."""
    asked = multiprocessing.get_context("fork").SimpleQueue()

    def ask():
        asked.put(isinstance(store.locks.acquire(key, holder="asks", ttl=0.001), Held))

    asking = multiprocessing.get_context("fork").Process(target=ask)
    asking.start()
    asking.join(30)
    assert asking.exitcode == 0
    return asked.get()


@pytest.fixture
def fork():
    """Fork children that do something, say so, and stay until they are ended; all are ended."""
    children = []
    context = multiprocessing.get_context("fork")

    def start(body, *args):
        done = context.Event()

        def run():
            body(*args)
            done.set()
            signal.pause()

        child = context.Process(target=run)
        child.start()
        children.append(child)
        assert done.wait(30)
        return child

    yield start
    for child in children:
        child.kill()
        child.join()


def kill(child):
    child.kill()
    child.join()


# -- death -------------------------------------------------------------------------------------------------------------


def test_a_killed_holders_key_is_free_at_once(store, fork):
    child = fork(take, store, "key", "dead")
    assert isinstance(store.locks.acquire("key", holder="b", ttl=LONG), Held)
    kill(child)
    assert take(store, holder="b", ttl=LONG)


def test_a_stopped_holder_is_alive_and_its_lease_ends_by_its_ttl(store, clock, fork):
    child = fork(take, store, "key", "stopped")
    os.kill(child.pid, signal.SIGSTOP)
    assert isinstance(store.locks.acquire("key", holder="b", ttl=LONG), Held)
    clock.ahead += LONG
    take(store, holder="b")


def test_a_process_with_the_same_pid_is_not_the_dead_holder(store, fork):
    dead = fork(take, store, "key", "dead")
    kill(dead)
    chooser = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(20):
        try:
            chooser.write_text(str(dead.pid - 1))
        except OSError:
            pytest.skip("needs the right to choose a pid")
        heir = fork(take, store, "another key", "heir")
        if heir.pid == dead.pid:
            break
        kill(heir)
    else:
        pytest.skip("others took the pid")
    assert isinstance(store.locks.acquire("another key", holder="b", ttl=LONG), Held)
    take(store, holder="b")


def test_the_child_of_a_dead_holder_does_not_hold_its_key(path, store):
    script = f"""if True:
        import os, signal, sys
        from celery_lockbeat.stores.sqlite.store import MemoryStore
        store = MemoryStore({str(path)!r})
        store.locks.acquire("key", holder="dead", ttl=600)
        child = os.fork()
        if not child:
            store.locks.acquire("the child's", holder="child", ttl=600)
            print(os.getpid(), flush=True)
        signal.pause()
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        child = int(holder.stdout.readline())
        try:
            assert isinstance(store.locks.acquire("key", holder="b", ttl=LONG), Held)
            holder.kill()
            holder.wait()
            take(store, holder="b")
            assert isinstance(store.locks.acquire("the child's", holder="b", ttl=LONG), Held)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_dead_holders_kept_key_stays_kept(store, clock, fork):
    def hold():
        store.locks.release(take(store), hold_for=LONG)

    kill(fork(hold))
    assert isinstance(store.locks.acquire("key", holder="b", ttl=LONG), Held)
    clock.ahead += LONG
    take(store, holder="b")


def test_a_child_that_ends_as_a_program_takes_nothing_from_its_parent(path, store):
    lease = take(store)
    child = os.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", ""])
    os.waitpid(child, 0)
    # not through os._exit: the interpreter tears down what it has inherited
    script = f"""if True:
        import os, sys
        from celery_lockbeat.stores.sqlite.store import MemoryStore
        store = MemoryStore({str(path)!r})
        lease = store.locks.acquire("other", holder="parent", ttl=600)
        child = os.fork()
        if not child:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert store.locks.extend([(lease, 600)]) == [True]
        print("held", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "held\n"
        assert isinstance(store.locks.acquire("other", holder="b", ttl=LONG), Held)
        parent.communicate("", timeout=30)
    assert store.locks.release(lease)
    take(store, "other", "b")


# -- one process, many openings ----------------------------------------------------------------------------------------


def test_another_spelling_of_the_directory_is_the_same_store(tmp_path, path, store):
    (tmp_path / "link").symlink_to(tmp_path)
    other = MemoryStore(tmp_path / "link" / "memory")
    take(store, "one", "a")
    take(other, "two", "a")
    assert isinstance(other.locks.acquire("one", holder="b", ttl=LONG), Held)
    assert isinstance(store.locks.acquire("two", holder="b", ttl=LONG), Held)
    assert is_held(store, "one")
    assert is_held(store, "two")
    other.close()
    assert is_held(store, "one")
    assert is_held(store, "two")


def test_a_relative_path_is_meant_from_where_the_store_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = MemoryStore("relative")
    monkeypatch.chdir("/")
    take(store)
    store.close()
    assert (tmp_path / "relative" / "state.db").exists()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel does not list its locks")
def test_another_opening_does_not_drop_the_locks_of_sqlite(path, store):
    take(store)

    def locks():
        inode = f":{(path / 'state.db').stat().st_ino} "
        return [line for line in Path("/proc/locks").read_text().splitlines() if inode in line]

    assert locks()
    other = MemoryStore(path)
    take(other, "other")
    assert locks()
    other.close()
    assert locks()


# -- what lasts --------------------------------------------------------------------------------------------------------


def test_the_state_survives_a_restart(path, store):
    first = take(store, run="r")
    store.locks.release(first, remember_for=LONG)
    take(store, "held", "a")
    store.close()
    script = f"""if True:
        from celery_lockbeat.stores.sqlite.store import MemoryStore
        store = MemoryStore({str(path)!r})
        print(store.locks.acquire("key", holder="b", ttl=600, run="r"))
        print(store.locks.acquire("held", holder="b", ttl=600))
        print(store.locks.acquire("key", holder="b", ttl=600, run="r2").token)
    """
    answers = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    finished, held, token = answers.stdout.splitlines()
    assert finished.startswith("Finished(")
    assert held.startswith("Held(")
    assert int(token) > first.token


def test_a_reboot_ends_the_leases_and_keeps_tokens_and_finished_runs(path, clock, fork, monkeypatch):
    store = MemoryStore(path, clock=clock, wall=lambda: 1e9)
    first = take(store, "finished", run="r")
    store.locks.release(first, remember_for=LONG)
    store.locks.release(take(store, "kept"), hold_for=LONG)
    holder = fork(take, store, "held", "a")
    kill(holder)
    store.close()

    clock.ahead = -monotonic()  # begins anew
    monkeypatch.setattr(database, "boot_id", lambda: "the next boot")
    after = MemoryStore(path, clock=clock, wall=lambda: 1e9)
    take(after, "held", "b")
    take(after, "kept", "b")
    assert after.locks.acquire("finished", holder="b", ttl=LONG, run="r") == Finished()
    assert take(after, "finished", "b").token > first.token
    clock.ahead += LONG
    assert take(after, "finished", "c", run="r")
    after.close()


def test_after_a_reboot_nobody_is_there_and_definitions_are_still_known(path, clock, monkeypatch):
    store = MemoryStore(path, clock=clock)
    for kind in ("member", "definition"):
        store.announcements.announce("shop", kind, {"a": "1"}, ttl=LONG)
    (known,) = store.announcements.announced("shop", "definition")
    store.close()

    clock.ahead = -monotonic()  # begins anew
    monkeypatch.setattr(database, "boot_id", lambda: "the next boot")
    after = MemoryStore(path, clock=clock)
    assert after.announcements.announced("shop", "member") == []
    (still,) = after.announcements.announced("shop", "definition")
    assert (still.name, still.first) == (known.name, known.first)
    clock.ahead += LONG
    assert after.announcements.announced("shop", "definition") == []
    after.close()


def test_another_name_for_the_same_boot_ends_no_live_lease(path, clock, fork, monkeypatch):
    store = MemoryStore(path, clock=clock)
    fork(take, store, "theirs", "a")
    take(store, "ours", "a")
    store.close()
    monkeypatch.setattr(database, "boot_id", lambda: "another name")
    assert isinstance(store.locks.acquire("theirs", holder="b", ttl=LONG), Held)
    assert isinstance(store.locks.acquire("ours", holder="b", ttl=LONG), Held)
    store.close()


def test_setting_the_wall_clock_changes_no_lease_and_forgets_no_run(path, monkeypatch):
    monkeypatch.setattr(database, "PURGE_EVERY", 1)
    wall = [1e9]
    store = MemoryStore(path, wall=lambda: wall[0])
    last = take(store, "finished", run="r")
    store.locks.release(last, remember_for=LONG)
    take(store, "held", "a")
    for wall[0] in (2e9, 0.5e9):
        assert isinstance(store.locks.acquire("held", holder="b", ttl=LONG), Held)
        assert store.locks.acquire("finished", holder="b", ttl=LONG, run="r") == Finished()
        lease = take(store, "finished", "b")
        assert lease.token > last.token
        last = lease
        store.locks.release(last)
    store.close()


def test_nothing_is_kept_for_ever(path, store, clock, monkeypatch):
    monkeypatch.setattr(database, "PURGE_AT_MOST", 3)
    monkeypatch.setattr(database, "PURGE_EVERY", 5)
    for number in range(50):
        store.locks.release(take(store, f"key {number}", run="r"), remember_for=10)
    take(store, "held", ttl=100 * TOKEN_MEMORY)

    def rows():
        with contextlib.closing(sqlite3.connect(path / "state.db")) as connection:
            return [
                connection.execute(f"SELECT count(*) FROM lockbeat_{table}").fetchone()[0] for table in ("lock", "done")
            ]

    assert rows() == [51, 50]
    clock.ahead += TOKEN_MEMORY - 10
    store.locks.release(take(store, "other"))
    assert rows()[0] == 52, "tokens are remembered for their time"
    clock.ahead += 30
    left = [rows()[0]]
    while rows()[0] > 2:
        assert len(left) < 200
        store.locks.release(take(store, "other"))
        left.append(rows()[0])
    assert max(before - after for before, after in itertools.pairwise(left)) <= 3, "bounded work at each call"
    assert rows() == [2, 0]
    assert isinstance(store.locks.acquire("held", holder="b", ttl=1), Held)


# -- trouble -----------------------------------------------------------------------------------------------------------


def test_a_process_that_is_stopped_in_a_transaction_makes_the_store_unavailable_for_others_and_hangs_none(path, fork):
    store = MemoryStore(path, timeout=0.3)
    lease = take(store)

    context = multiprocessing.get_context("fork")
    inside = context.Event()

    def stop_inside():
        def work(connection, now):
            inside.set()
            os.kill(os.getpid(), signal.SIGSTOP)

        store.database.atomically(work)

    stopped = context.Process(target=stop_inside)
    stopped.start()
    assert inside.wait(30)
    try:
        started = time.monotonic()
        refused = []

        def ask():
            with pytest.raises(StoreUnavailable, match=str(path)):
                store.locks.extend([(lease, LONG)])
            refused.append(True)

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 16
        # one after the other they would take 16 timeouts
        assert time.monotonic() - started < 3
        with pytest.raises(StoreUnavailable):
            MemoryStore(path, timeout=0.1).locks.acquire("key", holder="b", ttl=LONG)
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.join(30)
    assert stopped.exitcode == 0
    assert store.locks.extend([(lease, LONG)]) == [True]
    store.close()


def test_a_process_that_is_killed_in_a_transaction_leaves_no_trace(store, fork):
    lease = take(store)
    context = multiprocessing.get_context("fork")

    def die_inside():
        def work(connection, now):
            connection.execute("DELETE FROM lockbeat_lock")
            os.kill(os.getpid(), signal.SIGKILL)

        store.database.atomically(work)

    dying = context.Process(target=die_inside)
    dying.start()
    dying.join(30)
    assert dying.exitcode == -signal.SIGKILL
    assert store.locks.extend([(lease, LONG)]) == [True]


@pytest.mark.parametrize("content", [b"no database" * 1000, b"x" * 100], ids=["long", "short"])
def test_a_corrupt_file_is_an_error_and_no_lock(path, store, content):
    take(store)
    store.close()
    (path / "state.db").write_bytes(content)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=str(path)):
            store.locks.acquire("key", holder="b", ttl=LONG)


def test_a_full_disk_is_an_error_and_the_store_recovers(path, store):
    lease = take(store)
    pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
    store.database.connection.execute(f"PRAGMA max_page_count = {pages}")
    big = "x" * 1_000_000
    with pytest.raises(StoreUnavailable, match="full"):
        store.locks.acquire("big", holder="a", ttl=LONG, description=big)
    assert store.locks.extend([(lease, LONG)]) == [True]
    # on another connection, without that limit
    take(store, "big", description=big)


# -- files that are deleted or replaced while they are used ------------------------------------------------------------


def remove(path, what):
    """Delete as cleaners do: all, or what looks old to them."""
    if what == "directory":
        shutil.rmtree(path)
    for pattern in {"files": ["*"], "state": ["state.db*"], "presence": ["alive"], "database": ["state.db"]}.get(
        what, ()
    ):
        for each in path.glob(pattern):
            each.unlink()


def replace(path):
    """Put an empty store in the place of the one that is used."""
    new = path.with_name("new")
    with contextlib.closing(MemoryStore(new)) as other:
        take(other, "another")
    shutil.rmtree(path)
    new.rename(path)


REMOVALS = ["directory", "files", "state", "presence", "database"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="told in /proc who has what open")
@pytest.mark.parametrize("what", REMOVALS)
def test_a_key_whose_holder_lives_is_given_to_nobody_though_the_files_are_deleted(path, fork, what):
    """To a process that comes new, before the holder has noticed anything."""
    theirs = multiprocessing.get_context("fork").SimpleQueue()

    def hold():
        held = MemoryStore(path)
        take(held, "finished", run="r")
        theirs.put((take(held), held.locks.release(take(held, "done", run="r"), remember_for=LONG)))
        globals()["_kept"] = held  # as long as this process lives

    holder = fork(hold)
    lease, _ = theirs.get()
    remove(path, what)
    with contextlib.closing(MemoryStore(path)) as newcomer:
        assert isinstance(newcomer.locks.acquire("key", holder="b", ttl=LONG), Held)
        assert newcomer.locks.acquire("done", holder="b", ttl=LONG, run="r") == Finished(task=False)
        # the holder's renewal finds its lease
        assert newcomer.locks.extend([(lease, LONG)]) == [True]
        assert newcomer.locks.release(lease)
        take(newcomer, holder="b")
    assert {each.name for each in path.iterdir()} <= {"alive", "choosing", "state.db", "state.db-shm", "state.db-wal"}
    kill(holder)


@pytest.mark.parametrize("what", REMOVALS)
def test_who_has_the_files_open_itself_puts_them_back_and_loses_nothing(path, store, what):
    lease = take(store)
    remove(path, what)
    assert store.locks.extend([(lease, LONG)]) == [True]
    assert is_held(store)
    with contextlib.closing(MemoryStore(path)) as another:
        assert isinstance(another.locks.acquire("key", holder="b", ttl=LONG), Held)
    assert store.locks.release(lease)


def test_all_that_use_deleted_files_meet_in_the_new_ones(path, store, fork):
    mine = take(store, "mine")
    theirs = multiprocessing.get_context("fork").SimpleQueue()
    steps = [multiprocessing.get_context("fork").Event() for _ in range(2)]

    def use():
        other = MemoryStore(path)
        lease = take(other, "theirs", holder="b")
        steps[0].set()
        steps[1].wait(30)
        theirs.put(
            (isinstance(other.locks.acquire("mine", holder="b", ttl=LONG), Held), other.locks.extend([(lease, LONG)]))
        )

    using = multiprocessing.get_context("fork").Process(target=use)
    using.start()
    assert steps[0].wait(30)
    shutil.rmtree(path)
    assert store.locks.extend([(mine, LONG)]) == [True]
    assert isinstance(store.locks.acquire("theirs", holder="a", ttl=LONG), Held)
    steps[1].set()
    assert theirs.get() == (True, [True])
    using.join(30)


def test_nothing_is_granted_in_files_that_others_have_taken_the_place_of(path, store):
    take(store)
    replace(path)
    take(store, "more")
    with contextlib.closing(MemoryStore(path)) as another:
        assert isinstance(another.locks.acquire("more", holder="b", ttl=LONG), Held), "it was granted where all look"


def test_files_that_are_deleted_between_the_begin_and_the_grant_are_noticed(path, store, monkeypatch):
    take(store, "first")
    deleted = []

    def files(*watched):
        if not deleted:
            deleted.append(shutil.rmtree(path))
        return real(*watched)

    real = database.files_at
    monkeypatch.setattr(database, "files_at", files)
    take(store)
    monkeypatch.undo()
    with contextlib.closing(MemoryStore(path)) as another:
        assert isinstance(another.locks.acquire("key", holder="b", ttl=LONG), Held)
        assert isinstance(another.locks.acquire("first", holder="b", ttl=LONG), Held)


def test_files_that_only_the_dead_had_open_are_begun_anew(path, fork):
    def hold():
        take(MemoryStore(path))

    kill(fork(hold))
    shutil.rmtree(path)
    with contextlib.closing(MemoryStore(path)) as newcomer:
        take(newcomer, holder="b")


def test_a_presence_file_that_is_removed_costs_no_lease_of_who_still_uses_the_store(path, store):
    take(store)
    (path / "alive").unlink()
    take(store, "any other")
    assert is_held(store)


class InterruptedAnywhereError(Exception):
    pass


@pytest.mark.no_cover  # coverage's own locks do not survive this
def test_an_exception_thrown_in_at_any_moment_leaves_no_transaction_open(path, store):
    """As a soft time limit or an abort does it."""
    hits, rounds = 0, 0

    def strike(*_):
        raise InterruptedAnywhereError

    before = signal.signal(signal.SIGALRM, strike)
    try:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            rounds += 1
            if rounds % 5 == 0:
                store.close()
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + (rounds % 97) * 0.00003)
                # Python itself swallows what is raised in a destructor: then nothing more comes in this round
                while time.monotonic() < deadline:
                    store.locks.acquire("key", holder="a", ttl=LONG)
                signal.setitimer(signal.ITIMER_REAL, 0)  # it must not strike below
            except InterruptedAnywhereError:
                hits += 1
            assert not store.database.connection or not store.database.connection.in_transaction
            assert is_free(database._mutex)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 100
    take(store)
    assert is_held(store)


def is_free(mutex):
    free = []

    def ask():
        free.append(mutex.acquire(timeout=5))
        if free[0]:
            mutex.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return free[0]


def test_a_signal_handler_that_interrupts_the_store_cannot_use_it_and_does_not_hang(store):
    answers = []

    def ask(*_):
        with pytest.raises(StoreUnavailable, match="signal handler"):
            store.locks.acquire("other", holder="a", ttl=LONG)
        answers.append(True)

    before = signal.signal(signal.SIGALRM, ask)
    try:
        store.database.atomically(lambda connection, now: signal.raise_signal(signal.SIGALRM))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert answers == [True]
    take(store, "other")


# -- the directory -----------------------------------------------------------------------------------------------------


def test_nothing_is_touched_before_the_first_operation(path):
    MemoryStore(path).close()
    assert not path.exists()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The usual places, of this test alone: what stands for /var/tmp and /tmp, and the directory's name."""
    for name in ("var", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(directory, "PLACES", (str(tmp_path / "var"), str(tmp_path / "tmp")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "var", tmp_path / "tmp", f"celery-lockbeat-{os.geteuid()}"


def test_by_default_each_user_has_a_directory_that_cleaners_leave_alone(places):
    persistent, temporary, name = places
    with contextlib.closing(MemoryStore()) as store:
        take(store)
    assert (persistent / name / "state.db").exists()
    assert list(temporary.iterdir()) == []


def test_without_that_place_it_is_in_the_temporary_one(places):
    persistent, temporary, name = places
    persistent.rmdir()
    with contextlib.closing(MemoryStore()) as store:
        take(store)
    assert (temporary / name / "state.db").exists()


def test_all_processes_agree_on_the_place_whatever_their_environment():
    script = "from celery_lockbeat.stores.sqlite.directory import default_path; print(default_path())"
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    environments = [
        bare,
        {
            **bare,
            "HOME": "/nonexistent",
            "TMPDIR": "/dev/shm",
            "XDG_RUNTIME_DIR": "/run/user/0",
            "XDG_STATE_HOME": "/x",
        },
    ]
    told = {
        subprocess.run([sys.executable, "-c", script], env=each, capture_output=True, text=True, check=True).stdout
        for each in environments
    }
    assert told == {f"/var/tmp/celery-lockbeat-{os.geteuid()}\n"}


def test_where_processes_of_the_earlier_release_are_all_stay_until_the_last_of_them_has_gone(places, fork):
    """It lives in the temporary directory: in two places nobody would exclude the other."""
    persistent, temporary, name = places
    earlier = temporary / name

    def hold_as_the_earlier_release():
        globals()["_kept"] = old = MemoryStore(earlier)
        take(old)
        old.locks.release(take(old, "done", run="r"), remember_for=LONG)

    old = fork(hold_as_the_earlier_release)
    with contextlib.closing(MemoryStore()) as new:
        assert isinstance(new.locks.acquire("key", holder="new", ttl=LONG), Held)
        take(new, "news")
        kill(old)
        take(new, holder="new")

        def come_later():
            globals()["_kept"] = later = MemoryStore()
            assert isinstance(later.locks.acquire("key", holder="later", ttl=LONG), Held), (
                "who came first is there still"
            )

        kill(fork(come_later))
    assert not (persistent / name / "state.db").exists()

    def come_when_all_are_gone():
        this_process()._descriptors.clear()  # of its parent, which is gone in this tale
        with contextlib.closing(MemoryStore()) as last:
            assert last.locks.acquire("done", holder="last", ttl=LONG, run="r") == Finished(task=False)
            take(last, holder="last")  # all who held it there are dead

    # this process has files of the earlier place open until it ends
    for descriptor in this_process()._descriptors.values():
        os.close(descriptor)
    this_process()._descriptors.clear()
    kill(fork(come_when_all_are_gone))
    assert (persistent / name / "state.db").exists(), "what was known has come along"


def test_the_directory_and_its_files_are_for_their_user_alone(path, store):
    before = os.umask(0)
    try:
        take(store)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    assert modes == dict.fromkeys(FILES, 0o600)


def refuses(path):
    with pytest.raises(ConfigurationError, match="lockbeat_memory_path") as refusal:
        MemoryStore(path).locks.acquire("key", holder="a", ttl=LONG)
    assert str(Path(path)) in str(refusal.value)
    assert "allowed" in str(refusal.value)


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777, 0o1777])
def test_a_directory_that_others_can_enter_is_refused(path, mode):
    path.mkdir()
    path.chmod(mode)
    refuses(path)


def test_a_link_to_a_directory_is_refused(tmp_path, path):
    (tmp_path / "real").mkdir(mode=0o700)
    path.symlink_to(tmp_path / "real")
    refuses(path)
    refuses(f"{path}/")


def test_a_file_is_refused(path):
    path.touch()
    refuses(path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path, path):
    refuses(path / "deep" / "er")
    (tmp_path / "file").touch()
    refuses(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_directory_of_another_user_is_refused(path):
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)
    refuses(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(path):
    path.mkdir(mode=0o700)
    (path / "state.db").touch(0o600)
    os.chown(path / "state.db", 65534, 65534)
    refuses(path)


@pytest.mark.parametrize("name", FILES)
def test_a_planted_link_is_refused_and_its_target_untouched(tmp_path, path, name):
    target = tmp_path / "target"
    target.write_text("precious")
    path.mkdir(mode=0o700)
    for plant in (path / name).symlink_to, (path / name).hardlink_to:
        plant(target)
        refuses(path)
        assert target.read_text() == "precious"
        (path / name).unlink()
    (path / name).symlink_to(tmp_path / "not there")
    refuses(path)
    assert not (tmp_path / "not there").exists()


def test_a_platform_without_record_locks_is_refused(path, monkeypatch):
    monkeypatch.setattr(memory, "HostDatabase", None)
    with pytest.raises(ConfigurationError, match="POSIX"):
        MemoryStore(path)


# -- fairness ----------------------------------------------------------------------------------------------------------

HURRY = """
import sys, time
from celery_lockbeat.stores.sqlite.store import MemoryStore
store, me, calls, longest = MemoryStore(sys.argv[1]), sys.argv[2], 0, 0.0
store.locks.release(store.locks.acquire(me, holder=me, ttl=600))
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + 2
while time.monotonic() < end:
    started = time.monotonic()
    store.locks.release(store.locks.acquire(me, holder=me, ttl=600))
    longest = max(longest, time.monotonic() - started)
    calls += 1
print(calls, longest)
"""


def test_8_processes_in_a_hurry_all_get_their_share(path):
    hurrying = [
        subprocess.Popen(
            [sys.executable, "-c", HURRY, path, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(8)
    ]
    # who starts early has the store for itself: they begin together
    assert [process.stdout.readline() for process in hurrying] == ["ready\n"] * 8
    for process in hurrying:
        process.stdin.write("go\n")
        process.stdin.flush()
    shares = [process.communicate(timeout=60)[0].split() for process in hurrying]
    assert [process.returncode for process in hurrying] == [0] * 8
    calls, longest = zip(*((int(calls), float(longest)) for calls, longest in shares), strict=True)
    assert min(calls) > max(calls) / 10, calls
    assert max(longest) < 2, longest


def test_a_dead_holder_is_noticed_by_who_waits(store, fork):
    child = fork(take, store, "key", "dead", 60)
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: isinstance(store.locks.acquire("key", holder="b", ttl=LONG), Lease), 2)
