"""TLS, users and passwords, sockets and databases; each with a real server. What the documentation says of them is run."""

from __future__ import annotations

import logging
import re
from urllib.parse import quote

import pytest
import redis
from celery.utils import uuid
from servers import Server, free_port
from tls import TlsServer, tls
from topologies import Member

from celery_lockbeat import ConfigurationError, Lock, LockedTask
from celery_lockbeat.exceptions import StoreRefused, StoreUnavailable, UnreadableKey
from celery_lockbeat.options import AppOptions
from celery_lockbeat.options.refusals import without_passwords
from celery_lockbeat.stores.base import Claim, EntryState, Held, Lease, Place, Reservation
from celery_lockbeat.stores.redis.store import RedisStore
from docs import DOCS

PAGE = (DOCS / "how-to" / "redis-security.md").read_text()

#: All that a URL must encode, and a regular expression or a shell could take amiss.
PASSWORD = "p@ss:w/o?r#d% [1]"


@pytest.fixture
def opened(request):
    def open_it(url, **arguments):
        store = RedisStore(url, **arguments)
        request.addfinalizer(store.close)
        return store

    return open_it


def assert_works(store):
    lease = store.locks.acquire("key", holder="a", ttl=60, run="r")
    assert isinstance(lease, Lease)
    assert isinstance(store.locks.acquire("key", holder="b", ttl=60), Held)  # an answer that redis-py reads
    assert store.locks.extend([(lease, 60)]) == [True]
    assert store.locks.release(lease, remember_for=0)


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_server(certificates):
    with TlsServer(certificates) as server:
        yield server


def test_tls_with_ones_own_authority_and_a_clients_certificate(tls_server, certificates, opened):
    assert_works(opened(tls_server.url, options=tls(certificates)))
    query = "&".join(f"{name}={quote(value)}" for name, value in tls(certificates).items())
    assert_works(opened(f"{tls_server.url}?{query}"))
    # as one may say it of Sentinels, whose URL has no place for it
    assert_works(opened(tls_server.url.replace("rediss", "redis"), options={"ssl": True, **tls(certificates)}))


def test_celerys_own_tls_settings_are_enough(tls_server, certificates, make_app):
    app = make_app(broker_url=tls_server.url, broker_use_ssl=tls(certificates), result_backend=None)
    with Lock("key", app=app, driver="redis") as lock:
        assert lock.held


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ssl_ca_certs": "other.crt"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ssl_certfile": None, "ssl_keyfile": None}, "(?i)certificate.required|closed|reset|EOF occurred"),
        ({"ssl_ca_certs": "missing.crt"}, "missing.crt"),
    ],
    ids=["an authority that is not the server's", "no client certificate", "a file that is not there"],
)
def test_a_wrong_certificate_is_told_with_its_reason_and_nothing_runs(
    tls_server, certificates, make_app, change, reason
):
    given = {name: value and str(certificates / value) for name, value in change.items()}
    options = {name: value for name, value in {**tls(certificates), **given}.items() if value}
    app = make_app(lockbeat_redis_url=tls_server.url, lockbeat_redis_options=options)
    runs = []

    @app.task(base=LockedTask, lock_driver="redis")
    def body():
        runs.append(1)

    with pytest.raises((StoreUnavailable, ConfigurationError), match=reason):
        body()
    assert not runs


def test_a_name_that_the_certificate_does_not_have_is_told(tls_server, certificates):
    store = RedisStore(tls_server.url.replace("localhost", "127.0.0.2"), options=tls(certificates))
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.2"):
        store.locks.acquire("key", holder="a", ttl=60)


# -- users and permissions ---------------------------------------------------------------------------------------------


def acl_line() -> list[str]:
    (line,) = re.findall(r"^ACL SETUSER (.*)$", PAGE, re.MULTILINE)
    return line.split()


