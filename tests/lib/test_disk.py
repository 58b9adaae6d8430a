from __future__ import annotations

import os
from pathlib import Path

from nexus.lib.disk import Disk


def test_more_parts_than_one_call_takes_are_all_written(tmp_path: Path) -> None:
    disk = Disk()
    parts = [bytes([number % 256]) * (number % 4) for number in range(3_000)]
    fd = disk.open(str(tmp_path / "file"), os.O_CREAT | os.O_RDWR)
    try:
        disk.pwrite_parts(fd, parts, 5)
        assert disk.pread(fd, 10_000, 5) == b"".join(parts)
    finally:
        disk.close(fd)
