"""What is wrong is refused early, in the user's terms; what is right is read in the right order."""

from __future__ import annotations

import re

import kombu
import pytest
import redis
from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import ImproperlyConfigured

from celery_lockbeat import ConfigurationError, Lock, LockedScheduler, LockedTask
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.tasks.keys import bound_keys


def an_app(**settings) -> Celery:
    app = Celery("options", broker="memory://", set_as_current=False)
    app.conf.update(settings)
    return app


def report(customer_id, day="mon"):
    pass


def of_anything(**anything):
    pass


def a_task(app=None, function=report, **options):
    app = app or an_app()
    app.task(base=LockedTask, name="tasks.it", shared=False, **options)(function)
    try:
        app.finalize()
    finally:
        app.close()  # else Celery finalizes it again, for the next shared task of another test
    return app.tasks["tasks.it"]


WRONG = [
    ("ttl", 0),
    ("ttl", -1),
    ("ttl", "30"),
    ("ttl", True),
    ("ttl", float("nan")),
    ("ttl", float("inf")),
    ("ttl", 1e12),
    ("enabled", 1),
    ("driver", "mysql"),
    ("connection", ""),
    ("connection", 7),
    ("auto_extend", "yes"),
    ("extend_interval", 30),
    ("extend_interval", 0),
    ("retry_attempts", -1),
    ("retry_attempts", 1.5),
    ("retry_delay", -0.1),
    ("retry_jitter", "x"),
    ("skip_if_locked", None.__class__),
    ("if_held", "queue"),
    ("if_held", True),
    ("wait_at_most", 0),
    ("line_limit", 0),
    ("limit", 0),
    ("limit", 1.5),
    ("limit", True),
    ("hold_at_least", -1),
    ("hold_at_most", -1),
    ("unique", True),
    ("unique", "always"),
    ("unique_ttl", 0),
    ("on_lost", "explode"),
    ("dedupe_ttl", -1),
    ("logging", True),
    ("logging", "loud"),
    ("key", ""),
    ("key", 3),
    ("key", "{unclosed"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_task_option_is_refused_by_name_value_and_what_is_allowed(name, value):
    with pytest.raises(ConfigurationError) as refused:
        a_task(**{f"lock_{name}": value})
    assert f"lock_{name} of tasks.it is {value!r}; allowed: " in str(refused.value)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_default_is_refused_by_the_beat_too(name, value):
    with pytest.raises(ConfigurationError) as refused:
        LockedScheduler(an_app(**{f"lockbeat_{name}": value}), lazy=True)
    assert f"lockbeat_{name} is {value!r}; allowed: " in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis_url", "mysql://x"),
        ("redis_url", 5),
        ("redis_options", "x"),
        ("redis_options", {"url": "redis://x"}),
        ("redis_options", {"socket_timeout": None}),
        ("redis_options", {"decode_responses": True}),
        ("redis_min_replicas", -1),
        ("connections", ["redis://x"]),
        ("connections", {"a": {"host": "x"}}),
        ("key_prefix", ""),
        ("key_prefix", "a{b}"),
        ("key_prefix", "a b"),
        ("claim_ttl", 0),
        ("memory_path", 7),
    ],
)
def test_a_wrong_setting_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"lockbeat_{name}.* is .*; allowed: "):
        AppOptions.read(an_app(**{f"lockbeat_{name}": value}).conf)


def test_an_unknown_option_is_refused_with_the_nearest_right_one():
    with pytest.raises(ConfigurationError, match="lock_tll of tasks.it .* did you mean lock_ttl"):
        a_task(lock_tll=5)


def test_an_unknown_setting_is_refused_with_the_nearest_right_one():
    with pytest.raises(ConfigurationError, match="lockbeat_redis_uri .* did you mean lockbeat_redis_url"):
        a_task(an_app(lockbeat_redis_uri="redis://x"))


def test_an_unknown_setting_in_a_namespace_is_refused_too():
    app = Celery("options", set_as_current=False)
    app.config_from_object({"CELERY_BROKER_URL": "memory://", "CELERY_LOCKBEAT_TLL": 3}, namespace="CELERY")
    with pytest.raises(ConfigurationError, match="CELERY_LOCKBEAT_TLL .* did you mean CELERY_LOCKBEAT_TTL"):
        a_task(app)


