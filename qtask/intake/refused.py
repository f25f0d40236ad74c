"""The log of refused tasks, shared by the socket, the HTTP API and the inbox."""

from __future__ import annotations

import logging

from qtask.observe.failure_log import RefusedLog

refused_log = RefusedLog(logging.getLogger("qtask.gateway"))
