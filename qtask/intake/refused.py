"""The log of refused tasks, one for all ways into a gateway."""

from __future__ import annotations

import logging

from qtask.observe.failure_log import RefusedLog

refused_log = RefusedLog(logging.getLogger("qtask.gateway"))
