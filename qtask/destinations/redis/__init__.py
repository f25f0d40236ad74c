"""`redis` tasks: a message to another Redis: published to a channel, added to a stream, or pushed to a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import msgspec
from msgspec import UNSET, Raw, UnsetType

from qtask.destinations.bodies import body_of_arguments, check_one, content_of, forms_in, given
from qtask.model import redis_address
from qtask.model.destination import Destination, Flag, Options, Parts
from qtask.model.errors import ConfigError, QTaskError, Refused
from qtask.model.link import FIELD, MAX_HOST_LENGTH, check_length, host_in_name, path_in_name
from qtask.model.task import Address, Part, Task, json_text
from qtask.model.validation import DataReader

Value = str | bytes | int

DEFAULT_PORT = 6_379

_SCHEMES = ("redis", "rediss", "unix")
_COMMANDS = ("publish", "xadd", "rpush")
_ONE_COMMAND = "exactly one of publish (a channel), xadd (a stream) and rpush (a list) is needed"


class RedisAddress(Address, frozen=True, tag_field="type", tag="redis"):
    """`link`: `redis://`, `rediss://` or `unix://`, with user, password and database, and without options."""


class RedisData(Part, frozen=True):
    """The data of a `redis` task: exactly one of `publish`, `xadd`, `rpush`, with its body or fields.

    Attributes:
        publish: a channel, which gets the body.
        xadd: a stream, which gets an entry with `fields`.
        rpush: a list, which gets the body as its last element.
        json, text, base64: the body: any JSON, text, or bytes in base64; exactly one.
        fields: of the entry; text is written as it is, all other values as JSON.
        maxlen: how many entries the stream keeps, or a few more (`XADD … MAXLEN ~`).
    """

    publish: str | UnsetType = UNSET
    xadd: str | UnsetType = UNSET
    rpush: str | UnsetType = UNSET
    json: Raw | UnsetType = UNSET
    text: str | UnsetType = UNSET
    base64: str | UnsetType = UNSET
    fields: dict[str, Raw] | UnsetType = UNSET
    maxlen: int | UnsetType = UNSET


_READER = DataReader(
    RedisData,
    {
        "publish": "; the name of a channel",
        "xadd": "; the name of a stream",
        "rpush": "; the name of a list",
        "base64": "; bytes in base64",
        "fields": '; such as {"order": 7}',
        "maxlen": "; how many entries the stream keeps",
    },
)


def command_of(task: Task) -> list[Value]:
    """The command of a `redis` task, such as `["PUBLISH", channel, message]`. Raises `Refused` for a wrong task."""
    _check_link(task.address.link)
    data = _READER.read(task)
    names = [name for name in _COMMANDS if getattr(data, name) is not UNSET]
    if not names:
        raise Refused("missing_field", "settings.data", _ONE_COMMAND)
    if len(names) > 1:
        words = f"both {names[0]} and {names[1]} are given; {_ONE_COMMAND}"
        raise Refused("invalid_value", f"settings.data.{names[1]}", words)
    (name,) = names
    key: str = getattr(data, name)
    if not key:
        raise Refused("invalid_value", f"settings.data.{name}", "a name is needed, got an empty text")
    if name == "xadd":
        return ["XADD", key, *_trimming(data), "*", *_fields(data)]
    for other in ("fields", "maxlen"):
        if getattr(data, other) is not UNSET:
            raise Refused("invalid_value", f"settings.data.{other}", f"{other} goes with xadd; leave it out")
    return [name.upper(), key, _body(data, name)]


def _body(data: RedisData, name: str) -> bytes:
    forms = forms_in(data)
    if not forms:
        raise Refused("missing_field", "settings.data", f"{name} needs json, text or base64")
    check_one(forms)
    return content_of(data)


def _fields(data: RedisData) -> list[Value]:
    for form in forms_in(data):
        words = f"an entry of a stream has fields and no {form}; leave it out"
        raise Refused("invalid_value", f"settings.data.{form}", words)
    if data.fields is UNSET or not data.fields:
        raise Refused("missing_field", "settings.data.fields", 'xadd needs at least one field, such as {"order": 7}')
    found: list[Value] = []
    for name, value in data.fields.items():
        raw = bytes(value)
        text: str = msgspec.json.decode(raw) if raw.startswith(b'"') else json_text(value).decode()
        found += [name, text]
    return found


def _trimming(data: RedisData) -> list[Value]:
    if data.maxlen is UNSET:
        return []
    if not 1 <= data.maxlen < 2**63:
        raise Refused("invalid_value", "settings.data.maxlen", f"at least 1 is needed, got {data.maxlen}")
    return ["MAXLEN", "~", data.maxlen]


def _check(task: Task) -> None:
    command_of(task)


def _check_link(link: str) -> None:
    check_length(link)
    try:
        address = redis_address.parse(link)
    except ConfigError as error:
        raise Refused("invalid_value", FIELD, str(error)) from None
    if address.scheme not in _SCHEMES:
        words = f"a link that begins with redis://, rediss:// or unix:// is needed, got {address.scheme}://"
        raise Refused("invalid_value", FIELD, words)
    if address.query:  # some options of redis-py name files on the machine of the worker
        words = f"a link has no options; leave out ?{address.query[0][0][:40]}=…, and write the database as in /0"
        raise Refused("invalid_value", FIELD, words)
    if address.hosts and not address.hosts[0][0]:
        raise Refused("invalid_value", FIELD, f"{address.plain} names no host; redis://HOST:6379/0 does")


def _place(link: str) -> str:
    try:
        address = redis_address.parse(link)
    except ConfigError:
        return "unknown"
    if address.hosts:
        return address.plain.partition("://")[2].partition("/")[0][:MAX_HOST_LENGTH]
    return f"unix:{address.path}"[:MAX_HOST_LENGTH]


def _flow(link: str) -> str:
    """`redis://HOST:PORT` for all users, passwords and databases of a server, or `redis://unix:/path`."""
    address = redis_address.parse(link)
    hosts = ",".join(f"{host_in_name(host)}:{port or DEFAULT_PORT}" for host, port in address.hosts)
    return f"redis://{hosts or f'unix:{path_in_name(address.path)}'}"


def _redis(
    url: str,
    *,
    publish: str | None = None,
    xadd: str | None = None,
    rpush: str | None = None,
    json: Any = UNSET,
    data: str | bytes | None = None,
    fields: Mapping[str, Any] | None = None,
    maxlen: int | None = None,
    **options: Unpack[Options],
) -> Parts:
    """Submits a message for another Redis: exactly one of `publish`, `xadd` and `rpush`.

    Args:
        publish, rpush: a channel or a list, which gets `json` (any JSON) or `data` (text or bytes).
        xadd: a stream, which gets an entry with `fields`.
        maxlen: how many entries the stream keeps, or a few more.
    """
    command = {"publish": publish, "xadd": xadd, "rpush": rpush, "fields": fields, "maxlen": maxlen}
    sent = given({**command, **body_of_arguments(data)})
    if json is not UNSET:
        sent["json"] = json
    return Parts(url, sent)


def _data_of_flags(flags: Mapping[str, Any], data: Raw | None) -> Any:
    command = {name: flags[name] for name in _COMMANDS if flags[name]}
    if data is None:
        return command or UNSET
    if "xadd" not in command:
        return {**command, "json": data}
    if not bytes(data).startswith(b"{"):
        raise QTaskError("--xadd wants the fields of the entry as --data, such as '{\"order\": 7}'")
    return {**command, "fields": data}


DESTINATION = Destination(
    name="redis",
    address=RedisAddress,
    link_words="a redis:// URL",
    check=_check,
    place=_place,
    flow=_flow,
    shorthand=_redis,
    flag=Flag("--to-redis", "URL", "deliver to another Redis, with one of --publish, --xadd, --rpush"),
    flags=(
        Flag("--publish", "CHANNEL", "with --to-redis: publish --data to a channel"),
        Flag("--xadd", "STREAM", "with --to-redis: add an entry with the fields in --data to a stream"),
        Flag("--rpush", "LIST", "with --to-redis: append --data to a list"),
    ),
    data_of_flags=_data_of_flags,
    deliverer="qtask.destinations.redis.deliverer:RedisDeliverer",
)
