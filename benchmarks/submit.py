"""Submits a plan with a system's own client: `python -m benchmarks.submit MODULE PLAN`, in its environment.

The module has `submit(tasks)`, a function or coroutine function, and may have `prepare(tasks)`; see `plan.run`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from typing import Any

from benchmarks.plan import run


def main() -> None:
    """Runs the submission of the module that the first argument names."""
    module = importlib.import_module(sys.argv.pop(1))
    submit = module.submit
    if inspect.iscoroutinefunction(submit):

        def submit_in_loop(prepared: Any) -> None:
            asyncio.run(submit(prepared))

        run(submit_in_loop, getattr(module, "prepare", list))
    else:
        run(submit, getattr(module, "prepare", list))


main()