def exercise(store, admin):
    """Everything that is asked of a store, with each turn that its scripts can take."""
    lease = store.locks.acquire("key", holder="a", ttl=60, run="r", description="d")
    store.locks.acquire("key", holder="b", ttl=60, run="r2")
    store.locks.extend([(lease, 60)])
    store.locks.release(lease, remember_for=60)
    store.locks.acquire("key", holder="c", ttl=60)
    store.locks.free("key", holder="c")
    for holder in "de":
        store.locks.acquire("wide", holder=holder, ttl=60, limit=2, run="r", description="d")
    store.locks.reserve(Reservation("wide", "task", "id", "token"), ttl=60, unless_run_by="d")
    first = store.locks.acquire("line", holder="d", ttl=60)
    for name in "ef":
        # without a text it listens
        store.locks.acquire("line", holder=name, ttl=60, place=Place(name, 60))
    store.locks.release(first)
    store.controls.ask("app", "request", "entry", "{}")
    for replica in ("one", "two", "one"):
        store.beats.join("app", replica)
    entries = [(name, EntryState(0, "then")) for name in "abc"]
    store.beats.list_entries("app", "one", entries, complete=True)
    store.beats.list_entries("app", "two", entries[:1], complete=True)
    store.beats.list_entries("app", "one", [], removed=["b"])
    store.beats.list_entries("app", "one", entries[1:2])
    claims = [Claim(f"id-{name}", name, EntryState(1, "now"), {}) for name in "ac"]
    store.beats.claim("app", "one", claims, ttl=60)
    store.beats.settle("app", "one", [("id-a", "a")], handed_over=["id-c"])
    store.beats.take_over("app", "two", ["id-c"], ttl=60)
    beat = "lockbeat:{beat:app}"
    admin.zadd(f"{beat}:replicas", {"one": 1})  # not heard of for long
    admin.zadd(f"{beat}:unlisted", {"x": 1})
    admin.zadd(f"{beat}:pending", {"id-y": 1})
    store.beats.claim("app", "two", [], ttl=60)
    store.beats.leave("app", "two")
    store.journal.append("app", uuid(), ["record"], keep=10)
    store.journal.records("app")
    store.journal.records("app", newest_first=True)
    # what no store has written
    admin.set(f"{beat}:pending", "text")
    store.beats.claim("app", "one", [], ttl=60)
    admin.lpush("lockbeat:lock:{planted}", "text")
    with pytest.raises(UnreadableKey):
        store.locks.acquire("planted", holder="a", ttl=60)


@pytest.fixture(params=[False, True], ids=["valkey", "redis7"])
def user(request, opened):
    """A server with the documentation's user; return (admin, store of that user)."""
    with Server(redis=request.param) as server, server.client() as admin:
        name, *rules = acl_line()
        admin.execute_command("ACL", "SETUSER", name, *rules)
        (password,) = [rule[1:] for rule in rules if rule.startswith(">")]
        store = opened(server.url.replace("//", f"//{name}:{quote(password)}@"))

        def change(*more):
            admin.execute_command("ACL", "SETUSER", name, "reset", *rules, *more)
            admin.script_flush()
            admin.flushall()
            # what is to be refused is asked on a connection of its own
            store.close()

        yield admin, store, change


def permissions() -> list[str]:
    return [rule[1:] for rule in acl_line() if rule.startswith("+")]


def test_the_documented_permissions_are_enough_and_each_is_needed_and_named_when_it_is_missing(user):
    admin, store, change = user
    change()
    exercise(store, admin)
    store.check()
    for permission in permissions():
        change(f"-{permission}")
        with pytest.raises(StoreUnavailable, match=rf"(?i)\b{permission}\b"):
            exercise(store, admin)


@pytest.mark.parametrize(
    ("permission", "arguments"), [("select", {"options": {"db": 1}}), ("wait", {"min_replicas": 1})]
)
def test_what_some_setups_need_in_addition_is_named_too(user, opened, permission, arguments):
    _, store, change = user
    url = store.client.servers._settings[0].removesuffix("/0")
    for more in ([], [f"+{permission}"]):
        change(*more)
        with pytest.raises(StoreUnavailable) as refused:
            opened(url, **arguments).locks.acquire("key", holder="a", ttl=60)
            assert more
            raise StoreUnavailable("granted")
        assert (permission in str(refused.value)) != bool(more)
    assert f"`+{permission}`" in PAGE


def test_who_waits_in_a_thread_listens_where_that_is_permitted(user):
    _, store, change = user
    for more in ([], ["+blpop"]):
        change(*more)
        store.locks.acquire("key", holder="a", ttl=60)
        store.locks.acquire("key", holder="b", ttl=60, place=Place("b", 60))
        if more:
            assert store.locks.listen("key", "b", 0.01) is False
            store.locks.free("key", holder="a")
            assert store.locks.listen("key", "b", 10) is True
        else:
            with pytest.raises(StoreRefused, match="blpop"):
                store.locks.listen("key", "b", 0.01)
    assert "`+blpop`" in PAGE


def test_in_a_cluster_the_user_may_ask_for_its_slots(nodes, opened):
    name, *rules = acl_line()

    def allow(*more):
        for node in nodes.primaries:
            nodes.command(node, "ACL", "SETUSER", name, "reset", *rules, *more)

    def acquire():
        login = {"cluster": True, "username": name, "password": "secret"}
        return opened(nodes.url, options=login).locks.acquire("key", holder="a", ttl=60)

    allow()
    with pytest.raises(StoreUnavailable, match="cluster"):
        acquire()
    allow("+cluster|slots")
    assert isinstance(acquire(), Lease)
    assert "`+cluster\\|slots`" in PAGE
    for node in nodes.primaries:
        nodes.command(node, "ACL", "DELUSER", name)


