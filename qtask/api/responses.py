"""The responses of the HTTP API: one form for all errors, and the statuses of answers to submitted tasks."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qtask.api.request_checks import is_json, other_codings
from qtask.intake.intake import Answer, encode_answer
from qtask.intake.refused import refused_log
from qtask.model.errors import Refused
from qtask.store.connect import reason_of

_STATUS_OF_CODE = {"too_large": 413, "unavailable": 503}


def answer_to_one(answer: Answer) -> Response:
    """The response to one submitted task, or to an array that was refused as a whole."""
    if isinstance(answer, Refused):
        return refusal(answer, _STATUS_OF_CODE.get(answer.code, 400))
    return Response(encode_answer(answer), 202, media_type="application/json")


def answer_to_array(answers: list[Answer]) -> Response:
    """The response to a submitted array; an error status when no task was accepted."""
    codes = {answer.code if isinstance(answer, Refused) else "" for answer in answers}
    if codes == {"unavailable"}:
        return answer_to_one(answers[0])
    lines = b"[" + b",".join(map(encode_answer, answers)) + b"]"
    status = 202 if "" in codes or not answers else 503 if "unavailable" in codes else 400
    return Response(lines, status, _retry_after(status), media_type="application/json")


def refusal(refused: Refused, status: int) -> Response:
    """The response to a refused request."""
    return failed(status, refused.code, refused.message, refused.field)


def rejected(refused: Refused, status: int, headers: dict[str, str] | None = None) -> Response:
    """As `refusal`, and logs it: for a request that was refused before its tasks were read."""
    refused_log.write("http", b"", refused)
    return failed(status, refused.code, refused.message, refused.field, headers)


def redis_away(error: Exception) -> Response:
    """The response while Redis does not answer."""
    return failed(503, "unavailable", f"Redis does not answer: {reason_of(error)}")


def failed(
    status: int, code: str, message: str, field: str = "", headers: dict[str, str] | None = None, **more: str
) -> Response:
    """A response for any error, in the form of a refused task; `more` are further fields of the error."""
    body = {"ok": False, "error": {"code": code, "field": field, "message": message, **more}}
    return JSONResponse(body, status, headers=headers or _retry_after(status))


def _retry_after(status: int) -> dict[str, str] | None:
    return {"Retry-After": "1"} if status == 503 else None


def unsupported(request: Request) -> Response | None:
    """The response to an unsupported body, which names the supported forms (RFC 9110, section 15.5.16).

    Compressed bodies are refused rather than unpacked: all clients share one process, and 16 kB of gzip can take as
    much of its time and memory as 16 MB of tasks.
    """
    if not is_json(request.headers.getlist("content-type")):
        message = "a request with a task or a decision needs Content-Type: application/json"
        return rejected(Refused("wrong_protocol", "Content-Type", message), 415, {"Accept": "application/json"})
    if codings := other_codings(request.headers.getlist("content-encoding")):
        message = f"a body with Content-Encoding: {', '.join(codings)[:100]} is not read; send it uncompressed"
        refused = Refused("wrong_protocol", "Content-Encoding", message)
        return rejected(refused, 415, {"Accept-Encoding": "identity"})
    return None
