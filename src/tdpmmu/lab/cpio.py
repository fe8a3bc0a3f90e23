"""Initial RAM file systems: cpio archives in the "newc" format."""

from __future__ import annotations

import stat
from typing import IO


class CpioWriter:
    """Writes an archive that the kernel unpacks; directories come with the files in them."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._inode = 0
        self._made: set[str] = set()

    def file(self, name: str, content: bytes, executable: bool = False) -> None:
        """A file, ``name`` without a leading ``/``."""
        self._parents(name)
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def close(self) -> None:
        """Write the trailer, and fill up to a whole block."""
        self._entry("TRAILER!!!", 0, b"")
        self._out.write(bytes(-self._out.tell() % 512))

    def _parents(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            parent = "/".join(parts[:end])
            if parent not in self._made:
                self._made.add(parent)
                self._entry(parent, stat.S_IFDIR | 0o755, b"")

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._padded(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        self._padded(content)

    def _padded(self, content: bytes) -> None:
        self._out.write(content + bytes(-len(content) % 4))
