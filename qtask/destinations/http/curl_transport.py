"""`http` tasks at full speed: libcurl's multi interface, with thousands of transfers in one thread.

`requests_transport` is the other transport, for a stock `rq worker`. Both send an `HttpRequest` as it stands, and the
same conformance tests hold for both.
"""

from __future__ import annotations

import select
import warnings
from time import monotonic
from typing import Any

import pycurl
from msgspec.structs import replace

from qtask.config import Config
from qtask.delivery.authorities import ca_bundle
from qtask.delivery.claim import Claim, Done
from qtask.delivery.exchange import broken
from qtask.delivery.loop import READ, WRITE, Loop, Timer
from qtask.destinations.http.closed_connections import ClosedConnections
from qtask.destinations.http.curl_transfer import Shape, Transfer
from qtask.destinations.http.host_slots import HostSlots
from qtask.destinations.http.message import (
    MAX_REDIRECTS,
    REDIRECTS,
    HttpRequest,
    follow,
    judge,
    prepare,
    redirect_target,
    timed_out,
)
from qtask.model.link import http_place
from qtask.model.outcome import Failure

_KEPT_HANDLES = 512
_ALL_READY_SHARE = 4  # if more than a quarter of all transfers are ready, one sweep costs less than a call for each

_EVENTS_OF = {
    pycurl.POLL_NONE: 0,
    pycurl.POLL_IN: READ,
    pycurl.POLL_OUT: WRITE,
    pycurl.POLL_INOUT: READ | WRITE,
}


