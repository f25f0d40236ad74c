"""requirements.lock, from which the image is built: it fits requirements.txt, is complete, and names no index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.documents import ROOT

# The image: see Dockerfile.
IMAGE = {"python_version": "3.13", "python_full_version": "3.13.0", "sys_platform": "linux", "platform_system": "Linux"}
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==(\S+) \\$", LOCK, re.MULTILINE)
}


def wanted() -> Iterator[Requirement]:
    """The requirements of requirements.txt that apply to the image."""
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if text := line.partition("#")[0].strip():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(dict(IMAGE)):
                yield requirement


def test_lock_satisfies_the_requirements() -> None:
    unmet = [str(one) for one in wanted() if LOCKED.get(canonicalize_name(one.name)) not in Allowed(one)]
    assert unmet == [], "run `make lock`"


def test_lock_includes_transitive_requirements() -> None:
    missing = set()
    for name in LOCKED:
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # not installed here: another version of Python needs it
            continue
        for one in needed:
            if one.marker is None or one.marker.evaluate({**IMAGE, "extra": ""}):
                if canonicalize_name(one.name) not in LOCKED:
                    missing.add(f"{one.name}, needed by {name}")
    assert missing == set(), "run `make lock`"


def test_lock_has_hashes_and_names_no_index() -> None:
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(LOCKED) > 20
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert "://" not in LOCK and " @ " not in LOCK
    options = set(re.findall(r"(?<!\S)--?([a-z-]+)", LOCK))
    assert options == {"hash"}


def test_image_installs_from_the_lock_and_checks_hashes() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "pip install --quiet --require-hashes -r requirements.lock" in dockerfile
    assert f"FROM python:{IMAGE['python_version']}-slim" in dockerfile


class Allowed:
    """The versions that a requirement allows."""

    def __init__(self, requirement: Requirement) -> None:
        self._specifier = requirement.specifier

    def __contains__(self, version: object) -> bool:
        return isinstance(version, Version) and self._specifier.contains(version, prereleases=True)
