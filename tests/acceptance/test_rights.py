"""Each process works with exactly its documented rights, and names a missing one."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from qtask import AsyncClient, Client
from qtask.model.errors import ConfigError
from qtask.model.record import STATES
from qtask.run.server_binary import Server, find_servers
from qtask.store import keys, rights, tasks
from qtask.store.connect import connect
from tests.support.command import qtask
from tests.support.documents import ROOT
from tests.support.gateway_process import Connection, Gateway
from tests.support.live import ProcessGroup
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

pytestmark = pytest.mark.slow

PASSWORD = "secret-word"


def grant(redis: Redis, role: rights.Role, rules: str | None = None) -> None:
    """Creates a user named after the role, with the documented rights or other ones."""
    redis.execute_command(
        "ACL", "SETUSER", role, "reset", "on", f">{PASSWORD}", *(rules or rights.RIGHTS[role].rules).split()
    )


def url_of(server: RedisServer, user: str) -> str:
    return server.url.replace("://", f"://{user}:{PASSWORD}@")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis with a user for each role, and one for each process of RQ, whose rights QTask does not limit."""
    one = RedisServer(tmp_path_factory.mktemp("rights"), "--appendonly", "yes", "--maxmemory", "500mb")
    for role in rights.ROLES:
        grant(one.client(), role)
    yield one
    one.kill()


def denials(redis: Redis) -> list[tuple[str, str]]:
    """The denials since the last call: user, and command, key or channel."""
    found: Any = redis.execute_command("ACL LOG")
    redis.execute_command("ACL", "LOG", "RESET")
    ours = [(str(one["username"]), str(one["object"])) for one in found]
    return [
        one for one in ours if one[1] not in ("client|setinfo", "client|maint_notifications")
    ]  # redis-py ignores the denial


