"""This host: Python, packages, and the pipe folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from qtask.config import Config
from qtask.model.errors import without_extra
from qtask.run.doctor.finding import Finding


def python_version(_: Config) -> Finding:
    """The version of Python."""
    here = ".".join(map(str, sys.version_info[:3]))
    return Finding("fine", f"Python {here}")


def packages(_: Config) -> Iterator[Finding]:
    """Whether the required packages are installed in the required versions."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError as error:
        yield Finding("note", without_extra(error))
        return
    try:
        wanted = [Requirement(line) for line in requires("qtask") or ()]
    except PackageNotFoundError:
        yield Finding("note", "qtask runs from its source and is not installed", "pip install '.[server]' installs it")
        return
    here = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": "server"})]
    bad = False
    for requirement in here:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            bad = True
            yield Finding("wrong", f"the package {requirement.name} is missing", f"pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            bad = True
            yield Finding("wrong", f"{requirement.name} {found} does not fit", f"pip install '{requirement}'")
    if not bad:
        yield Finding("fine", f"{len(here)} packages in suitable versions")


def pipe_folder(config: Config) -> Finding:
    """Whether the pipe folder can be used."""
    folder = config.pipes
    if not folder.is_dir():
        advice = "create it, or name another with --pipe-dir"
        return Finding("note", f"the pipe folder {folder} does not exist: no pipe can be delivered to", advice)
    if not os.access(folder, os.X_OK | os.R_OK):
        return Finding("wrong", f"the pipe folder {folder} cannot be entered", "correct its permissions")
    return Finding("fine", f"the pipe folder {folder} can be used")
