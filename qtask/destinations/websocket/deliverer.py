"""Delivers `websocket` tasks (RFC 6455) on the loop; the package `websockets` implements the protocol without I/O.

A task is delivered when the receiver has answered. If no answer is requested, a ping follows the message, and the pong
shows that the receiver has read both (RFC 6455, section 5.5.3).
"""

from __future__ import annotations

import logging
import socket
import ssl
from time import monotonic
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidMessage, InvalidStatus, PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from qtask.config import Config
from qtask.delivery.authorities import ca_bundle
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import READ, WRITE, Loop
from qtask.delivery.resolver import Resolver
from qtask.delivery.stream import StreamExchange
from qtask.destinations.urls import SAFE, ascii_host
from qtask.destinations.websocket import Message, message_of
from qtask.destinations.websocket.tls import Tls, trusting
from qtask.model.ids import client_id
from qtask.model.link import SocketLink
from qtask.model.outcome import READ_LIMIT_BYTES, Answer, ErrorKind, Failure, excerpt
from qtask.model.timing import format_instant
from qtask.version import VERSION

CLOSE_WAIT_SECONDS = 1.0  # how long a receiver may still refuse a message, by the code of its close, after reading it
RECEIVE_LIMIT_BYTES = 1_048_576  # that are read from a receiver in total
_CHUNK_BYTES = 65_536

# From RFC 6455, section 7.4.1, and the registry of IANA.
_CLOSED_WELL = (1000, 1001, 1005)  # normal, going away, no code
_CLOSED_FOR_NOW = (1011, 1012, 1013, 1014)  # internal error, restart, try again later, bad gateway

_SILENT = logging.Logger("websockets", logging.CRITICAL)  # its lines show headers, which may contain credentials


class WebSocketDeliverer:
    """Delivers to WebSockets, with a connection for each task."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._resolver = Resolver(loop, socket.SOCK_STREAM)
        self._authorities = ca_bundle(config.ca_file)
        self._context: ssl.SSLContext | None = None

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        message = message_of(claim.task)
        uri = uri_of(claim.task.address.link)
        if uri.secure and self._context is None:
            try:
                self._context = trusting(self._authorities)
            except (OSError, ssl.SSLError) as error:
                words = f"the certificates to trust, {self._authorities}, cannot be read"
                done(Failure("tls", f"{words}: {error.strerror or error}"))
                return
        _Conversation(self._loop, self._resolver, uri, self._context, message, claim, done).start()

    def close(self) -> None:
        """Ends the resolver's threads."""
        self._resolver.close()


