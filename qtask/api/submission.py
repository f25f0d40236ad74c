"""`POST /tasks`: reads a body, passes its tasks to the intake, and answers when Redis holds them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from qtask.api.responses import answer_to_array, answer_to_one, rejected, unsupported
from qtask.destinations.parsing import parse
from qtask.intake.arrays import split_array
from qtask.intake.intake import Answer, Intake
from qtask.intake.limits import ARRAY_FACTOR, TURN
from qtask.intake.memory_budget import MemoryBudget
from qtask.intake.refused import refused_log
from qtask.model.errors import Refused
from qtask.model.validation import bare


class Submission:
    """The route for submitting tasks.

    Args:
        intake: where submitted tasks go.
        budget: counts the bytes of bodies that are being read or processed.
        max_bytes: of a task.
    """

    def __init__(self, intake: Intake, budget: MemoryBudget, max_bytes: int) -> None:
        self._intake = intake
        self._budget = budget
        self._max_bytes = max_bytes

    async def respond(self, request: Request) -> Response:
        """Answers a request."""
        if (response := unsupported(request)) is not None:
            return response
        if self._intake.full:
            return answer_to_one(
                Refused("unavailable", "", "too many tasks wait for Redis already; send it again later")
            )
        with self._budget.counting() as has_room_for:
            body = await self._read(request, has_room_for)
            return body if isinstance(body, Response) else await self._accept(body)

    async def _read(self, request: Request, has_room_for: Callable[[int], bool]) -> bytes | Response:
        """The body of a request, or the response when it was not read to its end."""
        limit = self._max_bytes * ARRAY_FACTOR
        too_large = Refused("too_large", "", f"a body has at most {limit} bytes")
        if int(request.headers.get("content-length", "0")) > limit:  # before the client sends it (Expect: 100-continue)
            return rejected(too_large, 413)
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    return rejected(too_large, 413)
                if not has_room_for(len(chunk)):
                    message = "too many bodies are on their way; send it again later"
                    return answer_to_one(Refused("unavailable", "", message))
        except ClientDisconnect:
            return Response()  # the client is gone
        return bytes(body)

    async def _accept(self, body: bytes) -> Response:
        text = bare(body)
        if text[:1] != b"[":
            return answer_to_one((await self._commit([text]))[0])
        try:
            texts = split_array(text, self._max_bytes, "http")
        except Refused as refused:
            return answer_to_one(refused)
        return answer_to_array(await self._commit(texts))

    async def _commit(self, texts: list[bytes]) -> list[Answer]:
        loop = asyncio.get_running_loop()
        owed: list[asyncio.Future[Answer]] = []
        for position, text in enumerate(texts, 1):
            future: asyncio.Future[Answer] = loop.create_future()
            owed.append(future)
            try:
                self._intake.add(parse(text, self._max_bytes), partial(_settle, future))
            except Refused as refused:
                refused_log.write("http", text, refused)
                future.set_result(refused)
            if position % TURN == 0:  # other clients get a turn
                await asyncio.sleep(0)
                await self._intake.room()
        return list(await asyncio.gather(*owed))


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():  # the request may have been cancelled
        future.set_result(answer)
