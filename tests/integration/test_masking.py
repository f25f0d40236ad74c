"""Credentials are masked wherever a task is shown. The receiver gets the real ones."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from qtask import AsyncClient, Client
from qtask.client.protocol import Accepted
from qtask.model.mask import MASKED
from tests.support.command import qtask
from tests.support.installation import Installation
from tests.support.receiver import Exchange, Receiver
from tests.support.waiting import until

SECRET = "S3cret-value"
HEADERS = (
    *("Authorization", "authorization", "Cookie", "Set-Cookie", "Proxy-Authorization"),
    *("X-Api-Key", "X-API-TOKEN", "client_secret", "Idempotency-Key"),
)


def echo(exchange: Exchange) -> None:
    """A receiver whose answer repeats the request, as many do in error messages."""
    said = [exchange.request.target, *(value for _, value in exchange.request.headers)]
    exchange.answer(503 if "fail" in exchange.request.target else 200, "\n".join(said).encode())


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver(echo) as one:
        yield one


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation(tmp_path_factory.mktemp("mask"), environment={"QTASK_MASK_HEADERS": "X-Session"}) as running:
        yield running


def secret_task(receiver: Receiver, path: str) -> dict[str, Any]:
    link = receiver.url.replace("://", f"://user:{SECRET}1@") + f"{path}?token={SECRET}2&plain=seen"
    names = ("X-Api-Key", "Cookie", "Proxy-Authorization", "client_secret")
    headers = {"X-Session": f"{SECRET}3", "X-Plain": "seen-too", **dict.fromkeys(names, f"Bearer {SECRET}4")}
    data = {"method": "POST", "headers": headers, "params": {"api_key": f"{SECRET}5"}}
    settings = {"time": 0, "data": data, "retry": {"attempts": 1}}
    return {"title": f"to {link}", "address": {"type": "http", "link": link}, "settings": settings}


@pytest.mark.parametrize("path", ["works", "fails"])
def test_credentials_are_masked_wherever_shown_and_delivered_unmasked(
    installation: Installation, receiver: Receiver, path: str
) -> None:
    with Client(installation.url) as client:
        answer = client.send(secret_task(receiver, path))
    until(lambda: answer.id in receiver.ids, what="the delivery")
    (request,) = [one for one in receiver.requests if one.header("QTask-Id") == answer.id]
    assert request.header("X-Session") == f"{SECRET}3" and request.header("Cookie") == f"Bearer {SECRET}4"
    assert f"token={SECRET}2" in request.target and f"api_key={SECRET}5" in request.target
    assert request.header("Authorization").startswith("Basic ")

    state = "delivered" if path == "works" else "dead"
    environment = {**installation.environment, "QTASK_MASK_HEADERS": "X-Session"}

    def shown_over_http() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{installation.http_port}/tasks/{answer.id}") as response:
            return str(response.read().decode())

    until(lambda: f'"state":"{state}"' in shown_over_http(), what="its outcome")
    shown = [shown_over_http()]
    for arguments in (["show", answer.id], ["list", "--state", state]):
        for json_flag in ([], ["--json"]):
            result = qtask(*arguments, *json_flag, environment=environment)
            assert result.returncode == 0, result.stderr
            shown.append(result.stdout)
    shown += [installation.log.read_text()]
    for text in shown:
        assert SECRET not in text, text
        assert request.header("Authorization") not in text
    assert all(MASKED in text for text in shown[:-1])
    assert "seen-too" in shown[0] and "plain=seen" in shown[0]


def test_python_client_masks_credentials(
    installation: Installation, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QTASK_MASK_HEADERS", "X-Session")
    url = str(installation.redis.connection_pool.connection_kwargs["path"])
    task = secret_task(receiver, "works")
    task["settings"]["time"] = 3_600
    with Client(f"unix://{url}") as client:
        answer = client.send(task)
        shown = [repr(client.show(answer.id)), repr(client.show(answer.id).task)]
        shown += [repr(record) + repr(record.task) for record in client.list("scheduled")]

    async def asynchronous() -> None:
        async with AsyncClient(f"unix://{url}") as other:
            record = await other.show(answer.id)
            shown.append(repr(record) + repr(record.task))
            shown.extend(repr(one) + repr(one.task) for one in await other.list("scheduled"))

    asyncio.run(asynchronous())
    assert len(shown) >= 5
    assert not any(SECRET in text for text in shown), shown
    assert all("seen" in text for text in shown[1:])


class _Sent(Client):
    """Keeps the dict that is submitted."""

    def send(self, task: Any) -> Accepted:
        self.task = task
        return Accepted("id", 0.0)


def test_default_title_has_no_credentials(installation: Installation, receiver: Receiver) -> None:
    link = receiver.url.replace("://", f"://user:{SECRET}@") + f"title?token={SECRET}"
    client = _Sent(installation.url)
    client.http(link)
    assert client.task["title"] == f"http {receiver.url.replace('://', '://***@')}title?token=***"
    assert client.task["address"]["link"] == link
    sent = qtask("send", "--http", link, "--in", "3600", "--json", environment=installation.environment)
    task_id = json.loads(sent.stdout)["id"]
    data: Any = installation.redis.hget(f"rq:job:{task_id}", "data")
    (task,) = json.loads(data)[2]
    assert task["title"] == client.task["title"] and task["address"]["link"] == link