def test_settings_in_a_namespace_count():
    app = Celery("options", set_as_current=False)
    app.config_from_object({"CELERY_BROKER_URL": "memory://", "CELERY_LOCKBEAT_TTL": 7}, namespace="CELERY")
    assert Lock("key", app=app).ttl == 7


def test_a_task_option_counts_more_than_the_setting_and_that_more_than_the_default():
    assert Lock("key", app=an_app()).ttl == 30
    assert Lock("key", app=an_app(lockbeat_ttl=7)).ttl == 7
    assert Lock("key", app=an_app(lockbeat_ttl=7), ttl=3).ttl == 3


def test_the_interval_must_be_below_the_ttl_wherever_the_two_come_from():
    with pytest.raises(ConfigurationError, match=r"lockbeat_extend_interval is 20; allowed: .* lock_ttl of tasks.it"):
        a_task(an_app(lockbeat_extend_interval=20), lock_ttl=10)


@pytest.mark.parametrize("key", ["{cusomer_id}", "{0}", "{}", "{nobody.id}", "{day:>{width}}"])
def test_a_placeholder_that_is_no_argument_is_refused_at_once(key):
    with pytest.raises(ConfigurationError, match="lock_key of tasks.it is .*{customer_id}, {day}"):
        a_task(lock_key=key)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (None, "tasks.it"),
        ("fixed", "fixed"),
        ("{{fixed}}", "{fixed}"),
        ("report:{customer_id}", "report:7"),
        ("report:{customer_id}:{day}", "report:7:mon"),
        ("{customer_id:04d}", "0007"),
        ("{customer_id.real}", "7"),
        (lambda customer_id, day="x": f"f:{customer_id}", "f:7"),
    ],
)
def test_a_key_is_made_of_the_calls_arguments(key, expected):
    from celery_lockbeat.tasks.plan import LockPlan

    task = a_task(lock_key=key)
    plan = LockPlan(task, task.app)
    assert plan.keys_of(task, (7,), {}) == (expected,)
    assert plan.keys_of(task, (), {"customer_id": 7}) == (expected,)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((7, "tue"), {}), ((7,), {"day": "tue"}), ((), {"day": "tue", "customer_id": 7})]
)
def test_a_key_is_the_same_however_the_arguments_are_given(args, kwargs):
    keys_of = bound_keys(LockOptions(key="{customer_id}:{day}"), lambda customer_id, day="mon": None, owner="it")
    assert keys_of(None, args, kwargs) == ("7:tue",)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((7, "tue", 9), {}), ((7,), {"customer_id": 8}), ((7,), {"month": 8})]
)
def test_a_call_that_the_task_does_not_take_has_no_key(args, kwargs):
    keys_of = bound_keys(LockOptions(key="{customer_id}"), lambda customer_id, day="mon": None, owner="it")
    with pytest.raises(TypeError):
        keys_of(None, args, kwargs)


def test_a_task_of_any_keywords_takes_any_placeholder():
    a_task(function=of_anything, lock_key="{whatever}")


def test_the_older_form_of_what_a_held_key_does_goes_on_to_work():
    for value, means in ((True, "skip"), (False, "fail")):
        assert LockOptions.read({}, {"lock_skip_if_locked": value}, owner="it", prefix="lock_").if_held == means
        assert LockOptions.read({"lockbeat_skip_if_locked": value}, {}, owner="it").if_held == means
    assert LockOptions.read({"lockbeat_if_held": "fail"}, {}, owner="it").skip_if_locked is False


def test_what_a_held_key_does_is_said_in_one_way_only_and_the_tasks_own_word_counts():
    both = {"lock_if_held": "skip", "lock_skip_if_locked": True}
    with pytest.raises(ConfigurationError, match=r"lock_skip_if_locked of it is True; allowed: one of .*lock_if_held"):
        LockOptions.read({}, both, owner="it", prefix="lock_")
    with pytest.raises(ConfigurationError, match="lockbeat_skip_if_locked is False"):
        LockOptions.read({"lockbeat_if_held": "fail", "lockbeat_skip_if_locked": False}, {}, owner="it")
    older, newer = {"lock_skip_if_locked": False}, {"lock_if_held": "skip"}
    assert LockOptions.read({"lockbeat_if_held": "skip"}, older, owner="it", prefix="lock_").if_held == "fail"
    assert LockOptions.read({"lockbeat_skip_if_locked": False}, newer, owner="it", prefix="lock_").if_held == "skip"


