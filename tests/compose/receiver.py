"""An HTTP receiver in a container: prints a line of JSON for each request."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers every POST with 200."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Notes the task's id and the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        # One write including the line break, as many threads write.
        os.write(1, json.dumps({"id": self.headers["QTask-Id"], "body": body.decode()}).encode() + b"\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing: `do_POST` prints the line."""


class Server(ThreadingHTTPServer):
    """Has room for all the connections that workers open at once; the backlog of http.server is 5."""

    request_queue_size = 1024


Server(("", 8000), Handler).serve_forever()
