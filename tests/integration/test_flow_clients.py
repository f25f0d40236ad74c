"""Flows through the Python clients, synchronous and asyncio, over Redis and HTTP: all of them behave the same."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from qtask import AsyncClient, Client, NotFound, QTaskError, Refused
from qtask.store import keys
from tests.integration.test_flows import flow_keys, queued, release
from tests.support.gateway_process import Gateway, stored
from tests.support.redis_server import RedisServer

Call = Callable[..., Any]
LINK = "http://127.0.0.1:9/"


@pytest.fixture(params=["redis", "http", "redis, asyncio", "http, asyncio"])
def call(request: pytest.FixtureRequest, redis_server: RedisServer, gateway: Gateway, redis: Redis) -> Iterator[Call]:
    """Calls a method of one kind of client by its name."""
    transport, _, kind = request.param.partition(", ")
    url = redis_server.url if transport == "redis" else gateway.http_url
    if not kind:
        with Client(url) as client:
            yield lambda method, *given, **named: getattr(client, method)(*given, **named)
        return

    def run(method: str, *given: Any, **named: Any) -> Any:
        async def main() -> Any:
            async with AsyncClient(url) as client:
                return await getattr(client, method)(*given, **named)

        return asyncio.run(main())

    yield run


@pytest.mark.parametrize("key", ["partner-api", "http://127.0.0.1:8000", "a/b:c% d", "%2F", "?x#y"])
def test_flow_is_set_shown_paused_resumed_reset_and_removed(call: Call, redis: Redis, key: str) -> None:
    with pytest.raises(NotFound):
        call("flow", key)
    made = call("set_flow", key, parallel=5, rate=2.5, per=10, burst=3)
    assert (made.key, made.parallel, made.rate, made.per, made.burst, made.ordered) == (key, 5, 2.5, 10.0, 3, False)
    assert call("flow", key) == made
    assert call("flows") == [made]
    assert call("pause_flow", key).state == "paused"
    assert call("resume_flow", key).state == "idle"
    assert call("reset_flow", key) == made
    assert call("set_flow", key, parallel=None, burst=4).parallel is None
    assert (call("flow", key).rate, call("flow", key).burst) == (2.5, 4)
    assert call("remove_flow", key) is None
    assert call("flows") == []
    assert flow_keys(redis) == set()


@pytest.mark.parametrize("method", ["flow", "resume_flow", "reset_flow", "remove_flow"])
def test_flow_without_state_is_not_found(call: Call, redis: Redis, method: str) -> None:
    with pytest.raises(NotFound, match="no flow 'k' has limits"):
        call(method, "k")


@pytest.mark.parametrize(
    ("limits", "code", "field"),
    [
        ({}, "missing_field", ""),
        ({"parallel": 0}, "invalid_value", "parallel"),
        ({"parallel": "x"}, "invalid_value", "parallel"),
        ({"rate": "x"}, "wrong_type", "rate"),
        ({"rate": math.nan}, "invalid_value", "rate"),
        ({"rate": math.inf}, "invalid_value", "rate"),
        ({"rate": 1, "per": 0.001}, "invalid_value", "per"),
        ({"burst": 2}, "invalid_value", "burst"),
        ({"ordered": 1}, "wrong_type", "ordered"),
        ({"ordered": True, "parallel": 3}, "invalid_value", "parallel"),
    ],
)
def test_wrong_limits_are_refused(call: Call, redis: Redis, limits: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(Refused) as refused:
        call("set_flow", "k", **limits)
    assert (refused.value.code, refused.value.field) == (code, field)
    assert flow_keys(redis) == set()


def test_wrong_key_is_refused(call: Call, redis: Redis) -> None:
    for method, limits in (("set_flow", {"parallel": 1}), ("pause_flow", {})):
        with pytest.raises(Refused) as refused:
            call(method, "ü", **limits)
        assert refused.value.field == "key"


def test_wrong_number_of_flows_is_refused(call: Call, redis: Redis) -> None:
    with pytest.raises(Refused) as refused:
        call("flows", 0)
    assert refused.value.field == "limit"


def test_flows_with_the_most_waiting_tasks_come_first(call: Call, redis: Redis) -> None:
    for name, count in (("few", 1), ("many", 3), ("some", 2)):
        call("pause_flow", name)
        for _ in range(count):
            call("http", LINK, flow=name)
    release(redis)
    assert [(one.key, one.waiting) for one in call("flows")] == [("many", 3), ("some", 2), ("few", 1)]
    assert [one.key for one in call("flows", limit=1)] == ["many"]


def test_shorthand_sends_a_flow_and_its_task_says_what_it_waits_for(call: Call, redis: Redis) -> None:
    flow = {"key": "partner-api", "parallel": 1}
    ids = [call("http", LINK, flow=flow, title=str(n)).id for n in range(3)]
    assert stored(redis, ids[0])["settings"]["flow"] == flow
    release(redis)
    shown = call("show", ids[2])
    assert (shown.state, shown.waits_for.flow, shown.waits_for.position) == ("waiting", "partner-api", 2)
    assert shown.waits_for.reason == "parallel"
    assert shown.waits_for.words == "2nd in flow partner-api, which has 1 of 1 deliveries queued or in flight"
    assert call("show", ids[0]).waits_for is None
    assert call("cancel", ids[2]) == "waiting"
    call("set_flow", "partner-api", parallel=2)
    assert queued(redis) == ids[:2]


def test_waiting_tasks_are_listed(redis_server: RedisServer, redis: Redis) -> None:
    with Client(redis_server.url) as client:
        client.pause_flow("k")
        ids = [client.http(LINK, flow="k").id for _ in range(3)]
        release(redis)
        assert [record.id for record in client.list("waiting")] == ids
        assert [record.id for record in client.list("waiting", limit=2)] == ids[:2]


def test_client_of_a_socket_names_the_addresses_that_know_flows(gateway: Gateway) -> None:
    with Client(gateway.url) as client, pytest.raises(QTaskError, match="or a redis:// address"):
        client.flows()


def test_flow_by_a_shorthand_is_checked(call: Call, redis: Redis) -> None:
    for wrong, field in (("", "settings.flow"), ({"paralel": 1}, "settings.flow.paralel"), (7, "settings.flow")):
        with pytest.raises(Refused) as refused:
            call("http", LINK, flow=wrong)
        assert refused.value.field == field
    assert redis.zcard(keys.SCHEDULE) == 0