def test_an_option_of_tasks_is_none_of_a_lock_outside():
    with pytest.raises(ConfigurationError, match="skip_if_locked of Lock"):
        Lock("key", app=an_app(), skip_if_locked=True)


def test_a_configuration_error_is_what_celery_users_expect():
    assert issubclass(ConfigurationError, ImproperlyConfigured)


@pytest.mark.parametrize("broker", ["redis://h:1/2", "rediss://h:1/2?ssl_cert_reqs=CERT_NONE", "redis+socket:///s"])
def test_the_store_is_the_redis_that_celery_uses(broker):
    url = AppOptions.read(an_app(broker_url=broker).conf).redis_url
    assert url == {"redis+socket:///s": "unix:///s"}.get(broker, broker.replace("CERT_NONE", "none"))


def test_the_result_backend_comes_after_the_broker_and_nothing_is_none():
    assert AppOptions.read(an_app(result_backend="redis://back").conf).redis_url == "redis://back"
    assert AppOptions.read(an_app().conf).redis_url is None


def test_the_redis_driver_without_a_redis_is_refused():
    with pytest.raises(ConfigurationError, match="lock_driver is 'redis'; allowed: .*lockbeat_redis_url"):
        a_task(lock_driver="redis")


def test_a_connection_must_be_one_that_is_configured():
    with pytest.raises(ConfigurationError, match="lock_connection is 'b'; allowed: .*: a"):
        a_task(an_app(lockbeat_connections={"a": "redis://x"}), lock_connection="b")


def test_a_sentinel_broker_is_never_silently_no_lock_between_hosts():
    with pytest.raises(ConfigurationError, match="master_name .* is None"):
        a_task(an_app(broker_url="sentinel://h:1"))
    a_task(an_app(broker_url="sentinel://h:1", lockbeat_redis_url="redis://x"))


@pytest.mark.parametrize("broker", ["sentinel://h:1;sentinel://i:2", ["sentinel://h:1", "sentinel://i:2"]])
def test_the_sentinels_of_the_broker_are_those_of_the_locks_with_what_kombu_knows_of_them(broker):
    transport = {"master_name": "m", "sentinel_kwargs": {"password": "x"}, "visibility_timeout": 9}
    settings = an_app(broker_url=broker, broker_transport_options=transport).conf
    assert AppOptions.read(settings).connection("auto", "default") == {
        "url": "sentinel://h:1;sentinel://i:2",
        "master_name": "m",
        "sentinel_kwargs": {"password": "x"},
    }


def test_the_tls_settings_of_the_broker_are_those_of_the_locks_only_where_they_share_a_redis():
    tls = {"broker_url": "rediss://h", "broker_use_ssl": {"ssl_cert_reqs": "none"}}
    shared = AppOptions.read(an_app(**tls).conf).connection("auto", "default")
    assert shared == {"url": "rediss://h", "ssl": True, "ssl_cert_reqs": "none"}
    own = AppOptions.read(an_app(**tls, lockbeat_redis_url="redis://x").conf).connection("auto", "default")
    assert own == {"url": "redis://x"}


def test_a_password_is_not_in_the_error():
    with pytest.raises(ConfigurationError) as refused:
        AppOptions.read(an_app(lockbeat_redis_url="mysql://user:secret@h").conf)
    assert "secret" not in str(refused.value)


# -- options in a URL --------------------------------------------------------------------------------------------------


class Vault(redis.CredentialProvider):
    def get_credentials(self):
        return ("locks", "secret")