# --- the documented rights -------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_every_process_works_with_exactly_the_documented_rights(server: RedisServer, tmp_path: Path) -> None:
    admin = server.client()

    def behave(exchange: Exchange) -> None:
        target, attempt = exchange.request.target, exchange.request.header("QTask-Attempt")
        if target.startswith("/hold") and attempt == "1":
            time.sleep(8)
        dies = target.startswith("/dead") or (target.startswith("/retry") and attempt == "1")
        exchange.answer(503 if dies else 200)

    group = ProcessGroup(server.url, server.client(), tmp_path)
    environment = {role: {"QTASK_REDIS_URL": url_of(server, role)} for role in rights.ROLES}
    with Receiver(behave) as receiver, group, Gateway(url_of(server, "gateway"), tmp_path) as gateway:

        def task(path: str, **settings: Any) -> dict[str, Any]:
            link = {"type": "http", "link": receiver.url + path}
            return {"title": path, "address": link, "settings": {"time": 0, "retry": {"attempts": 1}, **settings}}

        group.start("scheduler", environment["scheduler"])
        first = group.start("worker", environment["worker"])

        # every entrance, with and without a chosen id
        with Connection(gateway.port) as connection:
            answers = [connection.ask(task("socket")), connection.ask(task("chosen", id="chosen"))]
            assert all(answer["ok"] for answer in answers), (answers, denials(admin))
            ids = [answer["id"] for answer in answers]
            assert connection.ask(task("chosen", id="chosen"))["duplicate"]
        inbox = connect(url_of(server, "inbox"), 15.0)
        reply = f"{rights.REPLY_PREFIX}one"
        inbox.xadd(keys.INBOX, {"task": json.dumps(task("inbox", expires=3_600)), "reply": reply})
        answer: Any = inbox.blpop([reply], 30)
        ids.append(json.loads(answer[1])["id"])
        inbox.xadd(keys.INBOX, {"task": "{}", "reply": reply})
        refused: Any = inbox.blpop([reply], 30)
        assert not json.loads(refused[1])["ok"]
        with pytest.raises(NoPermissionError):
            inbox.get("other")
        admin.execute_command("ACL", "LOG", "RESET")  # this denial was intended

        with Client(url_of(server, "client")) as client:
            ids += [client.send(task("client")).id, client.graph().id]
            flow = {"key": "limited", "rate": 50, "parallel": 1}
            limited = [client.send(task("flow", flow=flow)).id for _ in range(3)]
            retried = client.send(task("retry", retry={"attempts": 3, "base": 0.1})).id
            dead = [client.send(task("dead")).id for _ in range(4)]
            waiting = client.send(task("later", time=3_600)).id
            later = client.send(task("later", time=3_600)).id

            async def send() -> str:
                async with AsyncClient(url_of(server, "client")) as asynchronous:
                    return (await asynchronous.send(task("asyncio"))).id

            ids.append(asyncio.run(send()))
            group.ended([*ids, *limited, retried, *dead], 30)
            assert client.show(retried).attempts == 2
            assert client.cancel(waiting) == "scheduled"
            assert set(client.find_dead()) == set(dead)
            assert client.remove(dead[:1]) == dead[:1]
            assert client.retry(dead[1:2]) == dead[1:2]
            for state in STATES:
                client.list(state)
            group.ended(dead[1:], 30)

        # over HTTP
        def http(method: str, path: str) -> int:
            request = urllib.request.Request(
                f"http://127.0.0.1:{gateway.http_port}{path}",
                method=method,
                headers={"Content-Type": "application/json"},
            )
            return int(urllib.request.urlopen(request).status)

        graph = ids[4]
        for method, path in (
            *(("GET", "/flows"), ("POST", "/flows/limited/pause"), ("POST", "/flows/limited/resume")),
            *(("GET", f"/tasks/{ids[0]}"), ("GET", "/health"), ("GET", f"/graphs/{graph}")),
            *(("POST", f"/tasks/{dead[1]}/retry"), ("DELETE", f"/tasks/{later}")),
        ):
            assert http(method, path) == 200, (method, path)
        group.ended(dead[1:], 30)

        # a worker that dies, and one that takes over
        with Client(url_of(server, "client")) as client:
            held = client.send(task("hold", retry={"attempts": 2, "base": 0.1})).id
        until(lambda: held in receiver.ids, what="the delivery")
        first.kill()
        second = group.start("worker", environment["worker"])
        group.ended([held], 30)
        assert [outcome.error for outcome in tasks.show(admin, held).outcomes] == ["lost", ""]

        # commands that read, and those that change
        for command in (
            *(["list"], ["list", "--state", "dead", "--json"], ["show", ids[0]], ["stats"]),
            ["graph", "-o", str(tmp_path / "graph.png")],
            ["graph", "-o", str(tmp_path / "other.png"), "--id", graph],
            *(["health", "worker"], ["health", "scheduler"], ["audit"]),
            *(["flow", "list"], ["flow", "show", "limited"]),
        ):
            result = qtask(*command, environment=environment["reader"])
            assert result.returncode == 0, (command, result.stdout, result.stderr)
        for command in (
            *(["send", "--http", receiver.url, "--json"], ["retry", "--all"], ["remove", "--type", "udp"]),
            *(
                ["flow", "pause", "limited"],
                ["flow", "set", "limited", "--parallel", "2"],
                ["flow", "remove", "limited"],
            ),
        ):
            result = qtask(*command, environment=environment["client"])
            assert result.returncode == 0, (command, result.stdout, result.stderr)
        examined = qtask(
            "doctor",
            "--json",
            environment={
                **environment["reader"],
                "QTASK_PORT": str(gateway.port),
                "QTASK_HTTP_PORT": str(gateway.http_port),
            },
        )
        findings = [json.loads(line) for line in examined.stdout.splitlines()]
        assert not [one for one in findings if "may not" in one["what"] and one["level"] == "wrong"], examined.stdout

        # history that is forgotten, processes that end
        admin.zadd(keys.finished("qtask"), {ids[0]: admin.time()[0] + keys.FOREVER_SECONDS - 1})
        until(lambda: not admin.exists(keys.job(ids[0])), what="what is forgotten")
        assert gateway.process.stop() == 0 and second.stop() == 0
        for process in list(group._processes):
            if isinstance(process, Process) and process.name == "scheduler":
                assert process.stop() == 0
        assert denials(admin) == []
        logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
        assert "NOPERM" not in logs and "Traceback" not in logs and "no permissions" not in logs


