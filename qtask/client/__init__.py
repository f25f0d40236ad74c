"""The Python client: synchronous and for asyncio, over the gateway's socket or HTTP, or directly to Redis.

A client belongs to one thread (or one event loop) at a time.
"""

from __future__ import annotations

from qtask.client.asynchronous import AsyncClient
from qtask.client.protocol import Accepted
from qtask.client.synchronous import Client

__all__ = ["Accepted", "AsyncClient", "Client"]