def celery_would(setting, url):
    """Let Celery read a URL of its own; fails as it would at its start."""
    if setting == "broker_url":
        kombu.Connection(url)
    else:
        RedisBackend(url=url, app=an_app())


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("decode_responses=true", "False: the store reads bytes"),
        ("decode_responses=1", "False"),
        ("decode_responses=maybe", "true, yes"),
        ("socket_timeout=0", "seconds, a number from"),
        ("socket_connect_timeout=99999", "seconds, a number from"),
        ("socket_timeout=soon", "a number"),
        ("db=x", "a whole number"),
        ("health_check_interval=x", "a whole number"),
        ("cluster=perhaps", "true, yes"),
        ("retry=3", "lockbeat_redis_options"),
        ("parser_class=x", "lockbeat_redis_options"),
        ("credential_provider=no.such.Vault", "the path of a class"),
    ],
)
@pytest.mark.parametrize("kind", ["url", "connection", "mapping", "sentinel"])
def test_an_option_in_a_url_is_held_to_the_rules_of_the_options(option, allowed, kind):
    url = f"redis://user:s3cret@h/0?{option}"
    settings = {
        "url": {"lockbeat_redis_url": url},
        "connection": {"lockbeat_connections": {"c": url}, "lockbeat_connection": "c"},
        "mapping": {"lockbeat_connections": {"c": {"url": url}}, "lockbeat_connection": "c"},
        "sentinel": {"lockbeat_redis_url": url.replace("redis:", "sentinel:") + "&master_name=m"},
    }[kind]
    name = option.partition("=")[0]
    setting = re.escape("lockbeat_connections['c']") if kind in ("connection", "mapping") else "lockbeat_redis_url"
    starts = (lambda: a_task(an_app(**settings)), lambda: LockedScheduler(an_app(**settings), lazy=True))
    for start in starts:
        with pytest.raises(ConfigurationError, match=rf"\?{name}= of {setting} is .*; allowed: .*{allowed}") as refused:
            start()
        assert "s3cret" not in str(refused.value)


def test_options_in_a_url_count_as_those_beside_it_and_more(server):
    url = f"{server.url}?db=3&socket_timeout=0.7&health_check_interval=9&socket_keepalive=no&client_name=of-urls"
    app = an_app(lockbeat_redis_url=url, lockbeat_redis_options={"socket_timeout": 5, "socket_connect_timeout": 0.6})
    with Lock("key", app=app, driver="redis") as lock:
        servers = lock._store.client.servers
        (node,) = servers.nodes()
        assert servers.timeout == 0.7
        assert servers.connect_timeout == 0.6
        connection = node._idle[0].connection
        assert (connection.db, connection.health_check_interval, connection.socket_keepalive) == (3, 9, False)
        with server.client() as client:
            assert [each["db"] for each in client.client_list() if each["name"] == "of-urls"] == ["3"]
    app.close()


def test_time_outs_in_a_url_must_fit_into_the_leases_too():
    app = an_app(lockbeat_redis_url="redis://h?socket_timeout=20")
    with pytest.raises(ConfigurationError, match=r"socket_timeout of .* is 20.* said in lockbeat_redis_url"):
        a_task(app)


@pytest.mark.parametrize(
    ("setting", "option", "left"),
    [
        ("broker_url", "heartbeat=10", ""),
        ("broker_url", "connect_timeout=3&login_method=PLAIN&insist=1", ""),
        ("broker_url", "ssl_cert_reqs=CERT_NONE&heartbeat=10", "?ssl_cert_reqs=none"),
        ("result_backend", "socket_timeout=99999&decode_responses=true&retry_on_timeout=1", ""),
        ("result_backend", "ssl_cert_reqs=CERT_NONE&max_connections=9", "?ssl_cert_reqs=none"),
    ],
)
def test_what_celery_reads_in_its_own_url_breaks_no_start_and_changes_no_lock(setting, option, left):
    url = f"{'rediss' if 'ssl' in option else 'redis'}://h:1/2"
    celery_would(setting, f"{url}?{option}")
    app = an_app(**{setting: f"{url}?{option}"})
    a_task(app)
    LockedScheduler(app, lazy=True)
    assert AppOptions.read(app.conf).connection("auto", "default") == {"url": url + left}


def test_a_plain_broker_url_with_tls_options_is_one_of_tls_as_kombu_has_it():
    url = "redis://h:1/2?ssl_cert_reqs=CERT_NONE"
    assert kombu.Connection(url).ssl
    chosen = AppOptions.read(an_app(broker_url=url).conf).connection("auto", "default")
    assert chosen == {"url": "rediss://h:1/2?ssl_cert_reqs=none"}


@pytest.mark.parametrize("setting", ["broker_url", "result_backend"])
def test_the_database_and_the_credentials_in_celerys_url_are_those_of_the_locks(setting):
    path = f"{__name__}.Vault"
    app = an_app(**{setting: f"redis://u:p@h:1?virtual_host=3&credential_provider={path}"})
    chosen = AppOptions.read(app.conf).connection("auto", "default")
    assert type(chosen.pop("credential_provider")).__name__ == "Vault"
    assert chosen == {"url": "redis://h:1", "db": 3}
    Lock("key", app=app)


