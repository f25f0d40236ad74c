"""Delivery of synchronous peers: POST with requests, one `Session` per thread."""

from __future__ import annotations

import threading

import requests

from benchmarks.plan import BODY, receiver_url

_local = threading.local()


def post(path: str) -> None:
    """Posts the body; raises if the answer is an error."""
    session: requests.Session | None = getattr(_local, "session", None)
    if session is None:
        session = _local.session = requests.Session()
    headers = {"Content-Type": "application/json"}
    session.post(receiver_url() + path, data=BODY, headers=headers, timeout=30).raise_for_status()
