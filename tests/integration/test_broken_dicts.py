"""Invalid dicts through every entrance of a real gateway: each gets its answer, and the gateway continues."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import pytest
from redis import Redis

from qtask.model.task import MAX_BYTES
from qtask.store import keys
from tests.support.gateway_process import Connection, Gateway
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

GOOD: dict[str, Any] = {
    "title": "t",
    "address": {"type": "http", "link": "http://127.0.0.1:1/"},
    "settings": {"time": 3600, "data": {}},
}
SOCKET = {"type": "socket", "link": "127.0.0.1:1"}
PIPE = {"type": "pipe", "link": "orders"}
GRAPH = {"type": "__graph__"}
GONE = object()  # in place of a value: the key is left out


def but(changes: dict[str, Any]) -> bytes:
    """The valid dict with other values at some paths, as JSON."""
    value = json.loads(json.dumps(GOOD))
    for path, new in changes.items():
        *way, key = path.split(".")
        holder = value
        for step in way:
            holder = holder[step]
        if new is GONE:
            del holder[key]
        else:
            holder[key] = new
    return json.dumps(value, ensure_ascii=False).encode()


def link(new: str, kind: str = "http") -> bytes:
    """A dict that is valid except for its link."""
    data = {"data": 1} if kind == "pipe" else {}
    return but({"address": {"type": kind, "link": new}, "settings.data": data})


def data(new: Any) -> bytes:
    """A dict that is valid except for the data of its http task."""
    return but({"settings.data": new})


def pipe(new: Any) -> bytes:
    """A dict that is valid except for the data of its pipe task."""
    return but({"address": PIPE, "settings.data": new})


def header(name: str, value: Any) -> bytes:
    """A dict that is valid except for one header."""
    return data({"headers": {name: value}})


def at(instant: Any) -> bytes:
    """A dict that is valid except for its instant."""
    return but({"settings": {"at": instant}})


def text(old: str, new: str | bytes) -> bytes:
    """The JSON of the valid dict with one text replaced."""
    good = json.dumps(GOOD)
    assert good.count(old) == 1
    return good.encode().replace(old.encode(), new if isinstance(new, bytes) else new.encode())


WHOLE = json.dumps(GOOD).encode()
# By the field that the answer names: a name, the bytes, the code, and a part of the message.
BROKEN: dict[str, list[tuple[str, bytes, str, str]]] = {
    "": [
        ("nothing", b"", "invalid_json", "one JSON object is needed, got nothing"),
        ("cut off", WHOLE[:60], "invalid_json", "the text ends before it is complete"),
        ("cut off in a string", WHOLE[:12], "invalid_json", "the text ends before it is complete"),
        ("one brace missing", WHOLE[:-1], "invalid_json", "the text ends before it is complete"),
        ("one brace too many", WHOLE + b"}", "invalid_json", "trailing characters at byte 115"),
        ("two dicts on one line", WHOLE + WHOLE, "invalid_json", "one dict a line, or several in an array"),
        ("words after it", WHOLE + b" thanks", "invalid_json", "trailing characters"),
        ("a NUL after it", WHOLE + b"\x00", "invalid_json", "trailing characters"),
        ("a semicolon after it", WHOLE + b";", "invalid_json", "trailing characters"),
        ("a comma at the end of a dict", text("3600,", "3600,}, "), "invalid_json", "trailing comma in object"),
        ("a comma at the end of a list", text("{}", '{"json": [1,]}'), "invalid_json", "trailing comma in array"),
        ("no comma", text("3600,", "3600"), "invalid_json", "expected ',' or '}' at byte 101"),
        ("no colon", text('"title":', '"title"'), "invalid_json", "expected ':' at byte 9"),
        ("brackets that do not match", b'{"title": "t"]', "invalid_json", "expected ',' or '}'"),
        ("a closing brace", b"}", "invalid_json", "invalid character at byte 0"),
        ("single quotes", WHOLE.replace(b'"', b"'"), "invalid_json", "keys must be in double quotes"),
        ("keys without quotes", b"{title: 1}", "invalid_json", "keys must be in double quotes"),
        ("a number as a key", b'{1: "t"}', "invalid_json", "keys must be in double quotes"),
        ("a comment", b"/* please */ " + WHOLE, "invalid_json", "invalid character at byte 0, near '/* please"),
        ("a word", b"hello", "invalid_json", "invalid character at byte 0, near 'hello'"),
        ("a form", b"title=t&time=5", "invalid_json", "one JSON object is needed"),
        ("XML", b"<task><title>t</title></task>", "invalid_json", "one JSON object is needed"),
        ("NaN", text("3600", "NaN"), "invalid_json", "JSON has no NaN and no infinity"),
        ("Infinity", text("3600", "Infinity"), "invalid_json", "JSON has no NaN and no infinity"),
        ("-Infinity", text("3600", "-Infinity"), "invalid_json", "JSON has no NaN and no infinity"),
        ("None", text("3600", "None"), "invalid_json", "JSON's literals are true, false and null"),
        ("True", text("3600", "True"), "invalid_json", "JSON's literals are true, false and null"),
        ("a leading zero", text("3600", "01"), "invalid_json", "no leading zeros"),
        ("a plus sign", text("3600", "+1"), "invalid_json", "numbers have no plus sign"),
        ("nothing before the point", text("3600", ".5"), "invalid_json", "digits on both sides of the point"),
        ("nothing behind the point", text("3600", "1."), "invalid_json", "digits on both sides of the point"),
        ("hexadecimal", text("3600", "0x10"), "invalid_json", "expected ',' or '}'"),
        ("a tab in a text", text('"t"', '"a\tb"'), "invalid_json", "control characters in text as escapes such as \\n"),
        ("a line break in a text", text('"t"', '"a\nb"'), "invalid_json", "control characters in text as escapes"),
        ("a NUL in a text", text('"t"', '"a\x00b"'), "invalid_json", "control characters in text as escapes"),
        ("an escape that is none", text('"t"', '"\\x41"'), "invalid_json", "invalid escape character"),
        ("half an escape", text('"t"', '"\\u12"'), "invalid_json", "invalid character in unicode escape"),
        ("half a surrogate pair", text('"t"', '"\\ud800"'), "invalid_json", "surrogate pair"),
        ("half a pair near the end", text("{}", '{"json":"\\ud800"}'), "invalid_json", "surrogate pair"),
        ("the other half", text('"t"', '"\\udc00"'), "invalid_json", "surrogate pair"),
        ("Latin-1", text('"t"', b'"caf\xe9"'), "invalid_json", "UTF-8, where byte 0xe9 is not valid"),
        ("a surrogate in UTF-8", text('"t"', b'"\xed\xa0\x80"'), "invalid_json", "UTF-8, where byte 0xed is not valid"),
        ("UTF-16", WHOLE.decode().encode("utf-16"), "invalid_json", "got UTF-16; send UTF-8"),
        ("UTF-16 without a mark", WHOLE.decode().encode("utf-16-le"), "invalid_json", "got UTF-16; send UTF-8"),
        ("UTF-16, big endian", WHOLE.decode().encode("utf-16-be"), "invalid_json", "got UTF-16; send UTF-8"),
        ("UTF-32", WHOLE.decode().encode("utf-32"), "invalid_json", "got UTF-32; send UTF-8"),
        ("UTF-32 without a mark", WHOLE.decode().encode("utf-32-be"), "invalid_json", "got UTF-32; send UTF-8"),
        ("gzip", gzip.compress(WHOLE, mtime=0), "invalid_json", "got gzip; send it uncompressed"),
        ("a number", b"5", "wrong_type", "an object {…} is needed, got a whole number"),
        ("a text", b'"hello"', "wrong_type", "an object {…} is needed, got text"),
        ("null", b"null", "wrong_type", "an object {…} is needed, got null"),
        ("true", b"true", "wrong_type", "an object {…} is needed, got true or false"),
        ("a dict of 1 MiB and more", data({"json": "x" * MAX_BYTES}), "too_large", "at most 1048576 bytes is accepted"),
        ("65 levels", data({"json": json.loads("[" * 62 + "]" * 62)}), "too_deep", "at most 64 levels deep"),
        ("100,000 levels", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too_deep", "at most 64 levels deep"),
        ("levels without end", b'{"title":' + b"[" * 100_000, "too_deep", "send deeper values as text"),
    ],
    "title": [
        ("an empty dict", b"{}", "missing_field", "title is needed; the name of the task"),
        ("no title", but({"title": GONE}), "missing_field", "title is needed; the name of the task"),
        ("a title of null", but({"title": None}), "wrong_type", "text is needed, got null"),
        ("a number as a title", but({"title": 5}), "wrong_type", "text is needed, got a whole number"),
        ("a list as a title", but({"title": ["t"]}), "wrong_type", "text is needed, got a list"),
        ("an empty title", but({"title": ""}), "invalid_value", "1 to 500 characters is needed, got nothing but"),
        ("a blank title", but({"title": " \t"}), "invalid_value", "got nothing but blanks"),
        ("a title of 501", but({"title": "ü" * 501}), "invalid_value", "1 to 500 characters is needed, got 501"),
    ],
    "titel": [
        ("a title misspelt", but({"titel": "t"}), "unknown_field", "its keys are: title, address, settings"),
    ],
    "address": [
        ("no address", but({"address": GONE}), "missing_field", '{"type": …, "link": …}'),
        ("an address of null", but({"address": None}), "wrong_type", "an object {…} is needed, got null"),
        ("a URL as the address", but({"address": "http://a/"}), "wrong_type", '{"type": …, "link": …}'),
        ("a list as the address", but({"address": ["http"]}), "wrong_type", "got a list"),
    ],
    "address.type": [
        ("an empty address", but({"address": {}}), "missing_field", "one of http, socket, udp, pipe, __graph__"),
        ("no type", but({"address.type": GONE}), "missing_field", "one of http, socket, udp, pipe, __graph__"),
        ("a type of null", but({"address.type": None}), "wrong_type", "text is needed; one of http"),
        ("a number as the type", but({"address.type": 1}), "wrong_type", "text is needed; one of http"),
        ("the type https", but({"address.type": "https"}), "invalid_value", "'https' is not allowed here"),
        ("the type HTTP", but({"address.type": "HTTP"}), "invalid_value", "one of http, socket, udp, pipe"),
        ("an empty type", but({"address.type": ""}), "invalid_value", "'' is not allowed here; one of"),
    ],
    "address.link": [
        ("no link", but({"address.link": GONE}), "missing_field", "http: a URL, socket and udp: HOST:PORT, pipe"),
        ("a link of null", but({"address.link": None}), "wrong_type", "text is needed, got null"),
        ("a port as the link", but({"address.link": 5000}), "wrong_type", "got a whole number; http: a URL"),
        ("a URL without scheme", link("example.org/"), "invalid_value", "begins with http:// or https://"),
        ("another scheme", link("ftp://example.org/"), "invalid_value", "got 'ftp://example.org/'"),
        ("an empty link", link(""), "invalid_value", "begins with http:// or https:// is needed, got ''"),
        ("no host", link("http:///a"), "invalid_value", "names no host; http://example.org/path does"),
        ("a blank in a URL", link("http://a/b c"), "invalid_value", "percent-encode them"),
        ("a line break in a URL", link("http://a/\r\nX: y"), "invalid_value", "not contain blanks or control"),
        ("port 0", link("http://a:0/"), "invalid_value", "from 1 to 65535, got 'http://a:0/'"),
        ("port 65536", link("http://a:65536/"), "invalid_value", "from 1 to 65535"),
        ("a port that is a word", link("http://a:web/"), "invalid_value", "'http://a:web/' is not a URL"),
        ("an open IPv6 address", link("http://[::1/"), "invalid_value", "'http://[::1/' is not a URL"),
        ("an invalid host name", link("http://a<b>/"), "invalid_value", "a host name, an address, or"),
        ("a link without end", link("http://a/" + "x" * 9000), "too_large", "8192 characters, got 9009"),
        ("a socket without port", link("a", "socket"), "invalid_value", "such as 127.0.0.1:5000, got 'a'"),
        ("a socket with port 0", link("a:0", "socket"), "invalid_value", "a number from 1 to 65535"),
        ("a socket without host", link(":80", "socket"), "invalid_value", "a host name, an address, or"),
        ("a URL as a socket", link("http://a:80", "socket"), "invalid_value", "a host name, an address"),
        ("IPv6 without brackets", link("::1:80", "socket"), "invalid_value", "an IPv6 address in […]"),
        ("a name in brackets", link("[a]:80", "socket"), "invalid_value", "such as [::1]:5000, got '[a]:80'"),
        ("a relative unix socket", link("unix:a", "socket"), "invalid_value", "followed by an absolute path"),
        ("a long unix socket", link("unix:/" + "x" * 107, "socket"), "invalid_value", "at most 107 bytes"),
        ("a pipe elsewhere", link("../../etc/passwd", "pipe"), "invalid_value", "not beginning with '.'"),
        ("a path as a pipe", link("/tmp/p", "pipe"), "invalid_value", "letters, digits, '-', '_' or '.'"),
        ("a pipe without name", link("", "pipe"), "invalid_value", "1 to 100 letters"),
    ],
    "address.port": [
        ("a port beside the link", but({"address.port": 80}), "unknown_field", "its keys are: type, link"),
    ],
    "settings": [
        ("settings of null", but({"settings": None}), "wrong_type", 'got null; {"time": …, "data": …}'),
        ("a number as settings", but({"settings": 5}), "wrong_type", "an object {…} is needed, got a whole"),
    ],
    "settings.delay": [
        ("another key for time", but({"settings.delay": 5}), "unknown_field", "keys are: time, at, data"),
    ],
    "settings.time": [
        ("a number beyond all", text("3600", "1e400"), "invalid_value", "go up to 1.7e308"),
        ("no settings", but({"settings": GONE}), "missing_field", "a delay in seconds is needed (0 for at"),
        ("no time", but({"settings": {}}), "missing_field", "or an instant in settings.at"),
        ("a negative time", but({"settings.time": -1}), "invalid_value", "from 0 to 315576000 (ten years)"),
        ("eleven years", but({"settings.time": 11 * 31_557_600}), "invalid_value", "(ten years) is needed, got"),
        ("a time in quotes", but({"settings.time": "5"}), "wrong_type", "a number is needed, got text"),
        ("a time of true", but({"settings.time": True}), "wrong_type", "a number is needed, got true or"),
        ("a time of null", but({"settings.time": None}), "wrong_type", "such as 90 or 1.5"),
    ],
    "settings.at": [
        ("both time and at", but({"settings.at": 5}), "invalid_value", "not both"),
        ("at: no zone", at("2026-12-24T18:00:00"), "invalid_value", "an instant with its zone is needed, such as 2026"),
        ("at: a date", at("2026-12-24"), "invalid_value", "an instant with its zone"),
        ("at: a word", at("tomorrow"), "invalid_value", "an instant with its zone is needed"),
        ("at: 30 February", at("2026-02-30T00:00:00Z"), "invalid_value", "is not an instant: day is out of range"),
        ("at: milliseconds", at(1_795_539_666_252), "invalid_value", "from 0 to the year 3000"),
        ("at: before 1970", at(-5), "invalid_value", "Unix seconds from 0"),
        ("at: null", at(None), "wrong_type", "got null; Unix seconds, or an instant such as"),
        ("at: true", at(True), "wrong_type", "text or a number is needed, got true or false"),
        ("at: a list", at([2026, 12, 24]), "wrong_type", "text or a number is needed, got a list"),
    ],
    "settings.timeout": [
        ("a timeout of 0", but({"settings.timeout": 0}), "invalid_value", "from 0.05 to 600 are needed"),
        ("a timeout of 601", but({"settings.timeout": 601}), "invalid_value", "from 0.05 to 600 are needed"),
        ("a timeout in quotes", but({"settings.timeout": "5"}), "invalid_value", "seconds, up to 600, or auto"),
        ("a timeout of null", but({"settings.timeout": None}), "wrong_type", "a number is needed, got null"),
    ],
    "settings.data": [
        ("5,000 digits", text("{}", '{"json":' + "9" * 5000 + "}"), "invalid_value", "4,300 digits"),
        ("text as data", data("x"), "wrong_type", "its keys are: method, headers, params, json, data"),
        ("a list as data", data([]), "wrong_type", "an object {…} is needed, got a list […]"),
        ("a socket without data", but({"address": SOCKET, "settings.data": GONE}), "missing_field", "any JSON will do"),
        ("text for a pipe", pipe("x"), "wrong_type", "an object {…} is needed, got text; its keys are: data"),
        ("data for a graph", but({"address": GRAPH, "settings.data": 5}), "unknown_field", "takes no data"),
    ],
    "settings.data.line": [
        ("a key too many", pipe({"data": 1, "line": 2}), "unknown_field", "its keys are: data"),
    ],
    "settings.data.body": [
        ("an unknown key", data({"body": "x"}), "unknown_field", "its keys are: method, headers, params"),
    ],
    "settings.data.method": [
        ("a number as method", data({"method": 5}), "wrong_type", "an HTTP method such as GET or POST"),
        ("an empty method", data({"method": ""}), "invalid_value", "such as GET or POST is needed"),
        ("a smuggled method", data({"method": "GET / HTTP/1.1\r\n"}), "invalid_value", "got 'GET / HTTP"),
        ("CONNECT", data({"method": "connect"}), "invalid_value", "such as GET or POST is needed"),
    ],
    "settings.data.headers": [
        ("a word as headers", data({"headers": "car"}), "invalid_value", "or auto for a browser's headers"),
        ("a list as headers", data({"headers": []}), "wrong_type", "a dict of text, or auto"),
        ("a header without name", header("", "b"), "invalid_value", "is not a valid header name"),
        ("a blank in a name", header("A B", "c"), "invalid_value", "'A B' is not a valid header name"),
        (
            "a header twice",
            data({"headers": {"a": "1", "A": "2"}}),
            "invalid_value",
            "each header may be given only once",
        ),
    ],
    "settings.data.headers.B": [
        ("a number in a header", data({"headers": {"A": "1", "B": 2}}), "wrong_type", "text is needed"),
    ],
    "settings.data.headers.A": [
        ("null in a header", header("A", None), "wrong_type", "text is needed, got null"),
        ("a smuggled header", header("A", "b\r\nC: d"), "invalid_value", "not contain line breaks"),
        ("a blank before a header", header("A", " b"), "invalid_value", "or end with a blank"),
        ("a header beyond Latin-1", header("A", "€"), "invalid_value", "percent-encode other characters"),
    ],
    **{
        f"settings.data.headers.{name}": [
            (f"the header {name}", header(name, "1"), "invalid_value", "set by QTask; leave it out"),
        ]
        for name in ("Content-Length", "transfer-encoding", "TE", "Trailer", "Upgrade", "Expect")
    },
    "settings.data.params": [
        ("a list as params", data({"params": [1]}), "wrong_type", "a dict of text, numbers, or lists of them"),
    ],
    "settings.data.params.a": [
        ("params in params", data({"params": {"a": {}}}), "wrong_type", "text or a number or true or false"),
    ],
    "settings.data.params.a[1]": [
        ("null in a list", data({"params": {"a": [1, None]}}), "wrong_type", "got null"),
    ],
    "settings.data.data": [
        ("a number as data", data({"data": 5}), "wrong_type", "text or an object {…} or null is needed, got a whole"),
        ("json and data", data({"json": 1, "data": "x"}), "invalid_value", "both json and data are given"),
        ("a pipe without data", pipe(None), "missing_field", "any JSON for pipe"),
    ],
    "settings.data.data.a": [
        ("a form in a form", data({"data": {"a": {"b": 1}}}), "wrong_type", "got an object"),
    ],
    "settings.data.body_base64": [
        ("data and bytes", data({"data": "x", "body_base64": ""}), "invalid_value", "one body is sent"),
        ("bytes that are not base64", data({"body_base64": "###"}), "invalid_value", "base64 is needed"),
        ("base64 cut off", data({"body_base64": "abc"}), "invalid_value", "Incorrect padding"),
        ("a list as bytes", data({"body_base64": [1]}), "wrong_type", "bytes in base64"),
    ],
}


@pytest.fixture(scope="module")
def store(redis_server: RedisServer) -> Iterator[Redis]:
    """A client of the Redis that the gateway writes to; empty at first."""
    with redis_server.emptied() as client:
        yield client


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer, store: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for this file, so that the effect of one invalid dict on it reaches the next ones."""
    with Gateway(redis_server.url, tmp_path_factory.mktemp("gateway")) as running:
        yield running
        assert running.process.stop() == 0
        levels = {json.loads(line)["level"] for line in running.log.splitlines()}
        assert levels == {"info"}, "nothing that a client sends is an error of the gateway"


