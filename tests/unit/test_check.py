"""Validation of tasks: every form that is allowed, and properties of the parser for any input."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from random import Random
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType

from qtask.destinations.graph import GraphAddress
from qtask.destinations.http import HttpAddress, HttpData, http_data
from qtask.destinations.http.message import prepare
from qtask.destinations.parsing import check_task, parse
from qtask.destinations.pipe import PipeAddress, pipe_data
from qtask.destinations.registry import built_in
from qtask.destinations.socket import SocketAddress
from qtask.model.errors import Refused
from qtask.model.retry import CAUSES
from qtask.model.task import (
    DEFAULT_TIMEOUT_SECONDS,
    MAX_BYTES,
    MAX_DEPTH,
    Settings,
    Task,
    decode_base64,
    json_text,
    with_timeout,
)
from qtask.model.validation import Checked, encode, split_batch
from tests.support.json_texts import json_texts, scalars, values, written

KINDS = ("http", "socket", "udp", "pipe", "__graph__")

# --- every allowed form --------------------------------------------------------------------------------------


def dict_of(kind: str, link: str | None = None, **settings: Any) -> dict[str, Any]:
    address = {"type": kind} if link is None else {"type": kind, "link": link}
    return {"title": "t", "address": address, "settings": {"time": 0, **settings}}


def http(**data: Any) -> dict[str, Any]:
    return dict_of("http", "http://127.0.0.1:8000/", data=data)


def read(value: Any) -> Task:
    return parse(json.dumps(value).encode()).task


def value_of(data: Raw | UnsetType) -> Any:
    assert data is not UNSET
    return json.loads(bytes(data))


def refusal(value: Any) -> Refused:
    raw = (
        value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else json.dumps(value).encode()
    )
    with pytest.raises(Refused) as refused:
        parse(raw)
    return refused.value


@pytest.mark.parametrize(
    ("kind", "link", "address"),
    [
        ("http", "http://example.org/hook?a=1", HttpAddress("http://example.org/hook?a=1")),
        ("http", "https://example.org", HttpAddress("https://example.org")),
        ("socket", "0.0.0.0:5000", SocketAddress("0.0.0.0:5000")),
        ("socket", "[::1]:5000", SocketAddress("[::1]:5000")),
        ("socket", "unix:/run/it.sock", SocketAddress("unix:/run/it.sock")),
        ("pipe", "orders", PipeAddress("orders")),
        ("__graph__", None, GraphAddress()),
        ("__graph__", "anything", GraphAddress("anything")),
    ],
)
def test_address_of_each_type_is_parsed(kind: str, link: str | None, address: Any) -> None:
    value = dict_of(kind, link)
    if kind in ("socket", "pipe"):
        value["settings"]["data"] = {"data": 1}
    task = read(value)
    assert task.address == address
    assert task.type == kind
    assert kind in built_in()


def test_graph_needs_no_link_or_settings_and_is_due_at_once() -> None:
    checked = parse(b'{"title":"g","address":{"type":"__graph__"}}')
    assert (checked.delay, checked.instant) == (0.0, None)
    assert parse(b'{"title":"g","address":{"type":"__graph__"},"settings":{}}').delay == 0.0
    assert parse(b'{"title":"g","address":{"type":"__graph__"},"settings":{"time":5,"data":null}}').delay == 5.0
    assert parse(b'{"title":"g","address":{"type":"__graph__"},"settings":{"data":{}}}').delay == 0.0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, HttpData()),
        ({"method": "POST"}, HttpData(method="POST")),
        ({"method": "brew"}, HttpData(method="brew")),
        ({"headers": "auto"}, HttpData(headers="auto")),
        ({"headers": {"X-One": "1", "Empty": ""}}, HttpData(headers={"X-One": "1", "Empty": ""})),
        ({"headers": {"Latin": "caf\u00e9"}}, HttpData(headers={"Latin": "caf\u00e9"})),
        ({"headers": None}, HttpData(headers=None)),
        ({"params": {"a": "1", "b": 2, "c": 1.5, "d": True}}, HttpData(params={"a": "1", "b": 2, "c": 1.5, "d": True})),
        ({"params": {"a": ["1", 2], "gone": None}}, HttpData(params={"a": ["1", 2], "gone": None})),
        ({"params": None}, HttpData(params=None)),
        ({"json": [1, {"a": None}]}, HttpData(json=Raw(b'[1, {"a": null}]'))),
        ({"json": "text"}, HttpData(json=Raw(b'"text"'))),
        ({"json": None, "data": "text"}, HttpData(json=Raw(b"null"), data="text")),
        ({"data": "text"}, HttpData(data="text")),
        ({"data": ""}, HttpData(data="")),
        ({"data": {"a": "1", "b": [1, 2], "c": None}}, HttpData(data={"a": "1", "b": [1, 2], "c": None})),
        ({"data": None}, HttpData(data=None)),
        ({"body_base64": "AAEC/w=="}, HttpData(body_base64="AAEC/w==")),
        ({"body_base64": ""}, HttpData(body_base64="")),
    ],
)
def test_each_form_of_http_data_is_parsed(data: dict[str, Any], expected: HttpData) -> None:
    assert http_data(read(http(**data))) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("QTask-Id", "qtask-id", "QTASK-ATTEMPT", "QTask-Due", "QTask-Anything", "QTask_Id", "QTask_Attempt"),
        *("Content-Length", "content_length", "Transfer-Encoding", "TRANSFER_ENCODING", "TE", "Trailer", "Expect"),
    ],
)
def test_reserved_headers_are_refused(name: str) -> None:
    with pytest.raises(Refused, match=r"leave it out|use another name") as refused:
        read(http(headers={"X-Fine": "1", name: "mine"}))
    assert (refused.value.code, refused.value.field) == ("invalid_value", f"settings.data.headers.{name}")


@pytest.mark.parametrize("name", ["X-QTask-Id", "QTask", "QTaskId", "Content-Length-Hint", "Host", "X_Under"])
def test_headers_similar_to_reserved_ones_are_accepted(name: str) -> None:
    assert http_data(read(http(headers={name: "mine"}))).headers == {name: "mine"}


def test_http_data_may_be_missing_or_null() -> None:
    assert http_data(read(dict_of("http", "http://a/"))) == HttpData()
    assert http_data(read(dict_of("http", "http://a/", data=None))) == HttpData()
    assert HttpData().method == "GET"


def test_base64_is_decoded() -> None:
    assert decode_base64("AAEC/w==") == b"\x00\x01\x02\xff"


def test_large_integers_in_params_keep_every_digit() -> None:
    params = http_data(read(http(params={"id": 9_007_199_254_740_993, "ids": [2**80]}))).params
    assert params == {"id": 9_007_199_254_740_993, "ids": [2**80]}


@pytest.mark.parametrize("data", [None, False, 0, 2**70, 1.5, "", "text", [], [1], {}, {"method": 5, "any": ["thing"]}])
def test_socket_accepts_any_json(data: Any) -> None:
    assert value_of(read(dict_of("socket", "a:1", data=data)).settings.data) == data


@pytest.mark.parametrize("data", [None, False, 0, "text", [1], {"data": 1}])
def test_pipe_accepts_any_json_in_data(data: Any) -> None:
    assert value_of(pipe_data(read(dict_of("pipe", "p", data={"data": data}))).data) == data


@pytest.mark.parametrize(
    ("time", "delay"), [(0, 0.0), (90, 90.0), (1.5, 1.5), (0.0001, 0.0001), (1e3, 1000.0), (315_576_000, 315_576_000.0)]
)
def test_delay_keeps_its_fraction(time: float, delay: float) -> None:
    checked = parse(json.dumps(dict_of("http", "http://a/") | {"settings": {"time": time}}).encode())
    assert (checked.delay, checked.instant) == (delay, None)


@pytest.mark.parametrize(
    ("at", "instant"),
    [
        (1_795_539_666.25, 1_795_539_666.25),
        (1_795_539_666, 1_795_539_666.0),
        (0, 0.0),
        ("1970-01-01T00:00:10Z", 10.0),
        ("2026-12-24T18:00:00+01:00", 1_798_131_600.0),
        ("2026-12-24T17:00:00.125Z", 1_798_131_600.125),
    ],
)
def test_instant_may_be_given_instead_of_delay(at: float | str, instant: float) -> None:
    checked = parse(json.dumps(dict_of("http", "http://a/") | {"settings": {"at": at}}).encode())
    assert (checked.delay, checked.instant) == (None, instant)


@pytest.mark.parametrize("timeout", [0.05, 1, 2.5, 600])
def test_timeout_is_parsed(timeout: float) -> None:
    assert read(dict_of("http", "http://a/", timeout=timeout)).timeout == timeout


@pytest.mark.parametrize("timeout", ["Auto", "5", ""])
def test_timeout_that_is_another_text_is_refused(timeout: str) -> None:
    refused = refusal(dict_of("http", "http://a/", timeout=timeout))
    assert refused.field == "settings.timeout" and refused.message.endswith("seconds, up to 600, or auto")


def test_timeout_auto_may_take_as_long_as_the_default() -> None:
    task = read(dict_of("http", "http://a/", timeout="auto"))
    assert task.settings.timeout == "auto" and task.timeout == DEFAULT_TIMEOUT_SECONDS


@pytest.mark.parametrize(
    ("learned", "attempt", "timeout"), [(None, 1, 30.0), (2.0, 1, 2.0), (2.0, 2, 4.0), (2.0, 5, 30.0), (1.0, 100, 30.0)]
)
def test_adapted_timeout_doubles_with_each_attempt(learned: float | None, attempt: int, timeout: float) -> None:
    task = with_timeout(read(dict_of("http", "http://a/", timeout="auto")), learned, attempt)
    assert task.timeout == timeout


def test_timeout_has_a_default() -> None:
    assert read(dict_of("http", "http://a/")).timeout == DEFAULT_TIMEOUT_SECONDS == 30.0


def test_title_may_have_500_characters_of_any_script() -> None:
    assert read({**http(), "title": "ü" * 500}).title == "ü" * 500
    assert refusal({**http(), "title": "ü" * 501}).field == "title"


# --- robustness of the parser --------------------------------------------------------------------------------


def laid_around(data: str, time: str = "0") -> bytes:
    head = '{"title":"t","address":{"type":"socket","link":"a:1"},"settings":{"time":'
    return f'{head}{time},"data":{data}}}}}'.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("raw", "code", "field", "words"),
    [
        (laid_around("0", "NaN"), "invalid_json", "", "no NaN"),
        (laid_around("0", "Infinity"), "invalid_json", "", "no NaN and no infinity"),
        (laid_around("-Infinity"), "invalid_json", "", "no NaN and no infinity"),
        (laid_around("0", "1e400"), "invalid_value", "settings.time", "go up to 1.7e308"),
        (laid_around("9" * 4301), "invalid_value", "settings.data", "4,300 digits"),
        (laid_around("0", "9" * 400), "invalid_value", "settings.time", "go up to 1.7e308"),
        (laid_around("0", "true"), "wrong_type", "settings.time", "a number is needed, got true or false"),
        (laid_around('"\\ud800"'), "invalid_json", "", "surrogate"),
        (laid_around('"\\udc00 and more behind it"'), "invalid_json", "", "surrogate"),
        (laid_around('"\\ud800\\u0041"'), "invalid_json", "", "surrogate"),
        (laid_around('"\ud800"'), "invalid_json", "", "UTF-8"),
        (laid_around('"\x00"'), "invalid_json", "", "control characters"),
        (laid_around('"a\nb"'), "invalid_json", "", "control characters"),
        (laid_around("0") + b"\x00", "invalid_json", "", "trailing characters"),
        (b"\x00" + laid_around("0"), "invalid_json", "", "byte 0"),
        (laid_around("0").decode().encode("utf-16"), "invalid_json", "", "UTF-8"),
        (b"\xef\xbb\xbf" * 2 + laid_around("0"), "invalid_json", "", "UTF-8"),
    ],
)
def test_invalid_json_is_refused_with_the_reason(raw: bytes, code: str, field: str, words: str) -> None:
    refused = refusal(raw)
    assert (refused.code, refused.field) == (code, field)
    assert words in refused.message


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("9" * 4300, int("9" * 4300)),
        ("18446744073709551616", 2**64),
        ("-9223372036854775809", -(2**63) - 1),
        ("-0", 0),
        ("1e-400", 0.0),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("1e400", math.inf),
        ('"\\u0000"', "\0"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('{"a":1,"a":2}', {"a": 2}),
    ],
)
def test_unusual_but_valid_json_is_read_as_by_other_parsers(data: str, value: Any) -> None:
    checked = parse(laid_around(data))
    assert value_of(checked.task.settings.data) == value
    assert json.loads(checked.body)["settings"]["data"] == value, "a stock worker parses the body with json"


def test_last_of_duplicate_keys_counts_for_every_reader() -> None:
    raw = b'{"title":"a","title":"b","address":{"type":"http","link":"x"},"address":{"type":"http","link":"http://y/"},'
    checked = parse(raw + b'"settings":{"time":1,"time":2}}')
    stored = json.loads(checked.body)
    assert (checked.task.title, checked.delay) == ("b", 2.0) == (stored["title"], stored["settings"]["time"])
    assert checked.task.address.link == "http://y/" == stored["address"]["link"]


def test_two_different_address_types_are_refused() -> None:
    raw = '{"title":"t","address":{"type":"http","link":"http://a/","type":"socket"},"settings":{"time":0}}'
    assert refusal(raw).field == "address.type"


def test_byte_order_mark_is_ignored() -> None:
    for before in (b"\xef\xbb\xbf", b" \r\n\xef\xbb\xbf", b"\xef\xbb\xbf\n\t"):
        assert parse(before + laid_around("1")).body == laid_around("1")
        assert split_batch(before + b"[1, 2]\n") == [b"1", b"2"]


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_nesting_depth_is_bounded() -> None:
    assert parse(laid_around(nested(MAX_DEPTH - 2))).task.type == "socket"
    for deeper in (nested(MAX_DEPTH - 1), nested(100_000), '{"a":' * 65 + "1" + "}" * 65, "[" * 100_000):
        refused = refusal(laid_around(deeper))
        assert (refused.code, refused.field) == ("too_deep", "")
        assert "at most 64 levels" in refused.message


def test_brackets_inside_strings_are_not_nesting() -> None:
    for text in ("[" * 5000, '\\"' * 70 + "[{" * 70, "\\\\" + "{" * 100, '\\\\\\"' + "[" * 100):
        assert value_of(parse(laid_around(f'["{text}",[]]')).task.settings.data) == [json.loads(f'"{text}"'), []]


def test_unterminated_string_is_refused_in_linear_time() -> None:
    # A parser that rescans from each quote would take hours here.
    assert refusal(laid_around("[]," * 65 + '"' + '\\"' * 400_000)).code == "invalid_json"


def test_size_is_bounded() -> None:
    fitting = laid_around('"' + "x" * (MAX_BYTES - len(laid_around('""'))) + '"')
    assert len(fitting) == MAX_BYTES
    assert parse(fitting).body == fitting
    refused = refusal(fitting + b" ")
    assert (refused.code, refused.field) == ("too_large", "")
    assert refused.message == "a dict of at most 1048576 bytes is accepted, got 1048577"
    with pytest.raises(Refused, match="at most 300 bytes"):
        parse(laid_around('"' + "x" * 300 + '"'), max_bytes=300)


def test_value_that_looks_like_an_error_message_does_not_change_the_field() -> None:
    misleading = "x` - at `$.settings"
    wrong_type = http()
    wrong_type["address"]["type"] = misleading
    assert refusal(wrong_type).field == "address.type"
    unknown_key = http()
    unknown_key["address"][misleading] = 1
    assert refusal(unknown_key).field == f"address.{misleading}"


# --- Python code that makes tasks ----------------------------------------------------------------------------


def test_task_made_in_python_is_validated_like_any_other() -> None:
    task = Task("t", HttpAddress("http://a/"), Settings(time=1.5))
    checked = check_task(task)
    assert checked.task == task
    assert json.loads(checked.body) == {
        "title": "t",
        "address": {"type": "http", "link": "http://a/"},
        "settings": {"time": 1.5},
    }
    with pytest.raises(Refused, match="title"):
        check_task(Task(" ", HttpAddress("http://a/"), Settings(time=1)))
    assert task.settings.data is UNSET


def endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (object(), "wrong_type"),
        (endless(), "wrong_type"),
        ("\ud800", "wrong_type"),
        (math.nan, "invalid_value"),
        ([{"deep": (1, math.inf)}], "invalid_value"),
        (HttpData(params={"x": -math.inf}), "invalid_value"),
    ],
)
def test_value_that_json_cannot_hold_is_refused_and_not_changed(data: Any, code: str) -> None:
    with pytest.raises(Refused, match="cannot be written as JSON") as refused:
        encode({"settings": {"data": data}})
    assert refused.value.code == code


def test_null_next_to_numbers_is_encoded() -> None:
    value: Mapping[str, Any] = {"data": [None, 1.5, {"a": None, "b": (1, 2)}]}
    assert encode(value) == b'{"data":[null,1.5,{"a":null,"b":[1,2]}]}'
    with pytest.raises(Refused, match="cannot be written"):
        encode(MappingProxyType({"a": 1}))


# --- batches -------------------------------------------------------------------------------------------------


def test_batch_is_split_into_the_bytes_of_its_elements() -> None:
    assert split_batch(b' [ {"a": 1} ,\n[2], "x", null ]\n') == [b'{"a": 1}', b"[2]", b'"x"', b"null"]
    assert split_batch(b"[]") == []


def test_too_deep_element_does_not_affect_the_rest_of_the_batch() -> None:
    deep, good = nested(MAX_DEPTH + 5).encode(), laid_around(nested(MAX_DEPTH - 2))
    assert split_batch(b"[" + deep + b"," + good + b"]") == [deep, good]


@pytest.mark.parametrize(
    ("raw", "code", "words"),
    [
        (b"[1,", "invalid_json", "one JSON array of dicts is needed; the text ends before it is complete"),
        (b"[1 2]", "invalid_json", "at byte 3"),
        (b'["\xff"', "invalid_json", "array of dicts"),
        (b"[" * 200_000, "too_deep", "at most 64 levels"),
        (b"[" + b" " * 300 + b"]", "too_large", "an array of at most 256 bytes is accepted, got 302"),
    ],
)
def test_broken_batch_is_refused_as_a_whole(raw: bytes, code: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        split_batch(raw, 256 if code == "too_large" else MAX_BYTES)
    assert refused.value.code == code
    assert words in refused.value.message


# --- properties ----------------------------------------------------------------------------------------------

_names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,15}", fullmatch=True)
_hosts = st.sampled_from(
    ["example.org", "127.0.0.1", "my_service", "xn--bcher-kva.example", "[::1]", "bücher.example."]
)
_ports = st.integers(1, 65_535)
_form: st.SearchStrategy[Any] = st.dictionaries(
    _names, scalars | st.lists(scalars.filter(lambda one: one is not None), max_size=3), max_size=3
)
_bodies = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"json": values}),
    st.fixed_dictionaries({"data": st.text(max_size=20) | _form | st.none()}),
    st.fixed_dictionaries({"body_base64": st.sampled_from(["", "AA==", "SGk="])}),
)
_headers = st.dictionaries(_names, st.text(alphabet="abc \t;=é", max_size=10).map(str.strip), max_size=3).filter(
    lambda headers: (
        len({name.lower() for name in headers}) == len(headers)
        and not {name.lower() for name in headers} & {"te", "trailer", "upgrade", "expect"}
    )
)
_http_data: st.SearchStrategy[Any] = st.builds(
    lambda optional, body: {**optional, **body},
    st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from(["GET", "post", "PATCH", "M-SEARCH"]),
            "headers": st.just("auto") | st.none() | _headers,
            "params": st.none() | _form,
        },
    ),
    _bodies,
)
_http_links = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https"]),
    _hosts,
    st.just("") | _ports.map(":{}".format),
    st.sampled_from(["", "/", "/a/b?c=d&e=%20#f", "/ü?x=ß", "?q"]),
)
_socket_links = st.just("unix:/run/a.sock") | st.builds("{}:{}".format, _hosts, _ports)
_when: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"time": st.integers(0, 315_576_000) | st.floats(0, 315_576_000)}),
    st.fixed_dictionaries({"at": st.integers(0, 32_503_680_000) | st.floats(0, 32_503_680_000)}),
    st.fixed_dictionaries(
        {"at": st.datetimes(datetime(1973, 1, 1), datetime(2999, 1, 1), timezones=st.timezones()).map(str)}
    ),
)
_timeout: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "timeout": st.integers(1, 600) | st.floats(0.05, 600) | st.just("auto"),
        "expires": st.integers(1, 315_576_000) | st.just("2026-12-24T18:00:00Z"),
        "id": st.from_regex(r"[A-Za-z0-9_-]{1,100}", fullmatch=True),
        "retry": st.fixed_dictionaries(
            {},
            optional={
                "attempts": st.integers(1, 100),
                "backoff": st.sampled_from(["exponential", "linear", "fixed"])
                | st.lists(st.floats(0, 1e6), min_size=1, max_size=5),
                "base": st.floats(0, 2_592_000),
                "cap": st.integers(0, 2_592_000),
                "jitter": st.booleans(),
                "on": st.lists(st.sampled_from(CAUSES) | st.integers(400, 599)),
            },
        ),
    },
)


@st.composite
def valid_dicts(
    draw: st.DrawFn, kinds: tuple[str, ...] = ("http", "socket", "udp", "pipe", "__graph__")
) -> dict[str, Any]:
    """Any dict that has to be accepted."""
    kind = draw(st.sampled_from(kinds))
    address: dict[str, Any] = {"type": kind}
    timing = {**draw(_when), **draw(_timeout)}
    if kind == "http":
        address["link"] = draw(_http_links)
        timing |= draw(st.fixed_dictionaries({}, optional={"data": _http_data | st.none()}))
    elif kind == "socket":
        address["link"] = draw(_socket_links)
        timing["data"] = draw(values)
    elif kind == "udp":
        address["link"] = draw(st.builds("{}:{}".format, _hosts, _ports))
        timing["data"] = draw(values)
    elif kind == "pipe":
        address["link"] = draw(st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True))
        timing["data"] = {"data": draw(values)}
    title = draw(st.text(min_size=1, max_size=30).filter(str.strip))
    return {"title": title, "address": address, "settings": timing}


STRICT_READER = msgspec.json.Decoder(float_hook=float)  # checks everything except the range of floats


def verdict(raw: bytes) -> Checked | Refused:
    try:
        return parse(raw)
    except Refused as refused:
        return refused


def assert_checked_or_refused(raw: bytes) -> None:
    found = verdict(raw)
    if isinstance(found, Checked):
        assert (found.delay is None) != (found.instant is None)
        assert b"\n" not in found.body
        STRICT_READER.decode(found.body)
        found.body.decode()
    else:
        assert found.code in Refused.CODES
        assert found.message.strip()
        assert msgspec.json.decode(msgspec.json.encode(found.as_dict())) == found.as_dict()


@given(values)
def test_any_json_is_accepted_or_refused(value: Any) -> None:
    assert_checked_or_refused(json.dumps(value).encode())


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xef\xbb\xbf")
@example(b"\xef\xbb\xbf" * 2000)
@example(b"-")
@example(b'"\\ud800')
@example(b"\xed\xa0\x80")
def test_any_bytes_are_accepted_or_refused(raw: bytes) -> None:
    assert_checked_or_refused(raw)


@given(valid_dicts(), st.randoms(use_true_random=False), st.binary(min_size=1, max_size=4))
def test_valid_dict_with_corrupted_bytes_is_accepted_or_refused(value: Any, random: Random, noise: bytes) -> None:
    raw = written(value, random).encode()
    start = random.randrange(len(raw))
    assert_checked_or_refused(raw[:start] + noise + raw[start + random.choice([0, 1, 9, 400]) :])


@given(valid_dicts(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_valid_dict_is_accepted_in_any_layout(value: dict[str, Any], random: Random) -> None:
    checked = parse(written(value, random).encode())
    assert json.loads(checked.body) == value
    assert checked.task.title == value["title"]
    assert checked.task.type == value["address"]["type"]
    timeout = value["settings"].get("timeout", "auto")
    assert checked.task.timeout == (30.0 if timeout == "auto" else timeout)
    assert checked.delay == value["settings"].get("time")
    assert json.loads(check_task(value).body) == value
    assert check_task(checked.task).task == checked.task


_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s"\[\]{},:]+')


def without_white_space(text: str) -> bytes:
    return "".join(_JSON_TOKEN.findall(text)).encode()


@given(json_texts)
@settings(max_examples=300)
@example('{"amount": 10.10, "big": 12345678901234567.89, "e": 1e2, "z": -0}')
@example("[1E+05, 1E400, -0.0, 1.50, 123456789012345678901234567890]")
@example(r'{"a": "\/", "\u00e9": "é", "a": "\u00E9", "e": "\ud83d\ude00", "\u0000": "  \n  "}')
@example("[\n1\r,\t2 ]")
def test_json_is_sent_as_written_except_for_white_space(text: str) -> None:
    sent = without_white_space(text)
    checked = parse(laid_around(text))
    assert checked.body == laid_around(sent.decode())
    assert json_text(checked.task.settings.data).replace(b" ", b"").replace(b"\t", b"") == sent.replace(b" ", b"")
    assert json_text(parse(checked.body).task.settings.data) == sent
    pipe = parse(json.dumps(dict_of("pipe", "p", data={"data": "HERE"})).replace('"HERE"', text).encode())
    assert json_text(pipe_data(parse(pipe.body).task).data) == sent
    request = parse(json.dumps(http(method="POST", json="HERE")).replace('"HERE"', text).encode())
    assert prepare(parse(request.body).task, "ID", 1, 0.0).body == (None if sent == b"null" else sent)


_wrong: dict[str, st.SearchStrategy[Any]] = {
    "text": st.sampled_from([None, True, 0, 1.5, [], ["a"], {}, {"a": 1}]),
    "object": st.sampled_from([True, 0, 1.5, "text", [], [{}]]),
    "number": st.sampled_from([None, True, "5", "", [], {}, [5]]),
    "number or auto": st.sampled_from([None, True, [], {}, [5]]),
    "instant": st.sampled_from([None, False, [], {}]),
    "text or form": st.sampled_from([True, 0, 1.5, [], ["a"]]),
    "scalar": st.sampled_from([{}, {"a": 1}, {"a": {}}]),
}
_WHAT_A_KEY_HOLDS = {
    "title": "text",
    "address": "object",
    "address.type": "text",
    "address.link": "text",
    "settings": "object",
    "settings.time": "number",
    "settings.at": "instant",
    "settings.timeout": "number or auto",
    "settings.data": "object",
    "settings.data.method": "text",
    "settings.data.params": "object",
    "settings.data.data": "text or form",
    "settings.data.body_base64": "text",
    "settings.data.headers.Name": "text",
    "settings.data.params.name": "scalar",
    "settings.data.data.name": "scalar",
}


def put(value: dict[str, Any], path: str, new: Any) -> None:
    """Sets the value at a path and creates the dicts on the way."""
    *way, key = path.split(".")
    for step in way:
        if not isinstance(value.get(step), dict):
            value[step] = {}
        value = value[step]
    value[key] = new


@given(st.data())
@settings(max_examples=200)
def test_value_of_wrong_type_is_refused_with_its_path(data: st.DataObject) -> None:
    value = copy.deepcopy(data.draw(valid_dicts(("http",))))
    path = data.draw(st.sampled_from(sorted(_WHAT_A_KEY_HOLDS)))
    if not isinstance(value["settings"].get("data"), dict) and path.startswith("settings.data."):
        value["settings"]["data"] = {}
    put(value, path, data.draw(_wrong[_WHAT_A_KEY_HOLDS[path]]))
    refused = refusal(value)
    assert (refused.code, refused.field) == ("wrong_type", path), refused
    assert "needed" in refused.message


@given(valid_dicts(), st.data())
@settings(max_examples=200)
def test_missing_key_is_named(value: dict[str, Any], data: st.DataObject) -> None:
    value = copy.deepcopy(value)
    kind = value["address"]["type"]
    needed = ["title", "address", "address.type"]
    if kind != "__graph__":
        needed += ["address.link", "settings", "settings.time"]
    if kind in ("socket", "udp"):
        needed.append("settings.data")
    if kind == "pipe":
        needed += ["settings.data", "settings.data.data"]
    path = data.draw(st.sampled_from(needed))
    if path == "settings.time":
        value["settings"].pop("time", None)
        value["settings"].pop("at", None)
    else:
        *way, key = path.split(".")
        holder = value
        for step in way:
            holder = holder[step]
        del holder[key]
    expected = {
        ("settings", "http"): "settings.time",
        ("settings", "socket"): "settings.data",
        ("settings", "udp"): "settings.data",
        ("settings", "pipe"): "settings.data.data",
        ("settings.data", "pipe"): "settings.data.data",
    }.get((path, kind), path)
    refused = refusal(value)
    assert (refused.code, refused.field) == ("missing_field", expected), refused


@given(valid_dicts(), st.text(max_size=80), st.data())
@settings(max_examples=200)
def test_unknown_key_is_named_at_any_level(value: dict[str, Any], key: str, data: st.DataObject) -> None:
    value = copy.deepcopy(value)
    places = ["", "address", "settings"]
    if value["address"]["type"] in ("http", "pipe") and isinstance(value["settings"].get("data"), dict):
        places.append("settings.data")
    place = data.draw(st.sampled_from(places))
    holder: Any = value
    for step in place.split(".") if place else ():
        holder = holder[step]
    known = {
        "title",
        "address",
        "settings",
        "type",
        "link",
        "time",
        "at",
        "retry",
        "expires",
        "id",
        "data",
        "timeout",
        *HttpData.__struct_fields__,
    }
    key = key + "?" if key in known else key
    holder[key] = data.draw(scalars)
    refused = refusal(value)
    assert refused.code == "unknown_field", refused
    assert refused.field == ".".join(part for part in (place, key[:60]) if part)
    assert "its keys are: " in refused.message
