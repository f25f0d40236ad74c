"""Which parts of a task count as credentials and are masked."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtask.destinations.parsing import parse
from qtask.model.errors import Refused
from qtask.model.mask import Mask, mask_of

SECRET = "S3cret-value"
HEADERS = (
    *("Authorization", "authorization", "Cookie", "Set-Cookie", "Proxy-Authorization"),
    *("X-Api-Key", "X-API-TOKEN", "client_secret", "Idempotency-Key"),
)


# --- names of credentials ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HEADERS, "apiKey", "APIKEY", "access_token", "accessToken", "auth[token]", "sig"])
def test_credential_names_are_masked(name: str) -> None:
    assert Mask().hides(name)


@pytest.mark.parametrize("name", ["Accept", "monkey", "X-Session", "Content-Type", "tokens", "author", ""])
def test_other_names_are_not_masked(name: str) -> None:
    assert not Mask().hides(name)


def test_setting_adds_masked_names() -> None:
    mask = mask_of("X-Session, *-Pin  plain")
    assert all(mask.hides(name) for name in ("x-session", "CARD_PIN", "Plain", "Authorization"))
    assert not mask.hides("X-Other")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://user:pw@host/x", "http://***@host/x"),
        ("http user:pw@host", "http user:pw@host"),
        ("https://tok@host", "https://***@host"),
        ("http://us@er:pw@host/a@b", "http://***@host/a@b"),
        ("http://host/a@b?c=d", "http://host/a@b?c=d"),
        ("http://h/?a=1&api_key=2&b=3", "http://h/?a=1&api_key=***&b=3"),
        ("http://h/?api%5Fkey=2", "http://h/?api%5Fkey=***"),
        ("http://h/#access_token=2", "http://h/#access_token=***"),
        ("http://unix:/run/x.sock:/p?token=2", "http://unix:/run/x.sock:/p?token=***"),
        ("no connection to http://u:p@h/?sig=1 (refused)", "no connection to http://***@h/?sig=*** (refused)"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)
def test_credentials_in_text_are_masked(text: str, masked: str) -> None:
    assert Mask().text(text) == masked
    assert Mask().text(masked) == masked, "masking is idempotent"


def test_rest_of_a_task_is_unchanged_digit_by_digit() -> None:
    raw = (
        b'{"title":"t","address":{"type":"http","link":"http://h/"},"settings":{"time":1.10,"data":'
        b'{"headers":{"Cookie":"S3cret","Accept":"a"},"json":{"a":10.10,"b":123456789012345678901234567890}}}}'
    )
    masked, found = Mask().task(raw)
    assert masked == raw.replace(b"S3cret", b"***")
    assert found == {"S3cret"}
    plain = raw.replace(b"Cookie", b"Accept-Language")
    assert Mask().task(plain) == (plain, frozenset())


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@settings(max_examples=40)
def test_any_data_can_be_masked(data: Any) -> None:
    for task in ({"settings": {"data": data}}, {"settings": data}, {"address": data, "title": data}, data):
        masked, _ = Mask().task(msgspec.json.encode(task))
        json.loads(masked)


# --- titles and errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    [
        "http://user:S3cret/pw@host/",
        "http://user:[S3cret]@host/",
        "http://user:S3cret@host:port/",
        "http://user:S3cret@[::1/",
        "http://user:S3cret@ho..st/",
        "http://user:S3cret@host/a b",
        "ftp://user:S3cret@host/",
        "http://host:x/?token=S3cret",
        "user:S3cret@host:80",
        "http://user:S3cret\u2100@host/",
    ],
)
@pytest.mark.parametrize("kind", ["http", "socket", "udp", "pipe"])
def test_errors_never_repeat_a_password(link: str, kind: str) -> None:
    task = {"title": "t", "address": {"type": kind, "link": link}, "settings": {"time": 0, "data": None}}
    with pytest.raises(Refused) as refused:
        parse(json.dumps(task).encode())
    assert "S3cret" not in str(refused.value)
