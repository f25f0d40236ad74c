"""Python code in a separate network with its own /etc/hosts and name server: the test controls name resolution."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.documents import ROOT

SILENT_SERVER = "127.0.0.53"  # name server of the namespace, which may or may not answer

_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount")
_SETUP = """
set -e
ip link set lo up
for name in hosts resolv.conf nsswitch.conf; do mount --bind "$1/$name" "$(readlink -f /etc/$name)"; done
shift
exec "$@"
"""


@functools.cache
def _works() -> bool:
    try:
        return (
            subprocess.run([*_UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode
            == 0
        )
    except FileNotFoundError:
        return False


def run(code: str, folder: Path, hosts: Sequence[str] = (), seconds: float = 50.0, patience: int = 10) -> str:
    """Runs Python code in new namespaces and returns its output; fails on an error or after the time limit.

    Skips the test if the system allows no namespaces.

    Args:
        code: may import from `qtask` and `tests`.
        folder: for the files.
        hosts: lines of /etc/hosts.
        seconds: time limit.
        patience: seconds until the system's resolver asks the name server again; it asks twice.
    """
    if not _works():
        pytest.skip("this system allows no user namespaces")
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{line}\n" for line in hosts))
    (folder / "resolv.conf").write_text(f"nameserver {SILENT_SERVER}\noptions timeout:{patience} attempts:2\n")
    (folder / "nsswitch.conf").write_text("hosts: files dns\n")
    command = [*_UNSHARE, "sh", "-c", _SETUP, "sh", str(folder), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
