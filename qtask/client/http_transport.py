"""The transport over the gateway's HTTP API: submits in batches; shows and changes tasks by id, and flows by key."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import requests

from qtask import forks
from qtask.client import protocol
from qtask.client.gathered import Gathered, submit_gathered, submit_gathered_async
from qtask.client.protocol import Answer, TaskLike
from qtask.model.errors import ConfigError, NotFound, Refused, Unavailable, WrongState
from qtask.model.flow import Changes
from qtask.model.flow_record import FlowRecord
from qtask.model.queue_record import QueueRecord
from qtask.model.record import State, TaskRecord
from qtask.private import urllib3

_JSON = {"Content-Type": "application/json"}


class _Decision(msgspec.Struct):
    was: State


class _Flows(msgspec.Struct):
    items: list[FlowRecord]


class _Purged(msgspec.Struct):
    cancelled: int


_Read = TypeVar("_Read")

_RECORD = msgspec.json.Decoder(TaskRecord)
_DECISION = msgspec.json.Decoder(_Decision)
_FLOW = msgspec.json.Decoder(FlowRecord)
_FLOWS = msgspec.json.Decoder(_Flows)
_QUEUES = msgspec.json.Decoder(list[QueueRecord])
_QUEUE = msgspec.json.Decoder(QueueRecord)
_PURGED = msgspec.json.Decoder(_Purged)


def _gathered() -> Gathered[bytes]:
    return Gathered(protocol.line_of, len)


class HttpTransport:
    """The synchronous transport. Threads may use it at the same time: each has a session of its own.

    Args:
        url: `http://…` or `https://…` of a gateway, optionally with a path before the API's own.
        timeout: seconds to wait for a connection or an answer.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            parts = urlsplit(url)
            whole = bool(parts.hostname) and parts.port != 0
        except ValueError:  # its message may contain a password
            raise _no_address(url) from None
        if not whole or parts.query or parts.fragment:
            raise _no_address(url)
        self._url = url.rstrip("/")
        self._place = protocol.without_credentials(self._url)
        self._timeout = timeout
        self._sessions = threading.local()
        self._open: list[requests.Session] = []
        forks.register(self)

    def after_fork(self) -> None:
        sessions, self._open, self._sessions = self._open, [], threading.local()
        for session in sessions:
            session.close()  # only this process's copies: the parent's connections stay open

    def close(self) -> None:
        sessions, self._open, self._sessions = self._open, [], threading.local()
        for session in sessions:
            session.close()

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        return submit_gathered(tasks, _gathered, self.submit)

    def submit(self, gathered: Gathered[bytes]) -> list[Answer]:
        """Sends a batch in one request. Raises `Unavailable`."""
        lines = gathered.ready
        if not lines:
            return gathered.answers([])
        body = lines[0] if len(lines) == 1 else b"[" + b",".join(lines) + b"]"
        try:
            text = self._request("POST", "/tasks", body).content
            answers = protocol.read_answers(text) if text[:1] == b"[" else [protocol.read_answer(text)] * len(lines)
        except _NotConnected as error:
            raise protocol.no_gateway(self._place, str(error)) from None
        except _Broken as error:
            raise protocol.lost(f"the gateway at {self._place}", str(error), len(lines)) from None
        if len(answers) != len(lines):
            raise protocol.lost(f"the gateway at {self._place}", f"it sent {len(answers)} answers", len(lines))
        return gathered.answers(answers)

    def show(self, task_id: str) -> TaskRecord:
        return _decoded(_RECORD, self._ask("GET", _task_path(task_id)))

    def cancel(self, task_id: str) -> State:
        return _decoded(_DECISION, self._ask("DELETE", _task_path(task_id))).was

    def forget(self, task_id: str) -> State:
        return _decoded(_DECISION, self._ask("POST", f"{_task_path(task_id)}/forget", b"{}")).was

    def retry(self, ids: Sequence[str]) -> list[str]:
        return self._each_dead(ids, "/retry")

    def remove(self, ids: Sequence[str]) -> list[str]:
        return self._each_dead(ids, "/remove")

    def flows(self, limit: int) -> list[FlowRecord]:
        return _decoded(_FLOWS, self._ask("GET", f"/flows?limit={limit}")).items

    def flow(self, key: str) -> FlowRecord:
        return _decoded(_FLOW, self._ask("GET", _flow_path(key)))

    def set_flow(self, key: str, changes: Changes) -> FlowRecord:
        return _decoded(_FLOW, self._ask("PATCH", _flow_path(key), msgspec.json.encode(changes)))

    def pause_flow(self, key: str, paused: bool) -> FlowRecord:
        return _decoded(_FLOW, self._ask("POST", f"{_flow_path(key)}/{'pause' if paused else 'resume'}", b"{}"))

    def reset_flow(self, key: str) -> FlowRecord:
        return _decoded(_FLOW, self._ask("POST", f"{_flow_path(key)}/reset", b"{}"))

    def remove_flow(self, key: str) -> None:
        self._ask("DELETE", _flow_path(key))

    def queues(self) -> list[QueueRecord]:
        return _decoded(_QUEUES, self._ask("GET", "/queues"))

    def pause_queue(self, name: str, paused: bool) -> QueueRecord:
        path = f"/queues/{quote(name, safe='')}/{'pause' if paused else 'resume'}"
        return _decoded(_QUEUE, self._ask("POST", path, b"{}"))

    def purge_queue(self, name: str) -> int:
        return _decoded(_PURGED, self._ask("POST", f"/queues/{quote(name, safe='')}/purge", b"{}")).cancelled

    def _each_dead(self, ids: Sequence[str], step: str) -> list[str]:
        """Applies a step to each of these tasks; returns the ids of those that were dead."""
        taken = []
        for task_id in ids:
            try:
                self._ask("POST", _task_path(task_id) + step, b"{}")
            except (NotFound, WrongState):
                continue
            taken.append(task_id)
        return taken

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of the answer about a task or a flow. Raises the error in the gateway's answer."""
        try:
            answer = self._request(method, path, body)
        except _NotConnected as error:
            raise protocol.no_gateway(self._place, str(error)) from None
        except _Broken as error:
            raise Unavailable(f"the gateway at {self._place} does not answer: {error}") from None
        content: bytes = answer.content
        if answer.status_code == 200:
            return content
        refused = protocol.read_answer(content)
        if not isinstance(refused, Refused):
            raise protocol.not_ours(content)
        if answer.status_code == 404:
            raise NotFound(refused.message)
        if answer.status_code == 409:
            raise WrongState(msgspec.json.decode(content)["error"].get("state", ""), refused.message)
        if refused.code == "unavailable":
            raise Unavailable(refused.message)
        raise refused

    def _request(self, method: str, path: str, body: bytes | None) -> requests.Response:
        session: requests.Session | None = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = requests.Session()
            self._open.append(session)
        try:
            return session.request(
                method, self._url + path, data=body, headers=_JSON, timeout=self._timeout, allow_redirects=False
            )
        except requests.exceptions.ConnectTimeout:
            raise _NotConnected(f"no connection within {self._timeout:g} s") from None
        except requests.exceptions.Timeout:
            raise _Broken(f"nothing came within {self._timeout:g} s") from None
        except requests.exceptions.ConnectionError as error:
            cause = urllib3.cause_of(error)
            kind = _NotConnected if urllib3.was_not_sent(cause) else _Broken
            raise kind(_words(cause)) from None
        except requests.exceptions.RequestException as error:
            raise _Broken(str(error)) from None


