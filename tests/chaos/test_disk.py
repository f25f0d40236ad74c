"""The small disk of the chaos suite: nothing can be written while it is full, and again when there is room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.chaos.disk import SmallDisk


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_nothing_can_be_written_while_the_disk_is_full(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk")
    try:
        assert disk.is_small
        disk.fill()
        with pytest.raises(OSError, match="No space") as caught, (disk.folder / "more").open("wb", buffering=0) as more:
            more.write(b"x" * 10_000)
        assert caught.value.errno == errno.ENOSPC
        disk.make_room()
        assert (disk.folder / "more").write_bytes(b"x" * 10_000) == 10_000
    finally:
        disk.close()
    assert not os.path.ismount(disk.folder)