def test_documented_rules_equal_those_of_the_table() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    for role in rights.ROLES:
        (written,) = re.findall(rf"^user {role} (.*)$", text, re.MULTILINE)
        assert written == f"on >PASSWORD {rights.RIGHTS[role].rules}", role


def test_rights_have_every_command_that_a_script_names(server: RedisServer) -> None:
    reply: Any = server.client().execute_command("COMMAND LIST")
    known = {name.decode().upper() for name in reply}
    for role in rights.ROLES:
        for script in rights.RIGHTS[role].scripts:
            code = "".join(line.partition("--")[0] for line in script.text.decode().splitlines(True))
            named = set(re.findall(r"'([A-Z]+)'", code)) & known
            assert named <= {command.partition("|")[0] for command in rights.RIGHTS[role].commands}, (role, script)


# --- a missing right -------------------------------------------------------------------------------------------------

WITHOUT = [
    ("+@all ~* resetchannels", "may not PUBLISH on qtask:wake: grant +publish &qtask:*"),
    ("+@all ~rq:* &*", "may not use the keys qtask:* (such as qtask:"),
    ("+@all ~qtask:* &*", "may not use the keys rq:* (such as rq:"),
    ("+@all -zadd ~* &*", "may not ZADD: grant +zadd"),
    ("+@all -eval ~* &*", "may not EVAL: grant +eval"),
    ("+@all -time -@blocking ~* &*", "may not TIME: grant +time"),
]