def test_a_key_of_others_is_refused_and_the_error_says_that_it_is_about_keys(user, opened):
    _, store, change = user
    change("resetkeys", "~others:*")
    with pytest.raises(StoreUnavailable, match="key"):
        store.locks.acquire("key", holder="a", ttl=60)


# -- users, passwords, sockets, databases ------------------------------------------------------------------------------


def test_users_and_passwords_of_any_characters_databases_and_ipv6(opened, caplog):
    with Server("--bind", "127.0.0.1", "::1", "--protected-mode", "no") as server, server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "us@er", "on", f">{PASSWORD}", "~*", "+@all")
        login = f"us%40er:{quote(PASSWORD, safe='')}@"
        for host in ("127.0.0.1", "[::1]", "localhost"):
            assert_works(opened(f"redis://{login}{host}:{server.port}/5"))
        options = {"username": "us@er", "password": PASSWORD, "db": 5}
        assert_works(opened(f"redis://127.0.0.1:{server.port}", options=options))
        admin.select(5)
        assert admin.keys("lockbeat:*")
        admin.select(0)
        assert not admin.keys("lockbeat:*")


@pytest.mark.parametrize("scheme", ["unix://", "redis+socket://"])
def test_a_unix_socket_with_a_password_and_a_database(tmp_path, make_app, scheme):
    path = f"/tmp/lockbeat-{free_port()}.sock"
    with Server("--unixsocket", path) as server, server.client() as admin:
        admin.config_set("requirepass", PASSWORD)
        database = "virtual_host" if "+" in scheme else "db"
        url = f"{scheme}:{quote(PASSWORD, safe='')}@{path}?{database}=3"
        app = make_app(broker_url="memory://", lockbeat_redis_url=url)
        with Lock("key", app=app, driver="redis") as lock:
            assert lock.held
        admin.execute_command("AUTH", PASSWORD)
        admin.select(3)
        assert admin.keys("lockbeat:*")


@pytest.mark.parametrize(
    "settings",
    [
        {"lockbeat_redis_url": "redis://us:{password}@127.0.0.1:{port}/0"},
        {"lockbeat_redis_url": "redis://127.0.0.1:{port}/0?password={password}"},
        {"lockbeat_redis_url": "redis://127.0.0.1:{port}/0", "lockbeat_redis_options": {"password": "{password}"}},
        {
            "lockbeat_redis_url": "redis://127.0.0.1:{port}/0",
            "lockbeat_redis_options": {"password": "{password}", "x": 1},
        },
        {"lockbeat_redis_url": "redys://us:{password}@127.0.0.1:{port}/0"},
        {"lockbeat_redis_url": "redis://us:{password}@127.0.0.1:{port};redis://us:{password}@127.0.0.1:1"},
        {"lockbeat_redis_url": "sentinel://us:{password}@127.0.0.1:1;sentinel://:{password}@127.0.0.1:2"},
        {"lockbeat_connections": {"default": {"url": "redis://u:{password}@h", "socket_timeout": "x"}}},
        {"lockbeat_connections": {"default": {"uri": "redis://u:{password}@h", "password": "{password}"}}},
        {"lockbeat_redis_options": {"password": "{password}", "url": "redis://u:{password}@h"}},
        {"lockbeat_redis_options": [("password", "{password}")], "lockbeat_redis_url": "redis://h"},
    ],
    ids=str,
)
def test_no_password_is_in_a_log_an_error_or_a_repr(server, make_app, caplog, settings):
    """However wrong the settings are, and with a server that asks for no such user."""
    caplog.set_level(logging.DEBUG)
    secret = "s3cr3t'%40"

    def filled(value):
        if isinstance(value, dict):
            return {name: filled(each) for name, each in value.items()}
        if isinstance(value, list):
            return [tuple(each.replace("{password}", secret) for each in pair) for pair in value]
        if isinstance(value, str):
            return value.replace("{password}", secret).replace("{port}", str(server.port))
        return value

    app = make_app(broker_url="memory://", **filled(settings))
    told = []
    try:
        told.append(repr(AppOptions.read(app.conf)))
        store = Lock("key", app=app, driver="redis")._store
        told.append(repr(vars(store)))
        told.append(repr(store.client.servers.nodes()))
        store.locks.acquire("key", holder="a", ttl=60)
    except (ConfigurationError, StoreUnavailable) as exc:
        told.append(str(exc))
    assert "s3cr3t" not in "".join(told) + caplog.text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://:a:b@c/d@h:1/0", "redis://:**@h:1/0"),
        ("sentinel://:a'b@h;sentinel://u:c@i", "sentinel://:**@h;sentinel://u:**@i"),
        ("redis://h?db=1&password=a%40b", "redis://h?db=1&password=**"),
        (
            {"password": "a", "ssl_password": "b", "x": ["redis://:c@h"]},
            {"password": "**", "ssl_password": "**", "x": ["redis://:**@h"]},
        ),
        ("redis://h:1/0", "redis://h:1/0"),
    ],
)
def test_passwords_are_blotted_out_of_what_is_shown(value, shown):
    assert without_passwords(value) == shown


