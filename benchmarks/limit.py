"""The limits of the machine without any task system: bare libcurl, bare Redis, and the receiver alone."""

from __future__ import annotations

import socket
import time

import pycurl

from benchmarks.measures import Values
from benchmarks.plan import BODY
from benchmarks.qtask_submit import dictionary
from benchmarks.receiver import Receiver
from benchmarks.redis_server import RedisServer
from qtask.model.validation import encode

CONNECTIONS = 128
_PIPELINE = 500
_SELECT_SECONDS = 1.0


def libcurl(receiver: Receiver, seconds: float) -> Values:
    """libcurl's multi interface with `perform` and `select`, 128 connections: `rate` of POSTs per second, µs each."""
    multi = pycurl.CurlMulti()
    handles = []
    for number in range(CONNECTIONS):
        handle = pycurl.Curl()
        handle.setopt(pycurl.URL, f"{receiver.url}/0/{number}")
        handle.setopt(pycurl.POSTFIELDS, BODY)
        handle.setopt(pycurl.HTTPHEADER, ["Content-Type: application/json", "Expect:"])
        handle.setopt(pycurl.WRITEFUNCTION, lambda data: None)
        handles.append(handle)
        multi.add_handle(handle)
    done = failed = 0
    start, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        multi.perform()
        more = True
        while more:
            more, succeeded, broken = multi.info_read()
            done += len(succeeded)
            failed += len(broken)
            for handle in [*succeeded, *(entry[0] for entry in broken)]:
                multi.remove_handle(handle)
                multi.add_handle(handle)
        multi.select(_SELECT_SECONDS)
    took, cpu = time.perf_counter() - start, time.process_time() - used
    for handle in handles:
        multi.remove_handle(handle)
        handle.close()
    multi.close()
    return {"rate": done / took, "cpu_us": cpu / max(done, 1) * 1e6, "failed": float(failed)}


def redis_set(shipped: bool, seconds: float) -> Values:
    """Pipelines of 500 `SET` of a task's JSON, each to another key, on one connection: `rate` per second."""
    value = encode(dictionary(time.time(), "http://127.0.0.1:12345", f"/{time.time():.6f}/12345"))
    with RedisServer(shipped) as redis, socket.create_connection(("127.0.0.1", redis.port), 10.0) as connection:
        done = 0
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            keys = [b"limit:%012d" % number for number in range(done, done + _PIPELINE)]
            commands = [b"*3\r\n$3\r\nSET\r\n$18\r\n%s\r\n$%d\r\n%s\r\n" % (key, len(value), value) for key in keys]
            connection.sendall(b"".join(commands))
            _read(connection, len(b"+OK\r\n") * _PIPELINE)
            done += _PIPELINE
        return {"rate": done / (time.perf_counter() - start)}


def receiver_alone(receiver: Receiver, seconds: float) -> Values:
    """The receiver alone, with pipelines of 64 requests on four connections: `rate` that it sustains."""
    batch = 64
    request = (
        f"POST /0/0 HTTP/1.1\r\nHost: 127.0.0.1:{receiver.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n{BODY}"
    ).encode() * batch
    connections = [socket.create_connection(("127.0.0.1", receiver.port), 10.0) for _ in range(4)]
    connections[0].sendall(request[: len(request) // batch])
    answer = len(connections[0].recv(65536))
    done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for connection in connections:
            connection.sendall(request)
        for connection in connections:
            _read(connection, answer * batch)
        done += batch * len(connections)
    took = time.perf_counter() - start
    for connection in connections:
        connection.close()
    return {"rate": done / took}


def _read(connection: socket.socket, wanted: int) -> None:
    while wanted > 0:
        got = len(connection.recv(min(wanted, 262_144)))
        if not got:
            raise ConnectionError("the connection was closed")
        wanted -= got
