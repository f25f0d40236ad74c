"""The gateway of this host: its socket, its HTTP, and the Redis that it uses."""

from __future__ import annotations

import json
import socket
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote

from qtask.config import Config, in_url
from qtask.run.doctor.finding import Examined, Finding, Level
from qtask.store import health
from qtask.store.queues import queue_names

ANSWER_SECONDS = 2.0
HTTP_SECONDS = 7.0  # a gateway waits five seconds for Redis
_OTHER_PORT = "give QTask another port with --port"
_OTHER_HTTP_PORT = "give QTask another port with --http-port"


def socket_answers(config: Config, when_silent: Level = "note") -> Finding:
    """Whether a gateway answers on its socket.

    Args:
        config: has the address.
        when_silent: level of the finding if nothing listens there.
    """
    place = f"{in_url(config.host)}:{config.port}"
    try:
        with socket.create_connection((config.local_host, config.port), ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(b"[]\n")
            answer = connection.recv(100)
    except ConnectionRefusedError as error:
        return Finding(when_silent, f"no gateway answers on {place}: {error.strerror}", "qtask up starts one")
    except OSError as error:
        return Finding("wrong", f"what listens on {place} does not answer like a gateway: {error}", _OTHER_PORT)
    if answer != b"[]\n":
        return Finding("wrong", f"something other than a gateway answers on {place}", _OTHER_PORT)
    return Finding("fine", f"a gateway answers on {place}")


def http_answers(config: Config) -> Finding:
    """Whether the gateway answers over HTTP, and what it reports about itself."""
    place = f"{in_url(config.host)}:{config.http_port}"
    connection = HTTPConnection(config.local_host, config.http_port, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", "/health")
        answer = json.loads(connection.getresponse().read(10_000))
    except ConnectionRefusedError as error:
        return Finding("note", f"no gateway answers over HTTP on {place}: {error.strerror}", "qtask up starts one")
    except TimeoutError:
        words = f"what listens on {place} accepts connections and does not answer within {HTTP_SECONDS:g} s"
        advice = f"if it is a gateway, its process hangs: restart it; else {_OTHER_HTTP_PORT}"
        return Finding("wrong", words, advice)
    except (OSError, HTTPException, ValueError):
        answer = None
    finally:
        connection.close()
    if not isinstance(answer, dict) or "ok" not in answer:
        return Finding("wrong", f"something other than a gateway answers over HTTP on {place}", _OTHER_HTTP_PORT)
    if not answer["ok"]:
        said = answer.get("error")
        why = said.get("message") if isinstance(said, dict) else said
        return Finding("wrong", f"the gateway on {place} is not healthy: {why}", "check the Redis that it uses")
    return Finding("fine", f"a gateway answers over HTTP on {place}")


def same_redis(here: Examined) -> list[Finding]:
    """Whether the gateway of this host knows a task that is in this Redis.

    No finding if Redis has no task or no gateway answers.
    """
    if not here.gateway_answers:
        return []
    task_id = health.any_task(here.redis, queue_names(here.redis))
    if task_id is None:
        return []
    connection = HTTPConnection(here.config.local_host, here.config.http_port, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", f"/tasks/{quote(task_id, safe='')}")
        status = connection.getresponse().status
    except (OSError, HTTPException):
        return []  # `http_answers` reports that
    finally:
        connection.close()
    if status == HTTPStatus.NOT_FOUND and health.exists(here.redis, task_id):
        place = f"{in_url(here.config.host)}:{here.config.port}"
        words = f"the gateway on {place} uses another Redis than the one checked here"
        return [Finding("wrong", words, "give both the same --redis, or the --data-dir of the `qtask up` that runs")]
    return [Finding("fine", "the gateway uses this Redis")] if status == HTTPStatus.OK else []