class AsyncHttpTransport:
    """The transport for asyncio: requests run in threads."""

    def __init__(self, url: str, timeout: float) -> None:
        self._plain = HttpTransport(url, timeout)

    async def close(self) -> None:
        self._plain.close()

    def send(self, tasks: AsyncIterable[TaskLike]) -> AsyncIterator[Answer]:
        return submit_gathered_async(tasks, _gathered, self._submit)

    async def _submit(self, gathered: Gathered[bytes]) -> list[Answer]:
        return await asyncio.to_thread(self._plain.submit, gathered)


def _task_path(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"


def _flow_path(key: str) -> str:
    return f"/flows/{quote(key, safe='')}"


def _no_address(url: str) -> ConfigError:
    shown = protocol.without_credentials(url)
    return ConfigError(f"{shown!r} is not the address of a gateway; http://127.0.0.1:5124 is one")


class _NotConnected(Exception):
    """Nothing was sent."""


class _Broken(Exception):
    """Something may have been sent, and no answer came."""


def _words(reason: Any) -> str:
    """The message of an error of urllib3, without the names of its objects."""
    for inner in (reason.__cause__, *reason.args[-1:]):
        if isinstance(inner, OSError):
            return str(inner)
    return str(reason)


def _decoded(decoder: msgspec.json.Decoder[_Read], body: bytes) -> _Read:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:
        raise protocol.not_ours(body) from None
