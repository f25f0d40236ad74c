"""The Python client: over the gateway's socket, or straight into Redis; in plain and in asyncio form.

A client belongs to one thread (or one event loop) at a time.
"""

from __future__ import annotations

from qtask.client.asynchronous import AsyncClient
from qtask.client.protocol import Accepted
from qtask.client.synchronous import Client

__all__ = ["Accepted", "AsyncClient", "Client"]
