"""The methods of the clients for each destination: signatures for people, editors and type checkers."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, assert_type

import pytest

from qtask import AsyncClient, Client
from qtask.client.protocol import Accepted
from qtask.destinations.registry import built_in

if TYPE_CHECKING:
    # mypy checks this, and reports each `ignore` below that suppresses nothing.
    def _is_known_to_type_checkers(client: Client, other: AsyncClient) -> None:
        assert_type(client.http("http://h/", json={"a": 1}, delay=1.5), Accepted)
        assert_type(client.udp("h:1", {"a": 1}, title="t"), Accepted)
        assert_type(client.redis("redis://h", publish="c", data=b"x"), Accepted)
        sent = other.websocket("ws://h/", data="x", answer=True)
        _: Coroutine[Any, Any, Accepted] = assert_type(sent, Coroutine[Any, Any, Accepted])
        client.udp("h:1", 1, dealy=1)  # type: ignore[call-arg]
        client.udp(7, 1)  # type: ignore[arg-type]
        client.pipe("p")  # type: ignore[call-arg]
        client.graph(delay=1)  # type: ignore[call-arg]
        client.htp("http://h/")  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("name", sorted(one.word for one in built_in().values()))
def test_each_method_has_a_name_a_signature_and_a_docstring(kind: type[Client], name: str) -> None:
    method = getattr(kind("socket://127.0.0.1:1"), name)
    assert (method.__name__, method.__qualname__) == (name, f"{kind.__name__}.{name}")
    assert method.__doc__.strip()
    assert "self" not in inspect.signature(method).parameters
    assert name in dir(kind)


def test_unknown_name_is_not_a_method() -> None:
    client = Client("socket://127.0.0.1:1")
    assert not hasattr(client, "htp")
    with pytest.raises(AttributeError, match="'Client' object has no attribute 'htp'"):
        client.htp  # type: ignore[attr-defined]  # noqa: B018