# -- settings as their user spells them --------------------------------------------------------------------------------


def in_a_namespace(**settings):
    app = Celery("options", set_as_current=False)
    app.config_from_object({f"CELERY_{name.upper()}": value for name, value in settings.items()}, namespace="CELERY")
    return app


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lockbeat_ttl": 0}, "CELERY_LOCKBEAT_TTL is 0"),
        ({"lockbeat_redis_url": "mysql://x"}, "CELERY_LOCKBEAT_REDIS_URL is "),
        ({"lockbeat_redis_url": "redis://h?decode_responses=1"}, "of CELERY_LOCKBEAT_REDIS_URL is "),
        ({"lockbeat_redis_options": {"decode_responses": True}}, r"CELERY_LOCKBEAT_REDIS_OPTIONS\['decode_"),
        ({"lockbeat_connections": {"c": "x"}}, r"CELERY_LOCKBEAT_CONNECTIONS\['c'\] is "),
        ({"broker_url": "redis://h:x"}, "CELERY_BROKER_URL is "),
        ({"broker_url": "rediss://h?ssl_ca_certs=/no.crt"}, "ssl_ca_certs of .* or CELERY_BROKER_URL is '/no.crt'"),
        ({"lockbeat_driver": "redis"}, "neither CELERY_LOCKBEAT_REDIS_URL nor"),
        (
            {"broker_url": "sentinel://h"},
            "master_name of CELERY_LOCKBEAT_REDIS_OPTIONS .*CELERY_BROKER_TRANSPORT_OPTIONS",
        ),
        ({"lockbeat_extend_interval": 50}, "CELERY_LOCKBEAT_EXTEND_INTERVAL is 50"),
        (
            {"lockbeat_redis_url": "redis://h?socket_timeout=20"},
            "socket_timeout of .* is 20.* said in CELERY_LOCKBEAT_REDIS_URL or CELERY_",
        ),
    ],
    ids=str,
)
def test_settings_of_a_namespace_are_told_as_they_are_written_there(settings, named):
    with pytest.raises(ConfigurationError, match=named):
        a_task(in_a_namespace(**settings))


def test_a_setting_that_is_set_on_the_app_itself_is_told_as_it_is_written_there():
    app = in_a_namespace(lockbeat_claim_ttl=3)
    app.conf.lockbeat_ttl = 0
    with pytest.raises(ConfigurationError, match="^lockbeat_ttl is 0"):
        a_task(app)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"broker_url": "redis://localhost"}, 4200),
        ({"broker_url": "sentinel://one:26379;sentinel://two:26379"}, 4200),
        ({"broker_url": ["redis://one", "redis://two"]}, 4200),
        ({"broker_url": "amqp://", "broker_read_url": "rediss://localhost"}, 4200),
        ({"broker_url": "sqs://"}, 3600),
        ({"broker_url": "sqs://", "broker_transport_options": {"visibility_timeout": 43200}}, 43800),
        ({"broker_url": "redis://localhost", "broker_transport_options": {"visibility_timeout": "7200"}}, 7800),
        ({"broker_url": "redis://localhost", "broker_transport_options": {"visibility_timeout": 60}}, 3600),
        ({"broker_url": "redis://localhost", "broker_transport_options": {"visibility_timeout": 1e12}}, 30 * 86400),
        ({"broker_url": "redis://localhost", "broker_transport_options": {"visibility_timeout": "soon"}}, 4200),
        ({"broker_url": "amqp://localhost"}, 3600),
        ({"broker_url": "memory://"}, 3600),
        ({}, 3600),
        ({"broker_url": "redis://localhost", "lockbeat_dedupe_ttl": 60}, 60),
        ({"broker_url": "redis://localhost", "lockbeat_dedupe_ttl": 0}, 0),
    ],
)
def test_a_run_is_remembered_for_longer_than_its_broker_takes_to_deliver_it_again(settings, seconds):
    app = Celery("remembers", set_as_current=False)
    app.conf.update(settings)
    assert LockOptions.read(app.conf, {}, owner="x").dedupe_ttl == seconds
    assert LockOptions.read(app.conf, {"lock_dedupe_ttl": 5}, owner="x", prefix="lock_").dedupe_ttl == 5
