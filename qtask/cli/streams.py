"""Makes standard input, output and errors of the command line usable, however the process was started."""

from __future__ import annotations

import codecs
import errno
import json
import os
import sys

# Errors of writing to a file on a full or broken disk.
OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def prepare() -> None:
    """Makes the three streams usable.

    A closed stream becomes /dev/null. Otherwise it is None in Python, the next socket or file gets its number, and
    errors would be written to that. Characters that the encoding of an output lacks are written as JSON escapes.
    Arguments are read as UTF-8, even if the locale says ASCII.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", encoding="utf-8"))
    codecs.register_error("qtask_escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="qtask_escape")
    if sys.getfilesystemencoding() != "utf-8":
        sys.argv[1:] = [os.fsencode(argument).decode("utf-8", "surrogateescape") for argument in sys.argv[1:]]


def discard_output() -> None:
    """Redirects standard output to /dev/null, so that Python does not fail again when it flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """An error handler for codecs: `\\u2603` for what cannot be encoded."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