class _Conversation(StreamExchange):
    """One connection: TCP, TLS for wss, handshake, message, answer, close."""

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        uri: WebSocketURI,
        context: ssl.SSLContext | None,
        message: Message,
        claim: Claim,
        done: Done,
    ) -> None:
        super().__init__(loop, resolver, SocketLink(uri.host, uri.port), claim, done)
        self._uri = uri
        self._context = context
        self._message = message
        self._headers = _headers(message, claim)
        chosen = [Subprotocol(message.subprotocol)] if message.subprotocol else None
        self._protocol = ClientProtocol(uri, subprotocols=chosen, max_size=READ_LIMIT_BYTES, logger=_SILENT)
        self._tls: Tls | None = None
        self._unsent = b""
        self._received = 0
        self._open = False
        self._confirmed = False  # whether the receiver has read the message
        self._answer = bytearray()

    def missing(self) -> str:
        """See `StreamExchange`."""
        if not self._open:
            return "complete the handshake"
        return "answer" if self._message.wants_answer else "read the message"

    def on_connected(self, connected: socket.socket) -> None:
        """Begins the handshakes: TLS for wss, then that of the WebSocket."""
        if self._uri.secure:
            assert self._context is not None
            self._tls = Tls(self._context, self._uri.host)
        request = self._protocol.connect()
        for name, value in self._headers.items():
            if name in request.headers:
                del request.headers[name]
            request.headers[name] = value
        self._protocol.send_request(request)
        self.loop.watch(connected.fileno(), READ, self._on_event, self.on_error)
        self._write()

    def _on_event(self, events: int) -> None:
        if events & ~WRITE:
            self._read()
        if not self.ended:
            self._write()

    # --- the socket --------------------------------------------------------------------------------------------

    def _read(self) -> None:
        assert self.socket is not None
        try:
            data = self.socket.recv(_CHUNK_BYTES)
            self._received += len(data)
            plain = self._tls.receive(data) if self._tls is not None and data else data
        except BlockingIOError:
            return
        except ssl.SSLError as error:
            self.end(Failure("tls", f"{self.place}: {_words(error)}"))
            return
        except OSError as error:
            self._on_broken(error.strerror or str(error))
            return
        if data:
            self._protocol.receive_data(plain)
        else:
            self._protocol.receive_eof()
        self._on_received()
        if not self.ended and not data:
            self._on_broken("it closed the connection")
        elif not self.ended and self._received > RECEIVE_LIMIT_BYTES:
            self.end(Failure("protocol", f"{self.place} sends more than {RECEIVE_LIMIT_BYTES} bytes"))

    def _write(self) -> None:
        assert self.socket is not None
        if self._tls is None:
            self._unsent += b"".join(self._protocol.data_to_send())
        else:
            if self._tls.established:
                for data in self._protocol.data_to_send():
                    if data:  # empty data means the end, and the connection is closed soon anyway
                        self._tls.send(data)
            self._unsent += self._tls.to_send()
        try:
            if self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._on_broken(error.strerror or str(error))
            return
        events = READ | WRITE if self._unsent else READ
        self.loop.watch(self.socket.fileno(), events, self._on_event, self.on_error)

    # --- the protocol ------------------------------------------------------------------------------------------

    def _on_received(self) -> None:
        """Handles the received events; ends the delivery if they decide it."""
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._on_response(event)
            elif isinstance(event, Frame):
                self._on_frame(event)
            if self.ended:
                return
        if self._protocol.handshake_exc is not None:
            self._on_no_handshake(self._protocol.handshake_exc)
        elif self._protocol.parser_exc is not None and self._protocol.close_rcvd is None:
            self._on_invalid(self._protocol.parser_exc)

    def _on_response(self, response: Response) -> None:
        if isinstance(self._protocol.handshake_exc, InvalidStatus):
            answer = Answer(response.status_code, excerpt(bytes(response.body or b"")))
            words = f"{self.place} answered {response.status_code} to the handshake"
            self.end(Failure("status", words, answer, response.headers.get("Retry-After", "")))
            return
        if self._protocol.handshake_exc is not None:
            return
        if self._message.subprotocol and self._protocol.subprotocol is None:
            self.end(Failure("rejected", f"{self.place} does not speak {self._message.subprotocol!r}"))
            return
        self._open = True
        if self._protocol.state is not State.OPEN:
            return  # the receiver has closed it at once; the next event has the code
        send = self._protocol.send_binary if self._message.binary else self._protocol.send_text
        send(self._message.content)
        if not self._message.wants_answer:
            self._protocol.send_ping(b"qtask")
            self._protocol.send_close(1000)

    def _on_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self._on_close()
        elif frame.opcode is Opcode.PONG and not self._message.wants_answer:
            self._confirmed = True
            self.set_timer(min(self.deadline, monotonic() + CLOSE_WAIT_SECONDS), self._on_read)
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT) and self._message.wants_answer:
            self._answer += frame.data
            if frame.fin:
                self._protocol.send_close(1000)
                self._say_goodbye()
                self.end(Answer(text=excerpt(bytes(self._answer))))

    def _on_read(self) -> None:
        self.end(Answer())

    def _say_goodbye(self) -> None:
        """Sends the close as far as the socket has room; the delivery does not depend on it any more."""
        try:
            self._write()
        except ssl.SSLError:
            return

    def _on_close(self) -> None:
        received = self._protocol.close_rcvd
        assert received is not None
        code, reason = int(received.code), received.reason[:200]
        said = f"{code} {reason}".strip()
        if code not in _CLOSED_WELL:
            kind: ErrorKind = "unavailable" if code in _CLOSED_FOR_NOW else "rejected"
            self.end(Failure(kind, f"{self.place} closed the WebSocket: {said}"))
        elif self._message.wants_answer:
            self.end(Failure("protocol", f"{self.place} closed the WebSocket without an answer: {said}"))
        elif self._confirmed:
            self.end(Answer())
        else:
            words = f"{self.place} closed the WebSocket before it had read the message: {said}"
            self.end(Failure("connect", words))

    def _on_no_handshake(self, error: Exception) -> None:
        if isinstance(error, InvalidMessage) and isinstance(error.__cause__, EOFError):
            self._on_broken("it closed the connection")
        else:
            self.end(Failure("protocol", f"{self.place} does not speak WebSocket: {error}"))

    def _on_invalid(self, error: Exception) -> None:
        if isinstance(error, EOFError):
            self._on_broken("it closed the connection")
        elif isinstance(error, PayloadTooBig) and self._message.wants_answer:
            self.end(Answer(note=f"the answer is larger than {READ_LIMIT_BYTES} bytes and was not read"))
        else:
            self.end(Failure("protocol", f"{self.place} does not keep to the protocol: {error}"))

    def _on_broken(self, why: str) -> None:
        if self.ended:
            return
        if self._confirmed:
            self.end(Answer())
            return
        when = "before it had read the message" if self._open else "before the handshake was done"
        self.end(Failure("connect", f"{self.place} broke the connection {when}: {why}"))


def uri_of(link: str) -> WebSocketURI:
    """The URL of a task in the form that the protocol needs: in ASCII, split into its parts."""
    parts = urlsplit(link)
    secure = parts.scheme == "wss"
    host = ascii_host(parts.hostname or "")
    user = None if parts.username is None else unquote(parts.username)
    password = None if user is None else unquote(parts.password or "")
    path, query = quote(parts.path, SAFE), quote(parts.query, SAFE)
    return WebSocketURI(secure, host, parts.port or (443 if secure else 80), path, query, user, password)


def _headers(message: Message, claim: Claim) -> dict[str, str]:
    return {
        "User-Agent": f"qtask/{VERSION}",
        **message.headers,
        "QTask-Id": client_id(claim.id),
        "QTask-Attempt": str(claim.attempt),
        "QTask-Due": format_instant(claim.due),
    }


def _words(error: ssl.SSLError) -> str:
    found: Any = getattr(error, "verify_message", None) or error.reason or error
    return str(found)
