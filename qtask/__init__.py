"""QTask delivers a request later: a program hands it a dict, it keeps it safe, waits, and delivers it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtask.client import AsyncClient, Client
    from qtask.model.errors import NotFound as NotFound
    from qtask.model.errors import QTaskError as QTaskError
    from qtask.model.errors import Refused as Refused
    from qtask.model.errors import Unavailable as Unavailable
    from qtask.model.errors import WrongState as WrongState
    from qtask.model.task import Task as Task
    from qtask.worker.rq_function import do as do

from qtask.version import VERSION

__version__ = VERSION

# Names are looked up when first used: `qtask --help` must not pay for what it does not run.
_HOMES = {
    "AsyncClient": "qtask.client",
    "Client": "qtask.client",
    "NotFound": "qtask.model.errors",
    "QTaskError": "qtask.model.errors",
    "WrongState": "qtask.model.errors",
    "Refused": "qtask.model.errors",
    "Task": "qtask.model.task",
    "Unavailable": "qtask.model.errors",
    "do": "qtask.worker.rq_function",
}
__all__ = ["AsyncClient", "Client", "NotFound", "QTaskError", "Refused", "Task", "Unavailable", "WrongState", "do"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qtask' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from qtask.model.errors import without_extra

        raise ModuleNotFoundError(f"qtask.{name}: {without_extra(error)}", name=error.name) from error
