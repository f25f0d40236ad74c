"""`qtask.Client`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from qtask.client import requests
from qtask.client.requests import Accepted, Answer, TaskLike
from qtask.client.shorthands import Shorthands
from qtask.client.socket_way import SocketWay
from qtask.errors import QTaskError, Unavailable

if TYPE_CHECKING:
    from qtask.client.redis_way import RedisWay
    from qtask.store.tasks import State, TaskRecord


class Client(Shorthands[Accepted]):
    """Submits tasks.

    Args:
        url: `socket://HOST:PORT` of a gateway, or `redis://…` for going straight into Redis; by default what
            `QTASK_URL` says, else the gateway on this host.
        queue: name of the RQ queue, for a `redis://` address.
        timeout: seconds to wait for a connection or an answer.
    """

    def __init__(self, url: str | None = None, *, queue: str = "qtask", timeout: float = 10.0) -> None:
        self.url = requests.choose_url(url)
        self._redis: RedisWay | None = None
        self._socket: SocketWay | None = None
        if requests.is_redis(self.url):
            from qtask.client.redis_way import RedisWay  # a client of a gateway does without Redis's package

            self._redis = RedisWay(self.url, queue, timeout)
        else:
            self._socket = SocketWay(self.url, timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
        if self._redis is not None:
            self._redis.close()

    def send(self, task: TaskLike) -> Accepted:
        """Submits one task, and returns when Redis holds it. Raises `Refused` or `Unavailable`."""
        (answer,) = self.send_iter([task])
        return requests.accepted(answer)

    def send_many(self, tasks: Iterable[TaskLike]) -> list[Answer]:
        """Submits many; one answer a task, in order: `Accepted` or `Refused`. Raises `Unavailable`."""
        answers: list[Answer] = []
        try:
            answers.extend(self.send_iter(tasks))
        except Unavailable as error:
            error.answers = answers
            raise
        return answers

    def send_iter(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        """As `send_many`, but takes tasks and yields answers as they come, for more than fits into memory."""
        if self._redis is not None:
            return self._redis.send(tasks)
        assert self._socket is not None
        return self._socket.send(tasks)

    def show(self, task_id: str) -> TaskRecord:
        """The task with this id, credentials masked (`redis://` only). Raises `NotFound` or `Unavailable`."""
        from qtask.store import tasks

        with self._need_redis().asking() as redis:
            return tasks.show(redis, task_id, requests.client_mask())

    def list(self, state: State, limit: int = 50) -> list[TaskRecord]:
        """Tasks in one state, credentials masked (`redis://` only). Raises `Unavailable`."""
        from qtask.store import tasks

        way = self._need_redis()
        with way.asking() as redis:
            return tasks.list_tasks(redis, way.queue, state, limit, requests.client_mask())

    def cancel(self, task_id: str) -> State:
        """Cancels a task that waits (`redis://` only), and returns the state it was in. Its id may be used again.

        Raises `WrongState` when it is being delivered or has ended, `NotFound` or `Unavailable`.
        """
        from qtask.store import tasks

        with self._need_redis().asking() as redis:
            return tasks.cancel(redis, task_id)

    def forget(self, task_id: str) -> State:
        """Forgets a delivered task before the end of its keeping (`redis://` only), and returns the state it was in.

        An id that the client chose stays remembered for its time. Raises `WrongState` when the task is not delivered,
        `NotFound` or `Unavailable`.
        """
        from qtask.store import tasks

        with self._need_redis().asking() as redis:
            return tasks.forget(redis, task_id)

    def find_dead(
        self,
        *,
        kind: str | None = None,
        error: str | int | None = None,
        link: str | None = None,
        title: str | None = None,
    ) -> Sequence[str]:
        """The ids of the dead that fit all that is given, the oldest first (`redis://` only). Raises `Unavailable`.

        Args:
            kind: `address.type`.
            error: what the last delivery failed by: a kind of error such as `timeout`, or an HTTP status.
            link, title: a part of it.
        """
        from qtask.store import tasks

        wanted = tasks.Filter(kind, None if error is None else str(error), link, title)
        way = self._need_redis()
        with way.asking() as redis:
            return [task_id for page in tasks.find_dead(redis, way.queue, wanted) for task_id in page]

    def retry(self, ids: Sequence[str]) -> Sequence[str]:
        """Gives dead tasks another chance (`redis://` only); returns the ids of those that were dead."""
        from qtask.store import tasks

        with self._need_redis().asking() as redis:
            return tasks.retry(redis, ids)

    def remove(self, ids: Sequence[str]) -> Sequence[str]:
        """Removes dead tasks (`redis://` only); returns the ids of those that were dead. They may be used again."""
        from qtask.store import tasks

        with self._need_redis().asking() as redis:
            return tasks.remove_dead(redis, ids)

    def _need_redis(self) -> RedisWay:
        if self._redis is None:
            raise QTaskError(
                f"the gateway at {requests.client_mask().text(self.url)} only accepts tasks; give the client a "
                "redis:// address for this"
            )
        return self._redis
