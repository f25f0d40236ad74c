"""Queues through every door: the command line, HTTP, the Python clients; and the blocks of docs/queues.md."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from msgspec.structs import fields

from qtask import AsyncClient, Client, Refused
from qtask.model.errors import QTaskError
from qtask.model.queue_record import QueueRecord
from qtask.model.queues import MAX_NAME_CHARACTERS, MAX_SERVED
from qtask.store import keys
from qtask.worker.claim_order import BEHIND_EVERY
from qtask.worker.claims import CLAIM_BATCH
from tests.support.command import qtask, refused
from tests.support.documents import ROOT, Block, blocks, run, with_ports
from tests.support.installation import Installation
from tests.support.live import ProcessGroup
from tests.support.receiver import Receiver
from tests.support.waiting import until

DOCUMENT = ROOT / "docs" / "queues.md"
BLOCKS = [block for block in blocks(DOCUMENT) if "qtask worker" not in block.text]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("queues")
    with Installation(folder, "--queues", "critical,default:3,bulk:1", "--queue", "default") as running:
        yield running


def ran(installation: Installation, *arguments: str) -> str:
    result = qtask(*arguments, environment=installation.environment)
    assert (result.returncode, result.stderr) == (0, ""), (result.stdout, result.stderr)
    return result.stdout


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def a_task(url: str, **settings: Any) -> dict[str, Any]:
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": {"time": 0, **settings}}


def queue_of(installation: Installation, task_id: str) -> str:
    """The queue of a task, once it is delivered."""

    def shown() -> Any:
        (record,) = lines(ran(installation, "show", task_id, "--json"))
        return record if record["state"] == "delivered" else None

    return str(until(shown, what="the task to be delivered")["queue"])


def test_queue_of_a_task_is_chosen_through_every_door(installation: Installation) -> None:
    http_url = f"http://127.0.0.1:{installation.http_port}"
    redis_url = installation.redis.connection_pool.connection_kwargs
    with Receiver() as receiver:
        flags = ("send", "--http", receiver.url, "--json", "--queue", "bulk")
        (by_flag,) = lines(ran(installation, *flags))
        (by_flag_to_redis,) = lines(ran(installation, *flags, "--redis", f"unix://{redis_url['path']}"))
        by_http = requests.post(f"{http_url}/tasks", json=a_task(receiver.url, queue="bulk"), timeout=10).json()
        installation.redis.xadd(keys.INBOX, {"task": json.dumps(a_task(receiver.url, queue="bulk", id="by-inbox"))})
        with Client(installation.url) as client, Client(http_url) as over_http:
            by_socket = client.send(a_task(receiver.url, queue="bulk"))
            by_word = over_http.http(receiver.url, queue="critical")
            plain = client.http(receiver.url)
            batch = client.send_many([a_task(receiver.url, queue=name) for name in ("bulk", "critical")])
        receiver.wait_for(9)
    found = [by_flag["id"], by_flag_to_redis["id"], by_http["id"], "by-inbox", by_socket.id, batch[0].id]  # type: ignore[union-attr]
    assert {queue_of(installation, task_id) for task_id in found} == {"bulk"}
    assert queue_of(installation, by_word.id) == queue_of(installation, batch[1].id) == "critical"  # type: ignore[union-attr]
    assert queue_of(installation, plain.id) == "default"
    assert "queue" in ran(installation, "show", plain.id)
    assert json.loads(ran(installation, "audit", "--json"))["missing"] == 0


def test_invalid_queue_is_refused_through_every_door(installation: Installation) -> None:
    http_url = f"http://127.0.0.1:{installation.http_port}"
    answer = requests.post(f"{http_url}/tasks", json=a_task("http://127.0.0.1:1/", queue="a b"), timeout=10)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "settings.queue"
    with Client(installation.url) as client, pytest.raises(Refused, match="a name of 1 to 64 letters"):
        client.http("http://127.0.0.1:1/", queue="")
    result = qtask("send", "--http", "http://a/", "--queue", "ä", environment=installation.environment)
    assert result.returncode == 1
    assert "settings.queue" in result.stderr
    assert "a name of 1 to 64 letters" in refused(qtask("queue", "pause", "a b", environment=installation.environment))
    response = requests.post(f"{http_url}/queues/a%20b/purge", json={}, timeout=10)
    assert (response.status_code, response.json()["error"]["field"]) == (400, "queue")
    form = requests.post(f"{http_url}/queues/bulk/pause", data="x", timeout=10)
    assert form.status_code == 415
    with pytest.raises(QTaskError, match="queue must be a name"):
        Client("redis://127.0.0.1:1/0", queue="a b")


@pytest.mark.parametrize(
    ("process", "flags", "message"),
    [
        ("gateway", ("--queue", "a,b"), "several queues are for workers only: set `queues`"),
        ("scheduler", ("--queue", "a:1"), "several queues are for workers only"),
        ("up", ("--queue", "a b"), "queue must be a name of 1 to 64 letters"),
        ("up", ("--queues", "a,a"), "the queue a is named twice"),
        ("worker", ("--queue", "a:x"), "the weight of the queue a must be from 1 to 1000"),
    ],
)
def test_process_with_an_invalid_queue_ends_with_a_reason(
    tmp_path: Path, process: str, flags: tuple[str, ...], message: str
) -> None:
    result = qtask(process, *flags, environment={"QTASK_DATA_DIR": str(tmp_path / "data"), "QTASK_LOG_FORMAT": "json"})
    assert result.returncode == 1
    assert message in json.loads(result.stderr.splitlines()[-1])["error"]


def test_flag_queue_of_a_worker_overrides_queues_of_the_environment() -> None:
    given = {"QTASK_QUEUES": "a:x", "QTASK_LOG_FORMAT": "json"}
    result = qtask("worker", "--queue", "b:y", environment=given)
    assert "the weight of the queue b" in json.loads(result.stderr.splitlines()[-1])["error"]


def test_commands_show_pause_resume_and_purge_queues(installation: Installation) -> None:
    with Receiver() as receiver:
        (paused,) = lines(ran(installation, "queue", "pause", "bulk", "--json"))
        assert paused["paused"] is True
        sent = [
            lines(ran(installation, "send", "--http", receiver.url, "--queue", "bulk", "--json"))[0]["id"]
            for _ in range(2)
        ]
        count = ("list", "--state", "queued", "--json")
        until(lambda: len(lines(ran(installation, *count))) == 2, what="two tasks to be queued")
        assert [one["id"] for one in lines(ran(installation, *count, "--queue", "bulk"))] == sent
        assert lines(ran(installation, *count, "--queue", "critical")) == []
        shown = {one["name"]: one for one in lines(ran(installation, "queue", "list", "--json"))}
        assert (shown["bulk"]["queued"], shown["bulk"]["paused"], shown["bulk"]["workers"]) == (2, True, 1)
        assert re.search(r"^bulk +paused +2 +0 +0 +0 +1 *$", ran(installation, "queue", "list"), re.MULTILINE)
        assert (
            "the queue bulk is paused and holds 2 tasks" in qtask("doctor", environment=installation.environment).stdout
        )
        assert ran(installation, "queue", "purge", "bulk") == "2 tasks of the queue bulk cancelled\n"
        assert json.loads(ran(installation, "queue", "purge", "bulk", "--json")) == {"name": "bulk", "cancelled": 0}
        (last,) = lines(ran(installation, "send", "--http", receiver.url, "--queue", "bulk", "--json"))
        assert "paused" not in ran(installation, "queue", "resume", "bulk")
        assert queue_of(installation, last["id"]) == "bulk"
        assert receiver.ids == [last["id"]]
    assert json.loads(ran(installation, "audit", "--json"))["missing"] == 0


def test_dead_letters_of_all_queues_are_listed_retried_and_removed(installation: Installation) -> None:
    flags = ("send", "--http", "http://127.0.0.1:1/", "--attempts", "1", "--json")
    dead = [lines(ran(installation, *flags, "--queue", name))[0] for name in ("bulk", "critical")]
    ids = sorted(one["id"] for one in dead)

    def listed(*flags: str) -> list[str]:
        return [one["id"] for one in lines(ran(installation, "list", "--state", "dead", "--json", *flags))]

    until(lambda: sorted(listed()) == ids, what="both to be dead")
    assert listed("--queue", "bulk") == [dead[0]["id"]]
    assert len(listed("--limit", "1")) == 1
    assert json.loads(ran(installation, "stats", "--json"))["tasks"]["dead"] == 2
    assert json.loads(ran(installation, "stats", "--json", "--queue", "bulk"))["tasks"]["dead"] == 1
    said = qtask("doctor", environment=installation.environment).stdout
    assert "1 dead letter in the queue bulk: 1 by connect" in said
    assert "1 dead letter in the queue critical: 1 by connect" in said
    with Client(f"unix://{installation.redis.connection_pool.connection_kwargs['path']}") as client:
        assert sorted(client.find_dead()) == ids
        assert sorted(one.id for one in client.list("dead")) == ids
    assert ran(installation, "remove", "--all", "--queue", "critical") == f"{dead[1]['id']} removed\n"
    assert ran(installation, "remove", "--all") == f"{dead[0]['id']} removed\n"


@pytest.mark.parametrize("transport", ["http", "redis"])
def test_clients_pause_list_purge_and_resume(installation: Installation, transport: str) -> None:
    path = installation.redis.connection_pool.connection_kwargs["path"]
    url = {"http": f"http://127.0.0.1:{installation.http_port}", "redis": f"unix://{path}"}[transport]
    name = f"of-{transport}"
    with Client(url) as client:
        assert client.pause_queue(name) == QueueRecord(name, paused=True)
        client.http("http://127.0.0.1:1/", queue=name)
        until(lambda: QueueRecord(name, paused=True, queued=1) in client.queues(), what="the task to be queued")
        assert client.purge_queue(name) == 1
        assert client.resume_queue(name) == QueueRecord(name)
        with pytest.raises(Refused, match="a name of 1 to 64 letters"):
            client.pause_queue("a b")

    async def same() -> None:
        async with AsyncClient(url) as client:
            assert await client.pause_queue(name) == QueueRecord(name, paused=True)
            assert QueueRecord(name, paused=True) in await client.queues()
            assert await client.purge_queue(name) == 0
            assert await client.resume_queue(name) == QueueRecord(name)

    asyncio.run(same())


def test_client_of_a_socket_names_the_address_for_queues() -> None:
    with Client("socket://127.0.0.1:1") as client, pytest.raises(QTaskError, match="redis:// address"):
        client.queues()


# --- docs/queues.md --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line-{block.line}")
def test_block_of_the_page_runs(installation: Installation, tmp_path: Path, block: Block) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with Receiver() as receiver:
        ports = {"5123": installation.port, "5124": installation.http_port, "8000": receiver.port}
        sends = "8000" in block.text
        out = run(block, ports, tmp_path, {**installation.environment, "PATH": path})
        if sends:
            receiver.wait_for(1)
    assert "Traceback" not in out
    assert '"ok":false' not in out
    assert not installation.redis.exists(keys.PAUSED_QUEUES)


def test_worker_of_the_page_serves_its_queues(redis_server: Any, redis: Any, tmp_path: Path) -> None:
    (block,) = [block for block in blocks(DOCUMENT) if "qtask worker" in block.text]
    _, process, *flags = with_ports(block.text, {}).split()
    assert (process, flags[0]) == ("worker", "--queue")
    with ProcessGroup(redis_server.url, redis, tmp_path) as group:
        group.start("worker", queue=flags[1])
        workers: Any = [redis.smembers(keys.rq_workers(name)) for name in ("critical", "default", "bulk")]
        assert len(workers[0]) == 1
        assert workers[0] == workers[1] == workers[2]


def test_figures_of_the_page_are_correct() -> None:
    text = " ".join(DOCUMENT.read_text().split())
    assert f"A name has 1 to {MAX_NAME_CHARACTERS} letters, digits, `.`, `_` and `-`" in text
    assert f"Of every {BEHIND_EVERY} claims from a queue" in text
    assert f"A claim takes up to {CLAIM_BATCH} tasks" in text
    assert f"It serves at most {MAX_SERVED} queues" in text
    rows = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [one.name for one in fields(QueueRecord)]
