"""`qtask.Client`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import UNSET, UnsetType

from qtask.client import protocol
from qtask.client.protocol import Accepted, Answer, TaskLike
from qtask.client.shorthands import Shorthands
from qtask.client.socket_transport import SocketTransport
from qtask.client.words import known_words
from qtask.model.errors import Unavailable

if TYPE_CHECKING:
    from qtask.client.http_transport import HttpTransport
    from qtask.client.redis_transport import RedisTransport
    from qtask.model.flow_record import FlowRecord
    from qtask.model.queue_record import QueueRecord
    from qtask.model.record import State, TaskRecord


class Client(Shorthands[Accepted]):
    """Submits tasks.

    Args:
        url: `socket://HOST:PORT` or `http://HOST:PORT` of a gateway, or `redis://…` to write to Redis directly; by
            default the environment variable `QTASK_URL`, else the socket of the gateway on this host.
        queue: for a `redis://` address: queue of the tasks that name none (`qtask` if left out), and the only one that
            `list` and `find_dead` look at (all of them if left out).
        timeout: seconds to wait for a connection or an answer.
    """

    @known_words()
    def __init__(self, url: str | None = None, *, queue: str | None = None, timeout: float = 10.0) -> None:
        self.url = protocol.choose_url(url)
        self._redis: RedisTransport | None = None
        self._http: HttpTransport | None = None
        self._transport: RedisTransport | HttpTransport | SocketTransport
        # A client imports only its own transport: a client of a gateway works without the package redis.
        match protocol.transport_of(self.url):
            case "redis":
                from qtask.client.redis_transport import RedisTransport

                self._transport = self._redis = RedisTransport(self.url, queue, timeout)
            case "http":
                from qtask.client.http_transport import HttpTransport

                self._transport = self._http = HttpTransport(self.url, timeout)
            case "socket":
                self._transport = SocketTransport(self.url, timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        self._transport.close()

    @known_words()
    def send(self, task: TaskLike) -> Accepted:
        """Submits one task, and returns when Redis holds it. Raises `Refused` or `Unavailable`."""
        (answer,) = self.send_iter([task])
        return protocol.accepted(answer)

    @known_words()
    def send_many(self, tasks: Iterable[TaskLike]) -> list[Answer]:
        """Submits many; one answer a task, in order: `Accepted` or `Refused`. Raises `Unavailable`."""
        answers: list[Answer] = []
        try:
            answers.extend(self.send_iter(tasks))
        except Unavailable as error:
            error.answers = answers
            raise
        return answers

    @known_words()
    def send_iter(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        """As `send_many`, but takes tasks and yields answers one by one, for more than fits into memory."""
        return self._transport.send(tasks)

    @known_words()
    def show(self, task_id: str) -> TaskRecord:
        """The task with this id, credentials masked (`redis://` or `http://`). Raises `NotFound` or `Unavailable`."""
        return self._by_id().show(task_id)

    @known_words()
    def list(self, state: State, limit: int = 50) -> list[TaskRecord]:
        """Tasks in one state, credentials masked (`redis://` only). Raises `Unavailable`."""
        return self._need_redis().list_tasks(state, limit)

    @known_words()
    def cancel(self, task_id: str) -> State:
        """Cancels a task that waits (`redis://` or `http://`), and returns the state it was in. Its id is free again.

        Raises `WrongState` when it is being delivered or has ended, `NotFound` or `Unavailable`.
        """
        return self._by_id().cancel(task_id)

    @known_words()
    def forget(self, task_id: str) -> State:
        """Forgets a delivered task before its retention ends (`redis://` or `http://`); returns its state.

        An id that the client chose stays remembered for its time. Raises `WrongState` when the task is not delivered,
        `NotFound` or `Unavailable`.
        """
        return self._by_id().forget(task_id)

    @known_words()
    def find_dead(
        self,
        *,
        type: str | None = None,
        error: str | int | None = None,
        link: str | None = None,
        title: str | None = None,
    ) -> Sequence[str]:
        """The ids of dead letters that match all arguments (`redis://` only). Raises `Unavailable`.

        They come queue by queue, the oldest first.

        Args:
            type: `address.type`.
            error: how the last delivery failed: a kind of error such as `timeout`, or an HTTP status.
            link, title: a part of the link or title.
        """
        return self._need_redis().find_dead(type, None if error is None else str(error), link, title)

    @known_words()
    def retry(self, ids: Sequence[str]) -> Sequence[str]:
        """Retries dead letters (`redis://` or `http://`); returns the ids of the tasks that were dead."""
        return self._by_id().retry(ids)

    @known_words()
    def remove(self, ids: Sequence[str]) -> Sequence[str]:
        """Removes dead letters (`redis://` or `http://`), which frees their ids; returns the ids that were dead."""
        return self._by_id().remove(ids)

    @known_words()
    def flows(self, limit: int = 50) -> Sequence[FlowRecord]:
        """The flows with the most waiting tasks, these first (`redis://` or `http://`). Raises `Unavailable`.

        Args:
            limit: most flows, from 1 to 1,000.
        """
        return self._by_id().flows(limit)

    @known_words()
    def flow(self, key: str) -> FlowRecord:
        """The flow with this key (`redis://` or `http://`). Raises `NotFound` for one without state, `Unavailable`."""
        return self._by_id().flow(key)

    @known_words()
    def set_flow(
        self,
        key: str,
        *,
        parallel: int | Literal["auto"] | UnsetType | None = UNSET,
        rate: float | UnsetType | None = UNSET,
        per: float | UnsetType | None = UNSET,
        burst: int | UnsetType | None = UNSET,
        ordered: bool | UnsetType | None = UNSET,
    ) -> FlowRecord:
        """Sets limits of a flow (`redis://` or `http://`), and returns it.

        Those that are left out stay as they are, and None removes one. A new rate does not keep the span and the burst
        of the old one. docs/flows.md explains the limits. Raises `Refused` or `Unavailable`.
        """
        return self._by_id().set_flow(key, protocol.changes(parallel, rate, per, burst, ordered))

    @known_words()
    def pause_flow(self, key: str) -> FlowRecord:
        """Pauses a flow (`redis://` or `http://`): none of its deliveries begins. Raises `Refused` or `Unavailable`."""
        return self._by_id().pause_flow(key, True)

    @known_words()
    def resume_flow(self, key: str) -> FlowRecord:
        """Resumes a flow that was paused (`redis://` or `http://`). Raises `NotFound` or `Unavailable`."""
        return self._by_id().pause_flow(key, False)

    @known_words()
    def reset_flow(self, key: str) -> FlowRecord:
        """Ends the rest of a flow, and closes its circuit breaker (`redis://` or `http://`).

        Raises `NotFound` or `Unavailable`.
        """
        return self._by_id().reset_flow(key)

    @known_words()
    def remove_flow(self, key: str) -> None:
        """Removes the limits, the pause and the rest of a flow (`redis://` or `http://`); its tasks are delivered.

        Raises `NotFound` or `Unavailable`.
        """
        self._by_id().remove_flow(key)

    @known_words()
    def queues(self) -> Sequence[QueueRecord]:
        """All queues, by name (`redis://` or `http://`). Raises `Unavailable`."""
        return self._by_id().queues()

    @known_words()
    def pause_queue(self, name: str) -> QueueRecord:
        """Pauses a queue (`redis://` or `http://`): no delivery of its tasks begins. Returns it as it is now.

        Raises `Refused` for a name that is wrong, or `Unavailable`.
        """
        return self._by_id().pause_queue(name, True)

    @known_words()
    def resume_queue(self, name: str) -> QueueRecord:
        """Resumes a queue (`redis://` or `http://`), and returns it as it is now. Raises as `pause_queue`."""
        return self._by_id().pause_queue(name, False)

    @known_words()
    def purge_queue(self, name: str) -> int:
        """Cancels the tasks that are queued, or wait in flows for this queue; returns how many.

        For `redis://` and `http://`. Tasks that are not yet due, wait for a retry or are being delivered stay. Raises
        as `pause_queue`; then some tasks may have been cancelled.
        """
        return self._by_id().purge_queue(name)

    def _need_redis(self) -> RedisTransport:
        if self._redis is None:
            raise protocol.only_with("a redis:// address", self.url)
        return self._redis

    def _by_id(self) -> RedisTransport | HttpTransport:
        """The transport for calls about one task or flow; the socket does not support them."""
        transport = self._redis or self._http
        if transport is None:
            raise protocol.only_with(
                "the gateway's HTTP address (such as http://127.0.0.1:5124) or a redis:// address", self.url
            )
        return transport
