"""Who may see the page, and from where."""

from __future__ import annotations

import base64
import socket
import sys
import time

import pytest
from celery.bin.celery import celery as command_line
from click.testing import CliRunner
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.web.guard import USER, Guard, Password, Prefixed, hash_of, header_of_a_proxy, is_this_host

URL = "http://127.0.0.1:9809"


async def told(scope, receive, send):
    await PlainTextResponse(f"hello {scope.get(USER)}")(scope, receive, send)


def client_of(who, *, host: str = "127.0.0.1", asks: bool = False, address: str = "127.0.0.1") -> TestClient:
    return TestClient(Guard(told, who, host=host, asks=asks), base_url=URL, client=(address, 5000))


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.fixture
def password(tmp_path):
    (tmp_path / "hash").write_text(hash_of("pässword: 1") + "\n")
    return Password(f"ada:{tmp_path / 'hash'}")


def test_who_knows_the_password_is_let_in_and_nobody_else(password):
    client = client_of(password, asks=True)
    assert client.get("/", headers=basic("ada:pässword: 1")).text == "hello ada"
    wrong = ["ada:wrong", "ada:", "eve:pässword: 1", "ada", ":", "ada:pässword: 1 ", "a" * 3_000]
    for headers in (
        {},
        *map(basic, wrong),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic /w=="},
    ):
        answer = client.get("/", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert "hello" not in answer.text


def test_a_password_that_was_right_is_not_tried_again_and_a_wrong_one_is_slow(password):
    client = client_of(password, asks=True)
    client.get("/", headers=basic("ada:pässword: 1"))

    def lasts(text: str, times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            client.get("/", headers=basic(text))
        return (time.perf_counter() - began) / times

    assert lasts("ada:pässword: 1", 20) * 3 < lasts("ada:wrong", 3)
    # for an unknown user it takes as long
    assert lasts("eve:wrong", 3) > lasts("ada:pässword: 1", 20) * 3


def test_a_hash_is_another_each_time_and_has_no_password_in_it():
    assert hash_of("secret") != hash_of("secret")
    assert "secret" not in hash_of("secret")


@pytest.mark.parametrize(
    "text",
    ["", "secret", "scrypt$1$2", "scrypt$16384$8$1$zz$00", "scrypt$99999999999$8$1$00$00", "md5$16384$8$1$00$00"],
)
def test_a_file_without_a_hash_is_refused(tmp_path, text):
    (tmp_path / "hash").write_text(text)
    with pytest.raises(ConfigurationError, match="--hash"):
        Password(f"ada:{tmp_path / 'hash'}")


@pytest.mark.parametrize("given", ["ada", "ada:", ":file", "ada:/nowhere/at/all"])
def test_auth_without_a_user_or_a_file_is_refused(given):
    with pytest.raises(ConfigurationError, match="--auth"):
        Password(given)


def test_a_name_in_a_header_counts_only_where_a_trusted_proxy_sends_it():
    who = header_of_a_proxy("X-User", ["10.0.0.0/8", "::1"])
    headers = {"X-User": "ada"}
    assert client_of(who, address="10.1.2.3").get("/", headers=headers).text == "hello ada"
    assert client_of(who, address="::1").get("/", headers=headers).text == "hello ada"
    for address in ("192.168.0.1", "127.0.0.1", "testclient", ""):
        assert client_of(who, address=address).get("/", headers=headers).status_code == 403
    trusted = client_of(who, address="10.1.2.3")
    assert trusted.get("/").status_code == 403
    assert trusted.get("/", headers={"X-User": " "}).status_code == 403
    assert trusted.get("/", headers=[("X-User", "eve"), ("X-User", "ada")]).status_code == 403
    with pytest.raises(ConfigurationError, match="--trusted-proxy"):
        header_of_a_proxy("X-User", ["proxy.example"])


def test_without_a_password_a_foreign_name_for_this_host_is_refused():
    client = client_of(None)
    for host in ("127.0.0.1:9809", "localhost:9809", "localhost", "[::1]:9809", "127.0.0.1"):
        assert client.get("/", headers={"Host": host}).status_code == 200, host
    for host in (
        "evil.example",
        "evil.example:9809",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "10.0.0.1",
    ):
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == 421, host
        assert "Content-Security-Policy" in answer.headers


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("host.example", False),
        ("", False),
    ],
)
def test_what_is_this_host_alone(host, is_it):
    assert is_this_host(host) is is_it


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments: str, **options):
    # of a broker that nobody asks
    runner = CliRunner(env={"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"})
    return runner.invoke(command_line, ["-A", "celery_lockbeat.demo", "lockbeat", "web", *arguments], **options)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "host.example"])
def test_beyond_this_host_it_refuses_to_start_without_knowing_who_asks(host):
    done = run("--host", host)
    assert done.exit_code == 1
    assert "--auth" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--auth", "ada:/nowhere"),
        ("--auth", "ada:x", "--auth-header", "X-User"),
        ("--auth-header", "X-User", "--trusted-proxy", "everybody"),
        ("--prefix", "no-slash"),
        ("--prefix", "/a/../b"),
        ("--prefix", "/a b"),
        ("--prefix", "/a?b"),
        ("--auth-header", "X User"),
        ("--certificate", "only.pem"),
        ("--port", "0", "--certificate", "nowhere.pem", "--key", "nowhere.key"),
    ],
)
def test_what_is_given_wrongly_is_refused_in_one_line(arguments):
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    for told in (*arguments[-2:], "allowed: "):
        assert told in done.output


def test_what_listens_already_is_told_with_the_settings_that_say_where():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port))
    assert done.exit_code == 1
    assert f"--host is '127.0.0.1' and --port {port}: " in done.output
    assert "allowed: " in done.output


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    # not by name: the package has a command that is called as the module is
    monkeypatch.setattr(sys.modules["celery_lockbeat.cli.web"], "find_spec", lambda name: None)
    done = run()
    assert done.exit_code == 1
    assert done.output == (
        "starlette and uvicorn and jinja2 and cron_descriptor are missing: pip install 'celery-lockbeat[web]'\n"
    )


def test_a_hash_is_made_of_a_password_that_nobody_sees(tmp_path):
    done = run("--hash", input="secret\nsecret\n")
    assert done.exit_code == 0
    assert "secret" not in done.output
    line = next(line for line in done.output.splitlines() if line.startswith("scrypt$"))
    (tmp_path / "hash").write_text(line)
    assert client_of(Password(f"ada:{tmp_path / 'hash'}")).get("/", headers=basic("ada:secret")).text == "hello ada"


# -- under a prefix ----------------------------------------------------------------------------------------------------


def test_under_a_prefix_it_answers_whether_the_proxy_takes_it_off_or_not():
    async def said(scope, receive, send):
        await PlainTextResponse(f"{scope['root_path']} {scope['path']}")(scope, receive, send)

    client = TestClient(Prefixed(said, "/deep/lockbeat"), base_url=URL)
    for asked in ("/runs", "/deep/lockbeat/runs"):
        assert client.get(asked).text == "/deep/lockbeat /deep/lockbeat/runs"
    assert client.get("/deep/lockbeats").text == "/deep/lockbeat /deep/lockbeat/deep/lockbeats"
    assert TestClient(Prefixed(said, ""), base_url=URL).get("/runs").text == " /runs"