def failure_of(role: str, environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Starts a process that must exit with 1; returns the only event that it logs."""
    process = Process(role, environment, folder / "log")
    try:
        until(lambda: not process.running, 30, "its end")
        assert process.stop() == 1
    finally:
        process.kill()
    (event,) = [json.loads(line) for line in process.log.read_text().splitlines()]
    return dict[str, str](event)


@pytest.mark.parametrize(("rules", "words"), WITHOUT)
@pytest.mark.parametrize("role", ["gateway", "scheduler", "worker"])
def test_process_without_a_right_names_it_and_exits(
    server: RedisServer, tmp_path: Path, role: str, rules: str, words: str
) -> None:
    server.client().execute_command("ACL", "SETUSER", "poor", "reset", "on", f">{PASSWORD}", *rules.split())
    environment = {"QTASK_REDIS_URL": url_of(server, "poor"), "QTASK_PORT": "0", "QTASK_HTTP_PORT": "0"}
    event = failure_of(role, environment, tmp_path)
    assert (event["event"], event["level"]) == ("failed", "error")
    assert f"user 'poor' of Redis {words}" in event["error"] and f"needed by: {role}" in event["error"]


def test_up_without_a_right_names_it_and_is_never_ready(server: RedisServer, tmp_path: Path) -> None:
    server.client().execute_command(
        "ACL", "SETUSER", "poor", "reset", "on", f">{PASSWORD}", *["+@all", "~*", "resetchannels"]
    )
    environment = {"QTASK_REDIS_URL": url_of(server, "poor"), "QTASK_DATA_DIR": str(tmp_path / "data")}
    result = qtask("up", "--port", "0", "--http-port", "0", environment=environment)
    assert result.returncode == 1
    assert "may not PUBLISH on qtask:wake: grant +publish &qtask:*" in result.stderr
    assert "ready" not in result.stderr and PASSWORD not in result.stderr


def test_gateway_that_learns_of_it_late_exits(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.stop()
    with Gateway(server.url.replace("://", f"://poor:{PASSWORD}@"), tmp_path) as gateway:
        acl = tmp_path / "users.acl"
        acl.write_text(f"user default on nopass +@all ~* &*\nuser poor on >{PASSWORD} +@all ~* resetchannels\n")
        server.begin("--aclfile", str(acl))
        try:
            until(lambda: not gateway.process.running, 30, "its end")
        finally:
            server.kill()
        assert "may not PUBLISH on qtask:wake" in gateway.log


def test_worker_names_a_revoked_right_and_continues_when_it_is_granted_again(
    server: RedisServer, tmp_path: Path
) -> None:
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "changed", "reset", "on", f">{PASSWORD}", "+@all", "~*", "&*")
    with ProcessGroup(server.url, server.client(), tmp_path) as group, Receiver() as receiver:
        group.start("scheduler", {"QTASK_QUEUE": "changed"})
        worker = group.start("worker", {"QTASK_REDIS_URL": url_of(server, "changed")}, queue="changed")
        admin.execute_command("ACL", "SETUSER", "changed", "-blmove")
        link = {"type": "http", "link": receiver.url}
        (task_id,) = group.send("changed", {"title": "t", "address": link, "settings": {"time": 0}})
        until(lambda: "may not BLMOVE: grant +blmove" in worker.log.read_text(), 30, "the right to be named")
        assert worker.running
        admin.execute_command("ACL", "SETUSER", "changed", "+blmove")
        (record,) = group.ended([task_id])
    assert record.state == "delivered"


# --- the check of rights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server_program", find_servers(), ids=lambda server: str(server.version))
def test_check_of_rights_changes_nothing_and_finds_missing_ones_on_every_server(
    tmp_path: Path, server_program: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.redis_server.find_server", lambda: server_program.path)
    server = RedisServer(tmp_path)
    admin = server.client()
    admin.zadd(keys.SCHEDULE, {"a": 1, "b": 2})
    admin.rpush(keys.queue("qtask"), "c")
    admin.hset(keys.job("qtask-probe"), "data", "x")
    admin.set(keys.NODES, 7)
    before = {key: admin.dump(key) for key in admin.scan_iter()}
    try:
        for role in rights.ROLES[:4]:
            assert rights.look(admin, role) == ("standalone", [])
            grant(admin, role)
            with connect(url_of(server, role)) as redis:
                assert rights.look(redis, role) == ("standalone", []), role
            for command in rights.RIGHTS[role].commands:
                if command in _UNTESTABLE:
                    continue
                sub = command.lower()
                grant(admin, role, f"+@all ~* &* -{sub}")
                with connect(url_of(server, role)) as redis:
                    _, lacking = rights.look(redis, role)
                named = " ".join(lacking)
                assert f"+{sub}" in named, (role, command, lacking)
            for pattern in ("~rq:*", "~qtask:*"):
                grant(admin, role, f"+@all {pattern} &*")
                with connect(url_of(server, role)) as redis:
                    _, lacking = rights.look(redis, role)
                other = "qtask" if pattern == "~rq:*" else "rq"
                assert len(lacking) == 1 and f"grant ~{other}:*" in lacking[0], (role, lacking)
            for _, channel in rights.RIGHTS[role].talks:
                grant(admin, role, f"+@all ~* resetchannels &not{channel}")
                with connect(url_of(server, role)) as redis:
                    _, lacking = rights.look(redis, role)
                assert any(f"on {channel}: grant" in one for one in lacking), (role, channel, lacking)
        assert {key: admin.dump(key) for key in admin.scan_iter()} == before
    finally:
        server.kill()


_UNTESTABLE = ("HELLO", "AUTH", "PING", "CLIENT|SETNAME", "SELECT", "UNSUBSCRIBE", "ACL|WHOAMI", "EVALSHA")


def test_read_only_right_is_not_enough(server: RedisServer) -> None:
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "poor", "reset", "on", f">{PASSWORD}", *["+@all", "%R~*", "&*"])
    with (
        connect(url_of(server, "poor")) as redis,
        pytest.raises(ConfigError, match=r"may not HSET: grant \+hset ~rq:\* ~qtask:\*"),
    ):
        rights.check(redis, "worker")


# --- cluster mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["gateway", "scheduler", "worker", "up"])
def test_cluster_mode_is_refused_with_a_reason(tmp_path: Path, role: str) -> None:
    server = RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    environment = {
        "QTASK_REDIS_URL": server.url,
        "QTASK_PORT": "0",
        "QTASK_HTTP_PORT": "0",
        "QTASK_DATA_DIR": str(tmp_path / "data"),
    }
    try:
        event = failure_of(role, environment, tmp_path)
    finally:
        server.kill()
    assert "cluster mode, which QTask does not support" in event["error"] and "Sentinel" in event["error"]
