"""The environments of the peers: each has a virtual environment or a folder of npm packages, with pinned versions."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

_FOLDER = Path(__file__).parent / ".environments"
_PEERS = Path(__file__).parent / "peers"


def python_environment(name: str) -> Path:
    """The `bin` folder of the virtual environment for `peers/requirements/NAME.txt`; created if it does not exist."""
    requirements = _PEERS / "requirements" / f"{name}.txt"
    folder = _FOLDER / name
    if not _is_made(folder, requirements):
        print(f"making the environment of {name} …", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", str(requirements)], check=True)
        _mark(folder, requirements)
    return folder / "bin"


def node_environment(name: str) -> Path:
    """The folder of the npm packages of `peers/NAME/package.json`; created if it does not exist.

    The peer's own files are copied into it, because Node looks for packages in the folder of the importing file.
    """
    source = _PEERS / name
    folder = _FOLDER / name
    if not _is_made(folder, source / "package.json"):
        print(f"making the environment of {name} …", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(source / "package.json", folder)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
        _mark(folder, source / "package.json")
    for file in source.glob("*.mjs"):
        shutil.copy(file, folder)
    return folder


def python_versions(name: str) -> dict[str, str]:
    """Versions of the packages that `peers/requirements/NAME.txt` pins."""
    lines = (_PEERS / "requirements" / f"{name}.txt").read_text().split()
    pairs = (line.partition("==") for line in lines)
    return {package.partition("[")[0].lower(): version for package, _, version in pairs}


def node_versions(name: str) -> dict[str, str]:
    """Version of each npm package that an environment requires, and of Node."""
    folder = node_environment(name)
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    found = {
        package: json.loads((folder / "node_modules" / package / "package.json").read_text())["version"]
        for package in wanted
    }
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return {**found, "node": node.strip().removeprefix("v")}


def _is_made(folder: Path, requirements: Path) -> bool:
    marker = folder / "made-from"
    return marker.exists() and marker.read_text() == _digest(requirements)


def _mark(folder: Path, requirements: Path) -> None:
    (folder / "made-from").write_text(_digest(requirements))


def _digest(requirements: Path) -> str:
    return hashlib.sha256(requirements.read_bytes()).hexdigest()
