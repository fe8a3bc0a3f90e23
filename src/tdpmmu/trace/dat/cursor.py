"""Read numbers and strings in a binary file, and say where it goes wrong."""

from __future__ import annotations

import os
from typing import IO, Literal, NoReturn

from tdpmmu.trace.records import TraceError, printable

ByteOrder = Literal["little", "big"]


class Cursor:
    """A place in a binary ``stream`` of ``name``, which every read moves.

    ``base`` is where the stream's bytes are in the file, for messages; ``packed`` says that they
    were unpacked from there.
    """

    def __init__(
        self,
        stream: IO[bytes],
        name: str,
        order: ByteOrder = "little",
        *,
        base: int = 0,
        packed: bool = False,
    ) -> None:
        self.name = name
        self.order = order
        self.size = stream.seek(0, os.SEEK_END)
        self.place = 0
        self._stream = stream
        self._base = base
        self._packed = packed

    def fail(self, what: str, place: int | None = None) -> NoReturn:
        """TraceError at ``place`` (default: here)."""
        if place is None:
            place = self.place
        if self._packed:
            where = f"offset {self._base:#x}, unpacked byte {place:#x}"
        else:
            where = f"offset {self._base + place:#x}"
        raise TraceError(f"{self.name}: {where}: {printable(what)}")

    def part(self, content: IO[bytes], base: int, *, packed: bool | None = None) -> Cursor:
        """A cursor of its own for ``content``, which was found at ``base``."""
        if packed is None:
            packed = self._packed
        base = self._base if self._packed else self._base + base
        return Cursor(content, self.name, self.order, base=base, packed=packed)

    def skip(self, count: int, what: str) -> None:
        """Move over ``count`` bytes of ``what``."""
        left = self.size - self.place
        if not 0 <= count <= left:
            self.fail(f"expected {count} bytes of {what}; {max(left, 0)} are left (truncated?)")
        self.place += count

    def read(self, count: int, what: str) -> bytes:
        """``count`` bytes of ``what``."""
        place = self.place
        self.skip(count, what)
        self._stream.seek(place)
        data = self._stream.read(count)
        if len(data) != count:
            self.fail(f"expected {count} bytes of {what}; only {len(data)} can be read", place)
        return data

    def number(self, size: int, what: str) -> int:
        """An unsigned number of ``size`` bytes."""
        return int.from_bytes(self.read(size, what), self.order)

    def string(self, what: str, longest: int = 4096) -> str:
        """A string that ends in a zero byte."""
        self._stream.seek(self.place)
        data = self._stream.read(longest)
        end = data.find(b"\0")
        if end < 0:
            self.fail(f"expected {what}, ended by a zero byte within {longest} bytes")
        self.place += end + 1
        return data[:end].decode("utf-8", "replace")

    def expect(self, data: bytes, what: str) -> None:
        """Exactly these bytes."""
        place = self.place
        found = self.read(len(data), what)
        if found != data:
            self.fail(f"expected {what}; found {found.decode('latin1')!a}", place)
