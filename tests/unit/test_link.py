"""`address.link`: every form that is accepted, and refusals of links that cannot be delivered to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qtask.destinations.http import HttpAddress
from qtask.destinations.http.message import prepare
from qtask.destinations.pipe import check_pipe
from qtask.model.errors import Refused
from qtask.model.link import MAX_LENGTH, SocketLink, check_http, parse_socket
from qtask.model.task import Task


@pytest.mark.parametrize(
    "link",
    [
        "http://example.org",
        "https://example.org/",
        "http://example.org./",
        "http://127.0.0.1:8000/hook?a=1&b=%20#part",
        "http://localhost:1",
        "http://localhost:65535/",
        "http://localhost:/",
        "http://my_service:8000/",
        "http://user:secret@example.org/",
        "http://[::1]/",
        "http://[::1]:8000/a",
        "http://[fe80::1%25eth0]/",
        "HTTP://example.org/",
        "Https://EXAMPLE.org:8443/a?b",
        "http://[::ffff:127.0.0.1]/",
        "http://bücher.example/",
        "http://例え.テスト/",
        "http://xn--bcher-kva.example/",
        "http://example.org?q",
        "http://example.org/größe?q=ü",
        'http://example.org/"quoted"<>{}|\\^`',
        "http://example.org/" + "x" * (MAX_LENGTH - 19),
        "http://" + ".".join(["a" * 63] * 3) + "/",
    ],
)
def test_valid_url_is_unchanged(link: str) -> None:
    assert check_http(link) == link


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("", "begins with http:// or https://"),
        ("example.org", "begins with http:// or https://"),
        ("//example.org/", "begins with http:// or https://"),
        ("HTTP:/example.org/", "begins with http:// or https://"),
        ("http://[::1]x/", "(only a port may follow|is not a URL)"),
        ("http://[::1]x:80/", "(only a port may follow|is not a URL)"),
        ("http://x[::1]:80/", "(only a port may follow|is not a URL)"),
        ("ftp://example.org/", "begins with http:// or https://"),
        ("file:///etc/passwd", "begins with http:// or https://"),
        (" http://example.org/", "begins with http:// or https://"),
        ("http:/example.org/", "begins with http:// or https://"),
        ("http://", "names no host"),
        ("http:///path", "names no host"),
        ("https://?q", "names no host"),
        ("http://:80/", "names no host"),
        ("http://user@/", "names no host"),
        ("http://a b/", "not contain blanks or control characters"),
        ("http://example.org/a b", "not contain blanks or control characters"),
        ("http://example.org/\r\nX: y", "not contain blanks or control characters"),
        ("http://example.org/\0", "not contain blanks or control characters"),
        ("http://example.org/\t", "not contain blanks or control characters"),
        ("http://example.org:0/", "1 to 65535"),
        ("http://example.org:65536/", "1 to 65535"),
        ("http://example.org:99999/", "1 to 65535"),
        ("http://example.org:123456/", "is not a URL"),
        ("http://example.org:x/", "is not a URL"),
        ("http://example.org:-1/", "is not a URL"),
        ("http://example.org:٣/", "is not a URL"),
        ("http://[::1/", "is not a URL"),
        ("http://[]/", "is not a URL|names no host|IPv6"),
        ("http://[:]/", "is not a URL|IPv6 address"),
        ("http://[example.org]/", "is not a URL|IPv6 address"),
        ("http://::1/", "is not a URL|names no host|host name"),
        ("http://a..b/", "a host name"),
        ("http://../", "a host name"),
        ("http://.a/", "a host name"),
        ("http://!/", "a host name"),
        ("http://a,b/", "a host name"),
        ("http://a<b>/", "a host name"),
        ("http://a\\b/", "a host name"),
        ("http://a%00b/", "a host name"),
        ("http://" + "a" * 64 + "/", "a host name"),
        ("http://" + ".".join(["a" * 63] * 4) + "/", "a host name"),
        ("http://a\u2003b/", "an invalid host name"),
        ("http://xn--\u0660/", "an invalid host name"),
        ("http://\u2100.example/", "is not a URL"),
        ("http://example.org/" + "x" * MAX_LENGTH, "at most 8192 characters"),
    ],
)
def test_invalid_url_is_refused(link: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        check_http(link)
    assert refused.value.field == "address.link"
    assert refused.value.code == ("too_large" if len(link) > MAX_LENGTH else "invalid_value")
    assert len(refused.value.message) < 250, "a long link is shortened"


@pytest.mark.parametrize(
    ("link", "read"),
    [
        ("0.0.0.0:5000", SocketLink("0.0.0.0", 5000)),
        ("localhost:1", SocketLink("localhost", 1)),
        ("my_service:65535", SocketLink("my_service", 65535)),
        ("example.org.:80", SocketLink("example.org.", 80)),
        ("bücher.example:80", SocketLink("xn--bcher-kva.example", 80)),
        ("[::1]:5000", SocketLink("::1", 5000)),
        ("[fe80::1%eth0]:5000", SocketLink("fe80::1%eth0", 5000)),
        ("unix:/run/it.sock", SocketLink("", 0, "/run/it.sock")),
        ("unix:/run/with space:5", SocketLink("", 0, "/run/with space:5")),
        ("unix:/" + "x" * 106, SocketLink("", 0, "/" + "x" * 106)),
    ],
)
def test_socket_link_is_parsed(link: str, read: SocketLink) -> None:
    assert parse_socket(link) == read


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("", "HOST:PORT is needed, such as 127.0.0.1:5000"),
        ("localhost", "HOST:PORT is needed"),
        ("localhost:", "1 to 65535"),
        ("localhost:0", "1 to 65535"),
        ("localhost:65536", "1 to 65535"),
        ("localhost:+80", "1 to 65535"),
        ("localhost: 80", "1 to 65535"),
        ("localhost:８０", "1 to 65535"),
        ("localhost:http", "1 to 65535"),
        ("localhost:80/path", "1 to 65535"),
        (":80", "a host name"),
        ("a b:80", "a host name"),
        ("a\n:80", "a host name"),
        ("a..b:80", "a host name"),
        ("::1:80", r"IPv6 address in \[…\]"),
        ("http://localhost:80", "a host name"),
        ("\u2003:80", "host name"),
        ("[::1]", "1 to 65535|a host name"),
        ("[]:80", "IPv6 address, such as"),
        ("[:]:80", "IPv6 address, such as"),
        ("[localhost]:80", "IPv6 address, such as"),
        ("[1:2:3]:80", "IPv6 address, such as"),
        ("unix:", "absolute path of at most 107 bytes"),
        ("unix:relative", "absolute path"),
        ("unix:/a\0b", "absolute path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("unix:/" + "ü" * 60, "at most 107 bytes"),
        ("x" * (MAX_LENGTH + 1), "at most 8192 characters"),
    ],
)
def test_invalid_socket_link_is_refused(link: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        parse_socket(link)
    assert refused.value.field == "address.link"


@pytest.mark.parametrize("link", ["orders", "a", "_", "-", "with.dot", "UPPER-case_9", "x" * 100])
def test_valid_pipe_name_is_unchanged(link: str) -> None:
    assert check_pipe(link) == link


@pytest.mark.parametrize(
    "link",
    ["", ".", "..", ".hidden", "/etc/passwd", "a/b", "../a", "a\\b", "a b", "a\n", "a\0", "ä", "a:b", "~", "x" * 101],
)
def test_pipe_name_outside_the_pipe_folder_is_refused(link: str) -> None:
    with pytest.raises(Refused, match="the name of a pipe is 1 to 100 letters") as refused:
        check_pipe(link)
    assert (refused.value.code, refused.value.field) == ("invalid_value", "address.link")


# --- any text ------------------------------------------------------------------------------------------------

_pieces = st.sampled_from(
    [
        "http://",
        "https://",
        "unix:",
        "example",
        "127.0.0.1",
        "::1",
        "80",
        "xn--",
        "%41",
        *"/:@[].?#%-_ üß\u200d\u2100\uff0e😀",
    ]
)
_texts = st.text(max_size=30) | st.lists(_pieces | st.text(max_size=3), max_size=9).map("".join)


def refusal(check: Callable[[str], object], link: str) -> Refused | None:
    try:
        check(link)
    except Refused as refused:
        return refused
    return None


@given(_texts.map("http://{}".format) | _texts)
@example("http://a\u3002b/")
@example("http://\xad/")
@example("http://[::1]@a/")
@example("http://a@[::1]:5@b/")
def test_any_http_link_is_refused_or_deliverable(link: str) -> None:
    if refused := refusal(check_http, link):
        assert refused.field == "address.link"
        return
    request = prepare(Task("t", HttpAddress(link)), "P7DVFCP--0--", 1, 0.0)
    assert request.url.isascii()
    assert request.url.startswith(("http://", "https://"))
    assert not set(request.url) & set(" \t\r\n\0")


@given(_texts)
@example("[::1%]:80")
def test_any_socket_link_is_refused_or_parsed_completely(link: str) -> None:
    if refused := refusal(parse_socket, link):
        assert refused.field == "address.link"
        return
    read = parse_socket(link)
    if read.path:
        assert PurePosixPath(read.path).is_absolute()
    else:
        assert read.host.isascii()
        assert read.host
        assert not set(read.host) & set(" []/@")
        assert 0 < read.port < 65_536


@given(_texts | st.text(alphabet="./-_a\\\0\n", max_size=6))
def test_any_pipe_name_is_refused_or_stays_in_its_folder(link: str) -> None:
    if refused := refusal(check_pipe, link):
        assert refused.field == "address.link"
        return
    folder = Path("/pipes")
    assert (folder / link).resolve().parent == folder.resolve()
