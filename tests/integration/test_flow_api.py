"""The HTTP routes of flows, on a real gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis

from qtask.model.flow import Limits
from qtask.store import flows
from tests.integration.test_flows import claim, end_rest, flow_keys, queued, release, send, settle, task, trip, waiting
from tests.integration.test_gateway_http import Browser
from tests.support.gateway_process import Gateway
from tests.support.http_response import Response

KEYS = [
    "partner-api",
    "http://127.0.0.1:8000",
    "a/b",
    "a:b",
    "100%",
    "%2F",
    "with spaces",
    "?q=1#x",
    "{k}",
    "~",
    "k" * 200,
]


@pytest.fixture
def browser(gateway: Gateway) -> Iterator[Browser]:
    with Browser(gateway) as opened:
        yield opened


def path(key: str, step: str = "") -> str:
    return f"/flows/{quote(key, safe='')}{step}"


def call(browser: Browser, method: str, where: str, body: Any = None) -> Response:
    raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    return browser.request(method, where, raw, Content_Type="application/json")


@pytest.mark.parametrize("key", KEYS)
def test_every_route_takes_any_key(browser: Browser, redis: Redis, key: str) -> None:
    made = call(browser, "PUT", path(key), {"parallel": 2, "rate": 5, "per": 10, "burst": 3})
    assert made.status == 200
    limits = {name: made.json[name] for name in ("key", "parallel", "rate", "per", "burst", "ordered", "state")}
    assert limits == {
        "key": key,
        "parallel": 2,
        "rate": 5.0,
        "per": 10.0,
        "burst": 3,
        "ordered": False,
        "state": "idle",
    }
    shown = browser.get(path(key))
    assert (shown.status, shown.json) == (200, made.json)
    assert [one["key"] for one in browser.get("/flows").json["items"]] == [key]
    assert call(browser, "POST", path(key, "/pause"), {}).json["state"] == "paused"
    assert call(browser, "POST", path(key, "/resume"), {}).json["state"] == "idle"
    assert call(browser, "POST", path(key, "/reset"), {}).json["parallel"] == 2
    assert call(browser, "DELETE", path(key)).json == {"ok": True, "key": key}
    assert flow_keys(redis) == set()


@pytest.mark.parametrize(
    ("method", "step"),
    [("GET", ""), ("DELETE", ""), ("POST", "/resume"), ("POST", "/reset")],
)
def test_unknown_flow_is_answered_with_404(browser: Browser, redis: Redis, method: str, step: str) -> None:
    response = call(browser, method, path("no flow", step), {} if method == "POST" else None)
    assert (response.status, response.code) == (404, "not_found")
    assert "'no flow'" in response.json["error"]["message"]
    assert flow_keys(redis) == set()


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"parallel": 0}, "invalid_value", "parallel"),
        ({"parallel": "many"}, "invalid_value", "parallel"),
        ({"parallel": 1.5}, "wrong_type", "parallel"),
        ({"parallel": 10**9}, "invalid_value", "parallel"),
        ({"rate": -1}, "invalid_value", "rate"),
        ({"rate": "fast"}, "wrong_type", "rate"),
        ({"rate": 1, "per": 0}, "invalid_value", "per"),
        ({"per": 5}, "invalid_value", "per"),
        ({"burst": 5}, "invalid_value", "burst"),
        ({"rate": 5, "burst": 0}, "invalid_value", "burst"),
        ({"ordered": "yes"}, "wrong_type", "ordered"),
        ({"ordered": True, "parallel": 2}, "invalid_value", "parallel"),
        ({"prallel": 2}, "unknown_field", "prallel"),
        ([], "wrong_type", ""),
        (b"{", "invalid_json", ""),
        (b"", "invalid_json", ""),
        (b"\xff", "invalid_json", ""),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_wrong_limits_are_refused_and_name_the_field(
    browser: Browser, redis: Redis, method: str, body: Any, code: str, field: str
) -> None:
    response = call(browser, method, path("k"), body)
    assert (response.status, response.code, response.json["error"]["field"]) == (400, code, field)
    assert flow_keys(redis) == set()


def test_unknown_limit_is_answered_with_the_known_ones(browser: Browser, redis: Redis) -> None:
    message = call(browser, "PUT", path("k"), {"prallel": 2}).json["error"]["message"]
    assert message == "'prallel' is not a key of the limits; their keys are: parallel, rate, per, burst, ordered"


def test_large_body_and_wrong_type_are_refused(browser: Browser, redis: Redis) -> None:
    assert call(browser, "PUT", path("k"), b" " * 5_000).status == 413
    assert browser.request("PUT", path("k"), b"{}", Content_Type="text/plain").status == 415
    assert browser.request("POST", path("k", "/pause"), b"", Content_Type="text/plain").status == 415


@pytest.mark.parametrize("key", ["ü", "\n", "k" * 401])
def test_wrong_key_is_refused(browser: Browser, redis: Redis, key: str) -> None:
    for method, step, body in (("PUT", "", {"parallel": 1}), ("PATCH", "", {"parallel": 1}), ("POST", "/pause", {})):
        response = call(browser, method, path(key, step), body)
        assert (response.status, response.json["error"]["field"]) == (400, "key")
    assert flow_keys(redis) == set()


def test_put_replaces_limits_and_patch_changes_them(browser: Browser, redis: Redis) -> None:
    call(browser, "PUT", path("k"), {"parallel": 2, "rate": 5, "burst": 3})
    changed = call(browser, "PATCH", path("k"), {"burst": 4}).json
    assert (changed["parallel"], changed["rate"], changed["burst"]) == (2, 5.0, 4)
    changed = call(browser, "PATCH", path("k"), {"rate": 7}).json
    assert (changed["parallel"], changed["rate"], changed["burst"]) == (2, 7.0, 1)
    changed = call(browser, "PATCH", path("k"), {"parallel": None}).json
    assert (changed["parallel"], changed["rate"]) == (None, 7.0)
    replaced = call(browser, "PUT", path("k"), {"parallel": 9}).json
    assert (replaced["parallel"], replaced["rate"], replaced["burst"]) == (9, None, None)
    assert call(browser, "PUT", path("k"), {}).json["state"] == "idle"
    assert flow_keys(redis) == set()


def test_change_that_contradicts_another_limit_is_refused(browser: Browser, redis: Redis) -> None:
    call(browser, "PUT", path("k"), {"ordered": True})
    response = call(browser, "PATCH", path("k"), {"parallel": 5})
    assert (response.status, response.json["error"]["field"]) == (400, "parallel")
    assert call(browser, "PATCH", path("k"), {"parallel": 5, "ordered": False}).json["parallel"] == 5
    assert call(browser, "PATCH", path("k"), {}).json["error"]["code"] == "missing_field"


def test_flows_with_the_most_waiting_tasks_come_first(browser: Browser, redis: Redis) -> None:
    for name, count in (("few", 1), ("many", 3), ("some", 2)):
        call(browser, "POST", path(name, "/pause"), {})
        send(redis, *[task(name)] * count)
    flows.set_limits("none", Limits(parallel=1)).run(redis)
    release(redis)
    listed = browser.get("/flows").json
    assert [(one["key"], one["waiting"]) for one in listed["items"]] == [
        *[("many", 3), ("some", 2), ("few", 1), ("none", 0)]
    ]
    assert [one["key"] for one in browser.get("/flows?limit=2").json["items"]] == ["many", "some"]


def test_all_flows_are_on_the_pages_of_a_cursor(browser: Browser, redis: Redis) -> None:
    names = {f"flow-{number}" for number in range(300)}
    for name in names:
        flows.set_limits(name, Limits(parallel=1)).run(redis)
    cursor, seen, pages = "0", set(), 0
    while cursor:
        page = browser.get(f"/flows?cursor={cursor}&limit=50").json
        seen |= {one["key"] for one in page["items"]}
        cursor, pages = page["cursor"], pages + 1
    assert seen == names and pages > 2


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "", "1e2", "%D9%A1", "9" * 5_000])
def test_wrong_limit_is_refused(browser: Browser, redis: Redis, limit: str) -> None:
    response = browser.get(f"/flows?limit={limit}")
    assert (response.status, response.json["error"]["field"]) == (400, "limit")


def test_wrong_cursor_is_refused(browser: Browser, redis: Redis) -> None:
    response = browser.get("/flows?cursor=x")
    assert (response.status, response.json["error"]["field"]) == (400, "cursor")


def test_task_is_shown_with_what_it_waits_for(browser: Browser, redis: Redis) -> None:
    ids = send(redis, *[task({"key": "partner-api", "parallel": 1})] * 3)
    release(redis)
    settle(redis, claim(redis).items(), "failed", rest=60)
    shown = browser.get(f"/tasks/{ids[2]}").json
    flow = browser.get(path("partner-api")).json
    assert shown["state"] == "waiting"
    words = shown["waits_for"].pop("words")
    assert shown["waits_for"] == {
        "flow": "partner-api",
        "position": 2,
        "reason": "resting",
        "until": flow["until"],
    }
    assert words.startswith("2nd in flow partner-api, which rests until 20")
    assert (flow["state"], flow["why"]) == ("resting", "its destination asked for a pause")
    call(browser, "POST", path("partner-api", "/reset"), {})
    assert queued(redis) == ids[1:2], "the reset admits the next task at once"


def test_reset_closes_the_circuit_breaker(browser: Browser, redis: Redis) -> None:
    trip(redis)
    ids = send(redis, task("k"), task("k"))
    release(redis)
    assert browser.get(path("k")).json["state"] == "open"
    assert call(browser, "POST", path("k", "/reset"), {}).json["breaker"] == "closed"
    assert queued(redis) == ids


def test_outcomes_before_a_reset_do_not_count(browser: Browser, redis: Redis) -> None:
    flows.set_limits("k", Limits(parallel=100)).run(redis)
    trip(redis, 19)
    call(browser, "POST", path("k", "/reset"), {})
    trip(redis, 19)
    assert browser.get(path("k")).json["breaker"] == "closed"
    trip(redis, 1)
    assert browser.get(path("k")).json["breaker"] == "open"


def test_resumed_and_removed_flow_delivers_at_once(browser: Browser, redis: Redis) -> None:
    call(browser, "POST", path("k", "/pause"), {})
    ids = send(redis, *[task("k")] * 2)
    release(redis)
    assert waiting(redis, "k") == ids
    call(browser, "POST", path("k", "/resume"), {})
    assert queued(redis) == ids
    settle(redis, claim(redis).items())
    assert flow_keys(redis) == set()
    trip(redis)
    end_rest(redis)
    assert call(browser, "DELETE", path("k")).status == 200
    assert flow_keys(redis) == set() and not redis.exists("qtask:health:k")


def test_removed_flow_that_has_tasks_in_flight_leaves_no_key(browser: Browser, redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "rate": 100, "burst": 5, "parallel": 2})] * 4)
    release(redis)
    claimed = claim(redis)
    call(browser, "DELETE", path("k"))
    assert queued(redis) == ids[2:]
    settle(redis, claimed.items())
    settle(redis, claim(redis).items())
    assert flow_keys(redis) == set()