def answers_alone(gateway: Gateway, raw: bytes) -> list[Any]:
    """The answers when a client sends this, closes its side and reads to the end."""
    with Connection(gateway.port) as connection:
        connection.send(raw)
        connection.end()
        return connection.rest()


def posted(gateway: Gateway, raw: bytes, content_type: str = "application/json") -> tuple[int, Any]:
    with closing(HTTPConnection("127.0.0.1", gateway.http_port, timeout=30)) as connection:
        connection.request("POST", "/tasks", raw, {"Content-Type": content_type} if content_type else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def replied(store: Redis, name: str) -> Any:
    """The answer that was pushed to the key that an inbox entry named."""
    answer: Any = until(lambda: store.lpop(f"reply:{name}"), 30, f"the answer to {name!r}")
    return json.loads(answer)


@dataclass(frozen=True)
class Row:
    """One invalid dict and the answer that it must get."""

    name: str
    raw: bytes
    code: str
    field: str
    words: str


ROWS = [Row(name, raw, code, field, words) for field, rows in BROKEN.items() for name, raw, code, words in rows]
each = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def assert_refused(answer: Any, code: str, field: str, words: str) -> None:
    assert answer["ok"] is False
    assert (answer["error"]["code"], answer["error"]["field"]) == (code, field), answer
    assert words in answer["error"]["message"], answer
    assert len(answer["error"]["message"]) < 400


def assert_answers(answer: Any, row: Row) -> None:
    assert_refused(answer, row.code, row.field, row.words)


def assert_accepted(store: Redis, answer: Any) -> None:
    assert answer["ok"] is True, answer
    assert store.zscore(keys.SCHEDULE, answer["id"]) == pytest.approx(answer["due"], abs=1e-3)


def test_table_is_large_and_its_rows_are_unique() -> None:
    assert len(ROWS) >= 75
    assert len({row.name for row in ROWS}) == len({row.raw for row in ROWS}) == len(ROWS)


@each
def test_invalid_dict_is_refused_on_its_own_connection(gateway: Gateway, row: Row) -> None:
    found = answers_alone(gateway, row.raw)
    if not row.raw:
        assert found == [], "empty input gets no answer"
        return
    (answer,) = found
    assert_answers(answer, row)


def test_invalid_dicts_on_one_connection_are_refused_in_order_between_valid_ones(
    gateway: Gateway, store: Redis
) -> None:
    lines = [row for row in ROWS if row.raw and b"\n" not in row.raw]
    assert len(lines) > len(ROWS) - 5
    with Connection(gateway.port) as connection:
        connection.send(WHOLE + b"\n")
        for row in lines:
            connection.send(row.raw + b"\n" + WHOLE + b"\n")
        connection.end()
        first, *found = connection.rest()
    assert_accepted(store, first)
    assert len(found) == 2 * len(lines)
    for row, refused, accepted in zip(lines, found[::2], found[1::2], strict=True):
        assert_answers(refused, row)
        assert_accepted(store, accepted)


@each
def test_invalid_dict_is_refused_over_http(gateway: Gateway, row: Row) -> None:
    status, answer = posted(gateway, row.raw)
    assert status == (413 if row.code == "too_large" else 400)
    assert_answers(answer, row)


def test_invalid_inbox_entries_are_refused_and_kept_with_the_reason(gateway: Gateway, store: Redis) -> None:
    store.delete(keys.REFUSED)
    for row in ROWS:
        store.xadd(keys.INBOX, {"task": row.raw, "reply": f"reply:{row.name}"})
    store.xadd(keys.INBOX, {"task": WHOLE, "reply": "reply:good"})
    for row in ROWS:
        assert_answers(replied(store, row.name), row)
    assert_accepted(store, replied(store, "good"))
    entries: Any = store.xrange(keys.REFUSED)
    kept = {fields[b"task"]: json.loads(fields[b"error"]) for _, fields in entries}
    assert set(kept) == {row.raw[: keys.REFUSED_BYTES] for row in ROWS}
    for row in ROWS:
        if len(row.raw) <= keys.REFUSED_BYTES:  # several long ones may begin with the same bytes
            assert_answers(kept[row.raw], row)
    assert store.xlen(keys.INBOX) == 0


def test_inbox_entry_without_a_task_is_refused(gateway: Gateway, store: Redis) -> None:
    store.xadd(keys.INBOX, {"job": WHOLE, "reply": "reply:other"})
    answer = replied(store, "other")
    assert_refused(answer, "missing_field", "task", "needs the field task with the JSON of a dict")


def test_invalid_dict_in_an_array_does_not_affect_the_others(gateway: Gateway, store: Redis) -> None:
    deep = WHOLE.replace(b"{}", b'{"json":' + b"[" * 70 + b"]" * 70 + b"}")
    for raw in (b"[%b,5,%b,{},%b]" % (WHOLE, deep, WHOLE), b"[\n%b,\n5,\n%b,{},\n%b\n]" % (WHOLE, deep, WHOLE)):
        (found,) = answers_alone(gateway, raw)
        status, posted_found = posted(gateway, raw)
        assert status == 202
        for first, second, third, fourth, fifth in (found, posted_found):
            assert_accepted(store, first)
            assert_refused(second, "wrong_type", "", "an object {…} is needed")
            assert_refused(third, "too_deep", "", "at most 64 levels")
            assert_refused(fourth, "missing_field", "title", "title is needed")
            assert_accepted(store, fifth)


@pytest.mark.parametrize(
    ("raw", "code", "words"),
    [
        (b"[1, 2", "invalid_json", "one JSON array of dicts is needed; the text ends before it is complete"),
        (b"[1 2]", "invalid_json", "one JSON array of dicts is needed; expected ',' or ']' at byte 3"),
        (b"[" * 200_000, "too_deep", "at most 64 levels deep"),
        (b"[" + b"1," * 10_000 + b"1]", "too_large", "an array holds at most 10000 dicts, got 10001"),
    ],
)
def test_invalid_array_is_refused_as_a_whole(gateway: Gateway, raw: bytes, code: str, words: str) -> None:
    (answer,) = answers_alone(gateway, raw)
    assert_refused(answer, code, "", words)
    status, answer = posted(gateway, raw)
    assert status == (413 if code == "too_large" else 400)
    assert_refused(answer, code, "", words)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonlines", "application/xml"]
)
def test_http_accepts_only_json(gateway: Gateway, content_type: str) -> None:
    status, answer = posted(gateway, WHOLE, content_type)
    assert status == 415
    assert_refused(answer, "wrong_protocol", "Content-Type", "Content-Type: application/json")


def test_gateway_accepts_valid_tasks_after_all_invalid_ones(gateway: Gateway, store: Redis) -> None:
    (answer,) = answers_alone(gateway, WHOLE)
    assert_accepted(store, answer)
    status, answer = posted(gateway, WHOLE)
    assert status == 202
    assert_accepted(store, answer)
    store.xadd(keys.INBOX, {"task": WHOLE, "reply": "reply:last"})
    assert_accepted(store, replied(store, "last"))
    assert gateway.process.running
