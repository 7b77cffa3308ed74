"""What the doctor can find: how bad each kind of finding is, why it matters, and what to do. docs/how-to/doctor.md repeats it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

__all__ = ["KINDS", "LEVELS", "Finding", "Kind"]

#: The worst first.
LEVELS: Final = ("error", "warning", "note")


class Kind(NamedTuple):
    """One thing that can be found: how bad it is, why it matters, and what to do."""

    name: str
    level: str
    why: str
    do: str


class Finding(NamedTuple):
    """A kind, what it was found about, and what was found."""

    kind: Kind
    about: str
    what: str


#: Of each kind its name and level, then why it matters, then what to do, a line each. First the settings and the store, then
#: the tasks and the broker, then the beats, then the journal and what it tells.
_TEXT: Final = """
settings: error
    Workers and beats of this app do not start, or fail at their first run.
    Set it to what is allowed.
app-not-loaded: error
    Its tasks and entries are not known, so they were not checked.
    Make the modules of the tasks importable from here.
store-unreachable: error
    Beats publish nothing, and locked runs fail with StoreUnavailable or, with lock_driver auto, lock on their own host only.
    Start the server, or correct lockbeat_redis_url and lockbeat_redis_options.
store-refuses: error
    Workers and beats do not start, and what runs already fails with StoreRefused; nothing falls back from a server that is there.
    Correct the user, the password, the database and the scheme in lockbeat_redis_url, and lockbeat_redis_options.
database-unreachable: error
    Beats publish nothing, and locked runs fail with StoreUnavailable.
    Start the database, correct DATABASES in Django's settings, or run 'manage.py migrate lockbeat'.
memory-unusable: error
    Beats publish nothing, and locked runs fail.
    Let lockbeat_memory_path be a directory on a local disk that is this user's alone (mode 0700), with room in it.
version: error
    The scripts use commands that came with Redis 6.2.
    Use Redis 6.2 or newer, or Valkey.
permissions: error
    What needs these commands fails with StoreUnavailable, some of it only in rare cases, such as a take-over.
    Grant them to the user of the URL with ACL SETUSER, on the keys that start with lockbeat_key_prefix.
writes-refused: error
    No lock can be taken and no tick be claimed.
    Look up the server's words: it is out of memory, cannot save, is a replica, or part of a cluster that is down.
replica: error
    A replica is read-only: no lock can be taken there.
    Let the URL name the primary, or the Sentinels that know it.
sentinel: error
    A Sentinel knows where the primary is; it keeps no data.
    Let the URL name the server that keeps the data.
cluster: error
    Each lock lives on the node of its key; the client asks this node only and fails for the others' keys.
    Use a client for clusters, or a server that is none.
min-replicas: error
    No lock counts before so many replicas have it: nothing can run.
    Connect the replicas, or lower lockbeat_redis_min_replicas.
failover: warning
    A replica that takes over may not have received the newest locks and claims: two runs of one key, or a tick twice.
    Set lockbeat_redis_min_replicas to 1, and guard writes that must never collide with the fencing token.
eviction: error
    A full server deletes keys: with a lock, so that a second run starts beside the first, or with the state of entries.
    Set maxmemory-policy to noeviction, or give the locks a server of their own.
eviction-policy: warning
    As soon as maxmemory is set, a full server deletes locks and the state of entries.
    Set maxmemory-policy to noeviction.
remembers-much: warning
    What is remembered of finished runs grows with their number; at maxmemory no lock can be taken any more.
    Raise maxmemory, or lower lock_dedupe_ttl, but not below the time after which the broker delivers again.
saving-fails: error
    The server may refuse writes at any time, and comes back from a restart without its newest locks.
    See its log: mostly the disk is full, or its directory not writable.
persistence: warning
    After a restart all locks are free while their runs go on, finished runs are forgotten, and entries begin anew.
    Set appendonly to yes.
snapshots-only: note
    A crash loses the locks, finished runs and ticks since the last snapshot.
    Set appendonly to yes.
unencrypted: warning
    Whoever sees the traffic reads the password, and can change locks on their way.
    Use rediss://, unless the network is your own.
unverified: warning
    Whoever can redirect the traffic can be the server.
    Set ssl_cert_reqs to required, with ssl_ca_certs where the CA is your own.
no-password: warning
    Whoever reaches the server can free locks and change ticks.
    Set a password, best with an ACL user of its own, in the URL.
clock-skew: warning
    Crontabs are due by the clock of the beat's host: they fire as much too early or too late. Locks do not care.
    Synchronise both clocks (NTP).
too-slow: error
    A lock is lost before its renewal arrives.
    Raise lock_ttl (and lockbeat_claim_ttl), or move the server nearer.
slow: warning
    A few slow answers in a row lose a lock.
    Raise lock_ttl (and lockbeat_claim_ttl), or move the server nearer.
one-host: warning
    A run excludes others on its own host only; workers on other hosts share the broker, but not the locks.
    Set lockbeat_redis_url, unless all workers and beats are on one host.
fallback: note
    While Redis is out of reach, these tasks exclude on their own host only (driver_fallback in the log).
    Set lock_driver="redis" where a run must rather fail than run twice.
unchecked: note
    Something may be wrong there that this command would find.
    Run it as a user who may do this, once.
visibility-timeout: warning
    The broker delivers the message of a long run again while it goes on: a LockedTask postpones the copy over and over, another task runs beside itself.
    Raise visibility_timeout in broker_transport_options (RabbitMQ: consumer_timeout) above the longest run, or set a time_limit below it.
