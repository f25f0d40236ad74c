"""Wrong flows through every way in: each answer names the field, says what is wrong and what would be right."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from redis import Redis

from qtask import Client, Refused
from qtask.config import load
from qtask.model.errors import ConfigError
from qtask.store import keys
from tests.support.command import qtask, refused
from tests.support.gateway_process import Connection, Gateway
from tests.support.redis_server import RedisServer

HUGE = "1" + "0" * 300
COUNT = "a whole number from 1 to 100000 is needed, got "
RATE = "a number above 0 and up to 1000000 is needed, got "
PER = "seconds from 0.1 to 86400 (a day) are needed, got "
KEY = "a key is 1 to 200 printable ASCII characters, got "
FLOW_HINT = 'text or an object {…} is needed, got %s; a key such as "partner-api", or {"key": …'

# The JSON of limits, the field that is wrong, and the beginning of the message.
WRONG_LIMITS = [
    ('{"parallel": 0}', "parallel", f"{COUNT}0"),
    ('{"parallel": -1}', "parallel", f"{COUNT}-1"),
    ('{"parallel": 100001}', "parallel", f"{COUNT}100001"),
    (f'{{"parallel": {HUGE}}}', "parallel", f"{COUNT}a much larger one"),
    ('{"parallel": 1.5}', "parallel", "text or a whole number is needed, got a number; deliveries in flight at most"),
    ('{"parallel": true}', "parallel", "text or a whole number is needed, got true or false; deliveries in flight"),
    ('{"parallel": null}', "parallel", "text or a whole number is needed, got null; deliveries in flight"),
    (
        '{"parallel": "many"}',
        "parallel",
        "'many' is not allowed here; deliveries in flight at most, such as 50, or auto",
    ),
    ('{"parallel": "5"}', "parallel", "'5' is not allowed here; deliveries in flight at most, such as 50, or auto"),
    ('{"parallel": [5]}', "parallel", "text or a whole number is needed, got a list"),
    ('{"rate": 0}', "rate", f"{RATE}0"),
    ('{"rate": -0.5}', "rate", f"{RATE}-0.5"),
    ('{"rate": 1e9}', "rate", f"{RATE}1e+09"),
    ('{"rate": 1e-7}', "rate", "at least one delivery a day is needed, got one in 1e+07 seconds; `per` is up to a day"),
    ('{"rate": 0.5, "per": 86400}', "rate", "at least one delivery a day is needed, got one in 172800 seconds"),
    ('{"rate": "10"}', "rate", "a number is needed, got text; deliveries that begin in `per` seconds at most"),
    ('{"rate": true}', "rate", "a number is needed, got true or false; deliveries that begin in `per` seconds"),
    ('{"rate": null}', "rate", "a number is needed, got null; deliveries that begin"),
    ('{"rate": 1e400}', "rate", "numbers go up to 1.7e308"),
    ('{"rate": 1, "per": 0}', "per", f"{PER}0"),
    ('{"rate": 1, "per": -1}', "per", f"{PER}-1"),
    ('{"rate": 1, "per": 0.01}', "per", f"{PER}0.01"),
    ('{"rate": 1, "per": 31536000}', "per", f"{PER}3.1536e+07"),
    ('{"rate": 1, "per": "1h"}', "per", "a number is needed, got text; seconds, such as 60"),
    ('{"per": 60}', "per", "per is the span of a rate; give a rate, or leave it out"),
    ('{"burst": 5}', "burst", "burst belongs to a rate; give a rate, or leave it out"),
    ('{"rate": 1, "burst": 0}', "burst", f"{COUNT}0"),
    ('{"rate": 1, "burst": -5}', "burst", f"{COUNT}-5"),
    ('{"rate": 1, "burst": 100001}', "burst", f"{COUNT}100001"),
    ('{"rate": 1, "burst": 2.5}', "burst", "a whole number is needed, got a number; deliveries that may begin at once"),
    ('{"rate": 1, "burst": true}', "burst", "a whole number is needed, got true or false; deliveries that may begin"),
    ('{"ordered": 1}', "ordered", "true or false is needed, got a whole number; whether deliveries are made one after"),
    ('{"ordered": "yes"}', "ordered", "true or false is needed, got text; whether deliveries"),
    ('{"ordered": true, "parallel": 5}', "parallel", "an ordered flow delivers one task at a time; leave parallel out"),
    ('{"ordered": true, "parallel": "auto"}', "parallel", "an ordered flow delivers one task at a time"),
    ('{"rates": 5}', "rates", "'rates' is not a key of "),
    ('{"Rate": 5}', "Rate", "'Rate' is not a key of "),
]
# Further ones where a task names its flow.
WRONG_FLOWS = [
    ("5", "", FLOW_HINT % "a whole number"),
    ("null", "", FLOW_HINT % "null"),
    ("true", "", FLOW_HINT % "true or false"),
    ('["a"]', "", FLOW_HINT % "a list […]"),
    ('""', "", f"{KEY}0 characters: ''"),
    (json.dumps("x" * 201), "", f"{KEY}201 characters: 'xxx"),
    (r'"a\nb"', "", rf"{KEY}3 characters: 'a\nb'"),
    (r'"a\u0000"', "", rf"{KEY}2 characters: 'a\x00'"),
    ('"straße"', "", f"{KEY}6 characters: 'straße'"),
    ('{"key": ""}', ".key", f"{KEY}0 characters"),
    ('{"key": 5}', ".key", "text is needed, got a whole number; the name of the flow, such as partner-api"),
    ('{"key": null}', ".key", "text is needed, got null; the name of the flow"),
    (json.dumps({"key": "x" * 201, "rate": 5}), ".key", f"{KEY}201 characters"),
    *((text, f".{field}", words) for text, field, words in WRONG_LIMITS),
]
RIGHT = [
    *('"a"', '"https://api.example.org"', json.dumps("~" * 200), "{}", '{"key": "tenant 7"}', '{"parallel": "auto"}'),
    *(
        '{"parallel": 100000, "rate": 1000000, "burst": 100000}',
        '{"rate": 1, "per": 86400}',
        '{"rate": 0.1, "per": 0.1}',
    ),
    *('{"ordered": true, "parallel": 1, "rate": 5}', '{"ordered": false, "parallel": 5}', '{"rate": 10.0, "per": 1e1}'),
]


def text_of(flow: str) -> bytes:
    """A task as JSON, with the JSON of its flow."""
    address = '{"type": "http", "link": "http://127.0.0.1:1/"}'
    return f'{{"title": "t", "address": {address}, "settings": {{"time": 3600, "flow": {flow}}}}}'.encode()


def post(gateway: Gateway, method: str, path: str, body: bytes) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", gateway.http_port, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def through_inbox(redis: Redis, text: bytes) -> Any:
    redis.xadd(keys.INBOX, {"task": text, "reply": "qtask:reply:flows"})
    found: Any = redis.blpop(["qtask:reply:flows"], timeout=30)
    return json.loads(found[1])


@pytest.mark.parametrize(("flow", "field", "words"), WRONG_FLOWS)
def test_wrong_flow_of_a_task_is_answered_alike_everywhere(
    flow: str, field: str, words: str, gateway: Gateway, redis: Redis
) -> None:
    with Connection(gateway.port) as connection:
        connection.send(text_of(flow) + b"\n")
        answer = connection.answer()
    error = answer["error"]
    assert error["field"] == f"settings.flow{field}"
    assert error["message"].startswith(words), error["message"]
    assert error["code"] in ("wrong_type", "invalid_value", "unknown_field")
    assert post(gateway, "POST", "/tasks", text_of(flow)) == (400, answer)
    assert through_inbox(redis, text_of(flow)) == answer
    assert redis.zcard(keys.SCHEDULE) == 0


@pytest.mark.parametrize(("flow", "field", "words"), [one for one in WRONG_FLOWS if "1e400" not in one[0]])
def test_client_raises_what_is_wrong_with_a_flow(
    flow: str, field: str, words: str, gateway: Gateway, redis_server: RedisServer
) -> None:
    for url in (gateway.url, redis_server.url):
        with Client(url) as client, pytest.raises(Refused) as error:
            client.send(json.loads(text_of(flow)))
        assert error.value.field == f"settings.flow{field}"
        assert error.value.message.startswith(words)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_client_rejects_numbers_that_json_has_not(value: float, redis_server: RedisServer) -> None:
    task = json.loads(text_of("{}"))
    task["settings"]["flow"] = {"rate": value}
    with Client(redis_server.url) as client, pytest.raises(Refused, match="JSON, which has no NaN and no infinity"):
        client.send(task)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_number_that_json_has_not_is_no_rate(value: str, gateway: Gateway) -> None:
    status, answer = post(gateway, "PUT", "/flows/a", f'{{"rate": {value}}}'.encode())
    assert (status, answer["error"]["code"]) == (400, "invalid_json")
    assert answer["error"]["message"].endswith("JSON has no NaN and no infinity")


@pytest.mark.parametrize("flow", RIGHT)
def test_right_flow_is_accepted(flow: str, gateway: Gateway, redis: Redis) -> None:
    with Connection(gateway.port) as connection:
        connection.send(text_of(flow) + b"\n")
        assert connection.answer()["ok"]
    if flow.startswith("{") and "key" not in flow:
        assert post(gateway, "PUT", "/flows/a", flow.encode())[0] == 200


@pytest.mark.parametrize(("limits", "field", "words"), WRONG_LIMITS)
def test_wrong_limits_are_answered_by_put(limits: str, field: str, words: str, gateway: Gateway, redis: Redis) -> None:
    status, answer = post(gateway, "PUT", "/flows/a", limits.encode())
    assert status == 400
    assert answer["error"]["field"] == field
    assert answer["error"]["message"].startswith(words)
    assert not redis.exists(keys.FLOW_PREFIX + "a")


@pytest.mark.parametrize(("limits", "field", "words"), [one for one in WRONG_LIMITS if "null" not in one[0]])
def test_wrong_changes_are_answered_by_patch(
    limits: str, field: str, words: str, gateway: Gateway, redis: Redis
) -> None:
    status, answer = post(gateway, "PATCH", "/flows/a", limits.encode())
    assert status == 400
    assert answer["error"]["field"] == field
    assert answer["error"]["message"].startswith(words)
    if answer["error"]["code"] == "wrong_type":
        assert answer["error"]["message"].endswith("; null removes it")
    assert not redis.exists(keys.FLOW_PREFIX + "a")


@pytest.mark.parametrize(
    ("limits", "field", "words"),
    [
        one
        for one in WRONG_LIMITS
        if "null" not in one[0] and "1e400" not in one[0] and one[1].lower() == one[1] != "rates"
    ],
)
def test_client_raises_what_is_wrong_with_changes(
    limits: str, field: str, words: str, gateway: Gateway, redis_server: RedisServer
) -> None:
    for url in (f"http://127.0.0.1:{gateway.http_port}", redis_server.url):
        with Client(url) as client, pytest.raises(Refused) as error:
            client.set_flow("a", **json.loads(limits))
        assert error.value.field == field
        assert error.value.message.startswith(words)
        if error.value.code == "wrong_type":
            assert error.value.message.endswith("; None removes it")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_client_changes_nothing_to_a_number_that_json_has_not(
    value: float, gateway: Gateway, redis_server: RedisServer, redis: Redis
) -> None:
    for url in (f"http://127.0.0.1:{gateway.http_port}", redis_server.url):
        with Client(url) as client:
            client.set_flow("a", rate=5)
            with pytest.raises(Refused, match=f"a number above 0 and up to 1000000 is needed, got {value:g}"):
                client.set_flow("a", rate=value)
            with pytest.raises(Refused, match=f"are needed, got {value:g}"):
                client.set_flow("a", per=value)
            assert (client.flow("a").rate, client.flow("a").per) == (5, 1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "one JSON object of limits is needed, got nothing"),
        (b"[1]", "an object {…} is needed, got a list […]; its keys are: parallel, rate, per, burst, ordered"),
        (b'"5"', "an object {…} is needed, got text; its keys are: parallel"),
        (b"{", "one JSON object of limits is needed; the text ends"),
        (b'{"key": "b"}', "'key' is not a key of the limits; their keys are: parallel, rate, per, burst, ordered"),
        (b'{"rate": 1} {}', "one JSON object of limits is needed; trailing characters"),
        (b"{" + b" " * 5_000 + b"}", "limits have at most 4096 bytes"),
    ],
)
def test_body_that_is_no_limits_is_answered(body: bytes, words: str, gateway: Gateway) -> None:
    status, answer = post(gateway, "PUT", "/flows/a", body)
    assert status == (413 if len(body) > 4_096 else 400)
    assert answer["error"]["message"].startswith(words)


@pytest.mark.parametrize("key", ["x" * 401, "a\n", "straße", "\x7f"])
def test_key_that_no_flow_can_have_is_answered(key: str, gateway: Gateway) -> None:
    path = f"/flows/{quote(key, safe='')}"
    for method, more in (("PUT", ""), ("POST", "/pause"), ("POST", "/resume")):
        status, answer = post(gateway, method, path + more, b"{}")
        assert status == 400
        assert answer["error"]["field"] == "key"
        assert answer["error"]["message"].startswith("a key is 1 to 400 printable ASCII characters, got ")
    for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/reset")):
        assert post(gateway, method, path + more, b"{}")[0] == 404


@pytest.mark.parametrize("key", ["https://api.example.org", "tenant 7", "a/b?c#d%2F", "~" * 400, "'\"\\"])
def test_any_printable_key_is_set_and_shown(key: str, gateway: Gateway, redis: Redis) -> None:
    path = f"/flows/{quote(key, safe='')}"
    assert post(gateway, "PUT", path, b'{"rate": 5}')[0] == 200
    status, answer = post(gateway, "GET", path, b"")
    assert (status, answer["key"], answer["rate"]) == (200, key, 5)


def test_command_line_says_what_is_wrong(redis_server: RedisServer, redis: Redis) -> None:
    def said(*flags: str, key: str = "a") -> str:
        return refused(qtask("flow", "set", "--redis", redis_server.url, key, *flags))

    assert f"parallel: {COUNT}0" in said("--parallel", "0")
    assert f"parallel: {COUNT}-3" in said("--parallel", "-3")
    assert said("--rate", "fast").endswith("such as 10 or 0.5; none removes it")
    assert "parallel: 'many' is not allowed here; deliveries in flight at most, such as 50, or auto" in said(
        "--parallel", "many"
    )
    assert f"rate: {RATE}nan" in said("--rate", "nan")
    assert f"rate: {RATE}inf" in said("--rate", "inf")
    assert f"rate: {RATE}-1" in said("--rate", "-1")
    assert f"per: {PER}nan" in said("--rate", "1", "--per", "nan")
    assert "per: per is the span of a rate" in said("--per", "5")
    assert "burst: burst belongs to a rate" in said("--burst", "5")
    assert "parallel: an ordered flow delivers one task at a time" in said("--ordered", "--parallel", "5")
    assert "key: a key is 1 to 400 printable ASCII characters, got 0" in said("--rate", "1", key="")
    assert "key: a key is 1 to 400 printable ASCII characters, got 6" in said("--rate", "1", key="straße")
    assert not redis.exists(keys.FLOW_PREFIX + "a")
    result = qtask("flow", "set", "--redis", redis_server.url, "a", "--burst", "some", "--rate", "1")
    assert result.returncode == 2 and "--burst" in result.stderr, "the command line's own check"


@pytest.mark.parametrize(("limits", "field", "words"), WRONG_LIMITS)
def test_wrong_limits_in_the_configuration_are_reported(limits: str, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load({}, {"QTASK_FLOW": f'{{"https://a": {limits}}}'})
    if "1e400" in limits:
        assert str(error.value).startswith("QTASK_FLOW must be JSON such as ")
    else:
        assert str(error.value).startswith(f'QTASK_FLOW: "https://a".{field}: {words}')


def test_encoded_limits_are_read_back() -> None:
    for flow in RIGHT:
        if flow.startswith("{") and "key" not in flow:
            rules = load({}, {"QTASK_FLOW": f'{{"a": {flow}}}'}).flow
            assert msgspec.json.decode(rules) == {"a": json.loads(flow)}
