"""A small disk for Redis that can be filled. It is a tmpfs, so it needs root."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

SIZE_MIB = 512  # several times the amount that a run writes
_STEP_BYTES = 16_777_216
_PAGE_BYTES = 4_096


class SmallDisk:
    """A folder on its own small file system, or a plain folder for users who may not mount one.

    Args:
        folder: the mount point.

    Attributes:
        folder: the same.
        is_small: whether it is a file system of its own, so that it can be filled.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "qtask-chaos", str(folder)]
        self.is_small = (
            os.geteuid() == 0 and subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
        )

    def fill(self) -> None:
        """Uses all free space. A plain folder is left unchanged."""
        if not self.is_small:
            return
        taken, step = 0, _STEP_BYTES
        with self._filler.open("wb") as filler:
            while step >= _PAGE_BYTES:
                try:
                    os.posix_fallocate(filler.fileno(), taken, step)
                    taken += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 16

    def make_room(self) -> None:
        """Frees the space again."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it; its contents are lost."""
        if self.is_small:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
            self.is_small = False