unbounded-run: note
    A run that takes longer than that gets its message again while it goes on; its copies are postponed until it ends.
    Set a time_limit.
forgets-copies: warning
    A copy that comes after its run has been forgotten runs again: a worker that dies right after a run leaves such one.
    Set lock_dedupe_ttl, or lockbeat_dedupe_ttl, to more than the visibility timeout, or not at all: it follows by itself.
acks-late: warning
    When a pool child dies (out of memory, say), Celery acknowledges the message all the same: the run is lost.
    Set task_reject_on_worker_lost too.
reject-without-acks-late: warning
    The message is acknowledged before the run: there is nothing left to reject, and a run whose worker dies is lost.
    Set acks_late too.
acks-early: note
    The message is acknowledged before the run: a tick whose worker dies is not run again.
    Set acks_late and reject_on_worker_lost where each tick must come to its end.
outlives-lease: warning
    The lock is not renewed: a run that takes longer than its lock_ttl goes on without it, and another may begin.
    Set lock_auto_extend, or a time_limit below lock_ttl.
long-lease: warning
    When a host dies, its locks are held for so long. Most often it is a time in milliseconds.
    Give seconds. A lease is renewed while its run goes on: it need not be as long as a run.
unlocked-task: note
    A tick is published at least once: only a LockedTask tells the copies.
    Set base=LockedTask, or let the task bear to run twice.
unknown-task: error
    Each of its ticks is sent, and refused by every worker of this app.
    Correct the name, or add its module to imports. Where another app's workers run it: --ignore unknown-task.
not-counted: warning
    pause_after_failures counts the runs of a LockedTask alone: the entry is never paused.
    Set base=LockedTask, or take pause_after_failures away.
broken-entry: error
    Every beat skips it.
    Correct or delete it, where it is kept.
no-beat: error
    Nothing of the schedule is published.
    Start one, or more; see their logs. Where this is asked before they are started: --ignore no-beat.
definitions-differ: error
    Who has an older definition leaves the entry to those with the newer one: of two apps that share a name and a store one is never served.
    Finish the release; or give each app a name of its own, Celery("shop"), or a lockbeat_key_prefix of its own.
locks-differ: error
    Runs of the same task under different keys, or in different stores, do not exclude each other.
    Finish the release, or give all workers the same settings; see docs/how-to/rolling-updates.md.
homes-differ: error
    Beats and workers of one app that keep their locks and ticks in different places do not see each other: ticks are doubled, and runs overlap.
    Finish the release, or give all beats and workers the same settings; see docs/how-to/rolling-updates.md.
app-name: warning
    Beats keep their state by the name of the app: all apps without one that share a store mix up their schedules.
    Give it a name of its own: Celery("shop").
shared-app: error
    Beats of two apps that share a name and a store count each other as replicas: they mix up entries of one name, and leave each other's claims lying.
    Give each app a name of its own, Celery("shop"), or a lockbeat_key_prefix of its own.
lists-differ: warning
    Either a release is under way, which is fine, or beats of two apps share a name and a store.
    Look again after the release; then give each app a name of its own.
plain-redbeat: error
    A plain RedBeat knows nothing of claims: each tick is sent by it and by one of ours.
    Stop it. The lock of one that was killed ends by itself, after redbeat_lock_timeout.
plain-beat: warning
    Celery's own beat knows no replicas: two send everything twice, and the only one is missed when it dies.
    Set beat_scheduler = "celery_lockbeat:LockedScheduler", or start beats with -S lockbeat.
journal-unreadable: warning
    What ran and what did not is not known here; who writes it keeps 10,000 records, then drops the oldest.
    Grant the commands that it names to the user of the URL, or run 'manage.py migrate lockbeat'.
journal-not-written: warning
    Ticks are published that are in no record: history, report and audit do not know them.
    Look for "the journal is not written" in the logs of the beats, and give them the lockbeat_journal and the release of this app.
journal-off: note
    Nobody can tell afterwards what ran, what was skipped and why; nor can this command tell what it has done to entries.
    Set lockbeat_journal to how many records are kept, or not at all. Where it is off for a reason: --ignore journal-off.
journal-short: note
    Who asks in the morning what ran at night finds nothing.
    Set lockbeat_journal higher; a record takes less than 400 bytes.
records-dropped: note
    A process keeps 10,000 records while the store is away, then drops the oldest: what became of these ticks and runs is not known.
    Look why the store was away for so long.
records-unreadable: note
    Somebody else has written there: what these records told, if they were records, is not known.
    Let nobody else write to keys that start with lockbeat_key_prefix, nor to the tables of lockbeat.
entry-silent: error
    It is published, and nothing good comes of it.
    Ask history, with the name of the entry, and the logs of the workers. If its ticks are queued, does a worker consume their queue?
always-skipped: warning
    A run takes longer than it is from one tick to the next, so the ticks in between are skipped, each time.
    Choose an interval longer than a run. Where runs for different arguments may overlap, name the argument in lock_key.
busy-key: warning
    Whoever comes for the lock finds it held more often than not, and is skipped or waits.
    Make the runs shorter or fewer, or let those that may overlap have keys of their own: name an argument in lock_key.
"""


def _kinds(lines: list[str]) -> Iterator[Kind]:
    for heading, why, do in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        name, level = heading.split(": ")
        yield Kind(name, level, why.strip(), do.strip())


KINDS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in _kinds(_TEXT.strip().splitlines())}