class HttpDeliverer:
    """Delivers over HTTP and HTTPS; all deliveries to a host share its kept connections."""

    takes_slots = True

    def __init__(self, loop: Loop, config: Config, slots: HostSlots | None = None) -> None:
        self._loop = loop
        self._slots = slots if config.host_connections else None
        self._ca_bundle = ca_bundle(config.ca_file)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_interest)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, config.concurrency)
        self._multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, config.concurrency)
        self._multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, config.host_connections)
        self._epoll = select.epoll()
        self._watched: dict[int, bool] = {}  # descriptors in the epoll, and whether a transfer waits for them
        self._time_at = self._timer_at = float("inf")
        self._timer: Timer | None = None
        loop.watch(self._epoll.fileno(), READ, self._on_ready)
        # Deprecated in favour of a call for each socket, whose cost a sweep avoids; see docs/decisions.md.
        warnings.filterwarnings("ignore", "socket_all is deprecated", DeprecationWarning)
        self._running: dict[Any, Transfer] = {}
        self._idle: dict[Shape, list[Transfer]] = {}
        self._kept = 0
        self._closed = ClosedConnections()

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        try:
            request = prepare(claim.task, claim.id, claim.attempt, claim.due)
        except Failure as failure:
            done(failure)
            return
        self.send(request, done)

    def send(self, request: HttpRequest, done: Done) -> None:
        """Sends a request and follows redirects; `done` gets the answer or the failure."""
        self._begin(request, monotonic() + request.timeout, 0, done)

    def close(self) -> None:
        """Closes all connections; transfers under way are dropped without a result."""
        for handle in list(self._running):
            self._multi.remove_handle(handle)
            handle.close()
        self._running.clear()
        for transfers in self._idle.values():
            for transfer in transfers:
                transfer.handle.close()
        self._multi.close()

    def _begin(self, request: HttpRequest, deadline: float, redirects: int, done: Done) -> None:
        if self._closed.places and not request.own_connection and self._closed.are_avoided(request.url):
            request = replace(request, own_connection=True)
        shape = (request.method, request.body is not None, request.unix_socket)
        transfer = self._take(shape)
        try:
            transfer.prepare(request, deadline, redirects, done)
            self._running[transfer.handle] = transfer
            self._multi.add_handle(transfer.handle)
        except (pycurl.error, UnicodeError, TypeError, ValueError) as error:
            self._running.pop(transfer.handle, None)
            transfer.handle.close()
            done(Failure("protocol", f"the request cannot be sent: {error}"))
            return

    def _on_interest(self, what: int, descriptor: int, multi: Any, data: Any) -> None:
        if what == pycurl.POLL_REMOVE:
            # It stays in the epoll: a kept connection is used again, and removing it costs a call.
            self._watched[descriptor] = False
            return
        if descriptor in self._watched:
            try:
                self._epoll.modify(descriptor, _EVENTS_OF[what])
            except FileNotFoundError:  # it was closed, and this is another connection with its number
                self._epoll.register(descriptor, _EVENTS_OF[what])
        else:
            self._epoll.register(descriptor, _EVENTS_OF[what])
        self._watched[descriptor] = True

    def _on_ready(self, events: int) -> None:
        ready = self._epoll.poll(0, 1024)
        for descriptor, _ in ready:
            if not self._watched[descriptor]:  # no transfer waits for it: the receiver has closed a kept connection
                del self._watched[descriptor]
                self._epoll.unregister(descriptor)
                self._closed.note(descriptor)
        if len(ready) * _ALL_READY_SHARE > len(self._running):
            self._multi.socket_all()
        else:
            action = self._multi.socket_action
            for descriptor, happened in ready:
                if descriptor not in self._watched:
                    continue
                mask = pycurl.CSELECT_OUT if happened & WRITE else 0
                action(descriptor, mask | pycurl.CSELECT_IN if happened & ~WRITE else mask)
        self._collect()

    def _on_timer(self, milliseconds: int) -> None:
        if milliseconds < 0:
            self._time_at = float("inf")
            return
        self._time_at = monotonic() + milliseconds / 1000
        if self._time_at < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        # libcurl moves its timer several times in a transfer; ours is set again only if it must ring earlier.
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._time_at
        self._timer = self._loop.call_at(self._timer_at, self._on_time)

    def _on_time(self) -> None:
        self._timer_at = float("inf")
        if self._time_at > monotonic():
            if self._time_at < float("inf"):
                self._set_timer()
            return
        self._time_at = float("inf")
        self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()

    def _collect(self) -> None:
        waiting = True
        while waiting:
            waiting, succeeded, failed = self._multi.info_read()
            for handle in succeeded:
                self._end(handle, 0, "")
            for handle, code, words in failed:
                self._end(handle, code, words)

    def _end(self, handle: Any, code: int, words: str) -> None:
        transfer = self._running.pop(handle)
        self._multi.remove_handle(handle)
        request, deadline, redirects, done = transfer.request, transfer.deadline, transfer.redirects, transfer.done
        if code and transfer.unsent:  # nothing was sent, so this is still the same attempt
            self._closed.avoid(request.url)
            self._keep(transfer)
            self._begin(request, deadline, redirects, done)
            return
        if self._slots is not None and handle.getinfo(pycurl.INFO_HTTP_VERSION) >= pycurl.CURL_HTTP_VERSION_2_0:
            self._slots.multiplexes(http_place(request.url))
        try:
            status, headers, answer = transfer.result(code, words)
            target = redirect_target(status, headers) if status in REDIRECTS else ""
            if target:
                if code == pycurl.E_OPERATION_TIMEDOUT:
                    raise timed_out(request)
                if redirects == MAX_REDIRECTS:
                    raise Failure(
                        "redirect", f"more than {MAX_REDIRECTS} redirects, the last to {target[:200]!r}", answer
                    )
                request = follow(request, status, target)
            else:
                judge(status, headers, answer)
        except Failure as failure:
            self._keep(transfer)
            done(failure)
            return
        except Exception as error:  # an error in one answer must not stop the other transfers
            transfer.handle.close()
            done(broken(dict(request.headers).get("QTask-Id", ""), error))
            return
        self._keep(transfer)
        if target:
            self._begin(request, deadline, redirects + 1, done)
        else:
            done(answer)

    def _take(self, shape: Shape) -> Transfer:
        idle = self._idle.get(shape)
        if idle is None:
            return Transfer(shape, self._ca_bundle, self._closed)
        transfer = idle.pop()
        self._kept -= 1
        if not idle:
            del self._idle[shape]  # clients choose the methods, so the number of shapes has no limit
        return transfer

    def _keep(self, transfer: Transfer) -> None:
        if self._kept < _KEPT_HANDLES and transfer.forget():
            self._idle.setdefault(transfer.shape, []).append(transfer)
            self._kept += 1
        else:
            transfer.handle.close()