# -- credentials that change -------------------------------------------------------------------------------------------


class Vault(redis.CredentialProvider):
    def __init__(self) -> None:
        self.secret = "old"

    def get_credentials(self):
        return ("locks", self.secret)


def test_a_new_connection_has_the_new_secret_of_a_credential_provider(make_app):
    vault = Vault()
    with Server() as server, server.client() as admin:

        def rotate(secret):
            admin.execute_command("ACL", "SETUSER", "locks", "reset", "on", f">{secret}", "~*", "+@all")
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal")

        rotate("old")
        app = make_app(lockbeat_redis_url=server.url, lockbeat_redis_options={"credential_provider": vault})
        with Lock("key", app=app, driver="redis", ttl=60) as lock:
            rotate("new")
            with pytest.raises(StoreUnavailable, match="invalid username-password"):
                lock._store.locks.extend([(lock.lease, 60)])
            assert lock.held, "its lease still runs"
            vault.secret = "new"
            assert lock._store.locks.extend([(lock.lease, 60)]) == [True]


def test_a_connection_outlives_a_change_of_the_password_and_the_next_one_needs_the_new(opened):
    with Member("old", "--requirepass", "old") as server:
        admin = redis.Redis(port=server.port, password="old")
        store = opened(server.url, options={"password": "old"})
        lease = store.locks.acquire("key", holder="a", ttl=60)
        admin.config_set("requirepass", "new")
        assert store.locks.extend([(lease, 60)]) == [True]
        store.close()
        with pytest.raises(StoreUnavailable, match="invalid username-password"):
            store.locks.extend([(lease, 60)])
        admin.close()


# -- options -----------------------------------------------------------------------------------------------------------


def test_options_reach_redis_py_unchanged(server, make_app, opened):
    store = opened(
        server.url, options={"client_name": "of-locks", "socket_keepalive": True, "health_check_interval": 9}
    )
    store.locks.acquire("key", holder="a", ttl=60)
    with server.client() as client:
        assert [each for each in client.client_list() if each["name"] == "of-locks"]
    (node,) = store.client.servers.nodes()
    assert node._idle[0].connection.health_check_interval == 9
    assert node._idle[0].connection.socket_keepalive is True


@pytest.mark.parametrize(
    ("url", "options", "wrong", "near"),
    [
        ("redis://h", {"sokcet_timeout": 1}, "sokcet_timeout", "socket_timeout"),
        ("redis://h", {"ssl_ca_certs": "x"}, "ssl_ca_certs", "allowed: "),
        ("rediss://h", {"ssl_ca_cert": "x"}, "ssl_ca_cert ", "ssl_ca_certs"),
        ("unix:///s", {"hostname": "x"}, "hostname", "allowed: "),
        ("redis://h?dbb=1", {}, "dbb", "db"),
        ("redis://h", {"master_name": "x"}, "master_name", "allowed: "),
        ("sentinel://h", {"master_nam": "x", "master_name": "y"}, "master_nam ", "master_name"),
        ("redis://h", {"cluster": True, "adress_remap": None}, "adress_remap", "address_remap"),
    ],
)
def test_an_option_that_redis_py_does_not_have_is_refused_with_the_nearest(make_app, url, options, wrong, near):
    app = make_app(lockbeat_redis_url=url, lockbeat_redis_options=options)
    with pytest.raises(ConfigurationError, match=f"{wrong}.*{near}"):
        Lock("key", app=app, driver="redis")

    @app.task(base=LockedTask, lock_driver="redis")
    def body():
        pass

    with pytest.raises(ConfigurationError, match=f"{wrong}.*{near}"):
        app.finalize()


def test_what_redis_py_refuses_is_refused_at_start_up(make_app):
    for options in ({"protocol": 7}, {"username": "u", "credential_provider": Vault()}):
        app = make_app(lockbeat_redis_url="redis://h", lockbeat_redis_options=options)
        with pytest.raises(ConfigurationError, match="lockbeat_redis_options"):
            Lock("key", app=app, driver="redis")
