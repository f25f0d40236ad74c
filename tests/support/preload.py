"""Small C libraries of the tests that are preloaded into a process to simulate faults of its environment."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest


class Preload:
    """One library, built from `NAME.c` of this folder, and the number that it shares with the test.

    Args:
        name: of the source.
        variable: environment variable with the file of the number.
        folder: gets the library and the file.
    """

    def __init__(self, name: str, variable: str, folder: Path) -> None:
        library = folder / f"{name}.so"
        if not library.exists():
            if shutil.which("cc") is None:
                pytest.skip("there is no C compiler here (on Debian: apt install gcc libc6-dev)")
            source = Path(__file__).with_name(f"{name}.c")
            command = ["cc", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
            subprocess.run([*command, "-ldl"], check=True)
        number = 0
        while (place := folder / f"{name}.{number}").exists():
            number += 1
        place.write_bytes(struct.pack("q", 0))
        with place.open("r+b") as file:
            self._number = mmap.mmap(file.fileno(), 8)
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), variable: str(place)}

    @property
    def number(self) -> int:
        """The current number, written by the test or by the library."""
        return int(struct.unpack("q", self._number[:])[0])

    @number.setter
    def number(self, value: int) -> None:
        self._number[:] = struct.pack("q", value)
