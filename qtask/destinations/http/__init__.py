"""`http` tasks: a request over HTTP or HTTPS, with the parameter names of the requests library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Unpack

from msgspec import UNSET, Raw, UnsetType

from qtask.destinations.bodies import body_of_arguments, check_one, given
from qtask.model import link
from qtask.model.destination import Destination, Flag, Options, Parts
from qtask.model.errors import QTaskError, Refused
from qtask.model.headers import TOKEN, check_headers
from qtask.model.task import Address, Part, Task, decode_base64, is_given
from qtask.model.validation import DataReader

Scalar = str | int | float | bool  # with int, because a long number such as an id would lose digits as a float
FormValue = Scalar | list[Scalar] | None

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"})  # the usual ones, which need no further check


class HttpAddress(Address, frozen=True, tag_field="type", tag="http"):
    """`link`: a URL that begins with http:// or https://."""


class HttpData(Part, frozen=True):
    """The data of an `http` task, named as in requests; at most one of `json`, `data`, `body_base64`.

    Attributes:
        method: any HTTP method; the default is GET.
        headers: a dict of text, or `auto` for the headers of a random current browser.
        params: added to the query of the link; a list repeats its key, null leaves it out.
        json: any JSON, which is sent as the client wrote it; null means no body.
        data: text, or a dict that is sent as a form.
        body_base64: bytes, in base64.
    """

    method: str = "GET"
    headers: dict[str, str] | Literal["auto"] | UnsetType | None = UNSET
    params: dict[str, FormValue] | UnsetType | None = UNSET
    json: Raw | UnsetType = UNSET
    data: str | dict[str, FormValue] | UnsetType | None = UNSET
    body_base64: str | UnsetType = UNSET


_READER = DataReader(
    HttpData,
    {
        "method": "; an HTTP method such as GET or POST",
        "headers": "; a dict of text, or auto for a browser's headers",
        "params": "; a dict of text, numbers, or lists of them",
        "data": "; text or a form for http",
        "body_base64": "; bytes in base64",
    },
)


def http_data(task: Task) -> HttpData:
    """The data of an `http` task. Raises `Refused` if it has another form."""
    return _READER.read(task)


def _check(task: Task) -> None:
    link.check_http(task.address.link)
    data = http_data(task)
    if data.method not in _METHODS and not _is_method(data.method):
        raise Refused(
            "invalid_value",
            "settings.data.method",
            f"an HTTP method such as GET or POST is needed, got {data.method[:40]!r}",
        )
    if isinstance(data.headers, dict):
        check_headers(data.headers)
    if data.data is not UNSET or data.body_base64 is not UNSET:
        _check_bodies(data)


def _is_method(method: str) -> bool:
    return bool(TOKEN.fullmatch(method)) and len(method) <= 32 and method.upper() != "CONNECT"


def _check_bodies(data: HttpData) -> None:
    bodies = ["json"] if is_given(data.json) else []
    bodies += [key for key in ("data", "body_base64") if getattr(data, key) not in (UNSET, None)]
    check_one(bodies)
    if data.body_base64 is not UNSET:
        decode_base64(data.body_base64)


def _http(
    url: str,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | str | None = None,
    params: Mapping[str, Any] | None = None,
    json: Any = None,
    data: str | bytes | Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Parts:
    """Submits an HTTP request, with the arguments of requests.

    Args:
        method: by default POST with a body (`json` or `data`), else GET.
    """
    body = body_of_arguments(data, "data", "body_base64")
    sent = given({"headers": headers, "params": params, "json": json, **body})
    if method is None and (json is not None or data is not None):
        method = "POST"
    if method is not None and method != "GET":
        sent["method"] = method
    return Parts(url, sent or UNSET)


def _data_of_flags(flags: Mapping[str, Any], data: Raw | None) -> Any:
    http: dict[str, Any] = {} if data is None else {"json": data}
    if flags["method"] or data is not None:
        http["method"] = flags["method"] or "POST"
    if flags["header"]:
        http["headers"] = _headers(flags["header"])
    return http or UNSET


def _headers(given: tuple[str, ...]) -> dict[str, str] | str:
    if given == ("auto",):
        return "auto"
    headers = {}
    for header in given:
        name, colon, value = header.partition(":")
        if not colon:
            raise QTaskError(f"--header wants NAME:VALUE, or `auto` alone, got {header!r}")
        headers[name.strip()] = value.strip()
    return headers


DESTINATION = Destination(
    name="http",
    address=HttpAddress,
    link_words="a URL",
    check=_check,
    place=link.place_of_url,
    flow=link.origin_of_url,
    shorthand=_http,
    flag=Flag("--http", "URL", "deliver to an http or https URL"),
    flags=(
        Flag("--method", "METHOD", "HTTP method  [default: GET, with --data POST]"),
        Flag("--header", "NAME:VALUE", "an HTTP header, or `auto`", many=True),
    ),
    data_of_flags=_data_of_flags,
    deliverer="qtask.destinations.http.curl_transport:HttpDeliverer",
    blocking="qtask.destinations.http.requests_transport:deliver_claim",
)
