"""The outer shape of a ``trace.dat``: where everything is, and getting the events from there."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tdpmmu.trace.dat.cursor import Cursor
from tdpmmu.trace.dat.packing import read_chunk, unpacker
from tdpmmu.trace.streams import BrokenStream

_AT_ONCE = 1 << 16
"""How many bytes of events to read in one go, at least a page."""


@dataclass(slots=True)
class CpuData:
    """Where the ring buffer pages of one CPU are; ``packed`` in chunks."""

    cpu: int
    place: int
    size: int
    page_size: int
    packed: bool


@dataclass(slots=True)
class Container:
    """What a file holds.

    ``formats`` are (system, text) of all events.  ``shift_ns`` is added to all times; ``tsc`` are
    multiplier and shift that turn ticks into nanoseconds.  ``overrun`` counts the entries that the
    ring buffers overwrote (None: the file does not say), ``promised`` those in the file, as far as
    its statistics tell of them.
    """

    cursor: Cursor
    long_size: int = 8
    page_size: int = 4096
    compression: str = "none"
    header_page: str = ""
    formats: list[tuple[str, bytes]] = field(default_factory=list)
    cmdlines: bytes = b""
    printk: bytes = b""
    kallsyms: Callable[[], bytes] = bytes
    cpus: list[CpuData] = field(default_factory=list)
    clock: str = "local"
    shift_ns: int = 0
    tsc: tuple[int, int] | None = None
    overrun: int | None = None
    promised: int = 0

    def pages(self, data: CpuData) -> Iterator[tuple[Cursor, int, bytes]]:
        """The pages of a CPU's data, each with its place, and the cursor whose place that is."""
        size = data.page_size
        what = f"CPU {data.cpu}'s events"
        for cursor, place, chunk in self._packed(data, what) if data.packed else self._plain(data):
            for at in range(0, len(chunk), size):
                page = chunk[at : at + size]
                if len(page) != size:
                    cursor.fail(
                        f"expected a page of {size} bytes of {what}; found {len(page)}", place + at
                    )
                yield cursor, place + at, page

    def _plain(self, data: CpuData) -> Iterator[tuple[Cursor, int, bytes]]:
        cursor = self.cursor
        step = max(_AT_ONCE // data.page_size, 1) * data.page_size
        end = data.place + data.size
        for place in range(data.place, end, step):
            cursor.place = place
            yield cursor, place, cursor.read(min(step, end - place), f"CPU {data.cpu}'s events")

    def _packed(self, data: CpuData, what: str) -> Iterator[tuple[Cursor, int, bytes]]:
        cursor = self.cursor
        if not data.size:
            return
        cursor.place = data.place
        try:
            unpack = unpacker(self.compression)
        except BrokenStream as error:
            cursor.fail(str(error))
        chunks = cursor.number(4, f"the number of chunks of {what}")
        place = cursor.place
        for _ in range(chunks):
            cursor.place = place
            chunk = read_chunk(cursor, unpack, what)
            start, place = place, cursor.place
            yield cursor.part(io.BytesIO(chunk), start, packed=True), 0, chunk
