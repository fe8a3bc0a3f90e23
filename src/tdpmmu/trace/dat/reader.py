"""The events of a ``trace.dat`` in the order of time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import IO

from tdpmmu.trace.dat.container import Container
from tdpmmu.trace.dat.files import read_container
from tdpmmu.trace.dat.formats import Formats, parse_fields
from tdpmmu.trace.dat.kinds import Kinds
from tdpmmu.trace.dat.merge import CpuEntries, merged
from tdpmmu.trace.dat.pages import SKIPPED, PageWalker
from tdpmmu.trace.records import LOST, Lost, Row, Trace

_NS_CLOCKS = frozenset({"local", "global", "perf", "uptime", "mono", "mono_raw", "boot", "tai"})
_BILLION = 1_000_000_000


class DatReader(Trace):
    """Iterates over the records of an open ``trace.dat``; :class:`Trace` says how.

    ``line`` counts events: ``trace-cmd report`` prints one on each line.
    """

    unit = "event"

    def __init__(self, stream: IO[bytes], name: str) -> None:
        super().__init__(name)
        self._container = found = read_container(stream, name)
        self.overwritten = found.overrun
        self._formats = Formats(found.formats)
        self._kinds = Kinds(self, found, self._formats)

    def rows(self, names: Collection[str] | None = None) -> Iterator[Row]:
        """The rows of these events (None: all)."""
        found, kinds = self._container, self._kinds
        walker = PageWalker(
            found.cursor,
            parse_fields(found.header_page),
            self._formats.any_fields(),
            kinds.chooser(names),
        )
        time_of = _clock(found)
        line = 0
        for batch in merged([CpuEntries(found, data, walker, kinds) for data in found.cpus]):
            if time_of is not None:
                batch = [(time_of(entry[0]), *entry[1:]) for entry in batch]
            if walker.odd:
                for entry in batch:
                    event = entry[3]
                    if event is LOST:
                        lost = Lost(line + 1, entry[1], None if entry[2] < 0 else entry[2])
                        yield line + 1, entry[0], entry[1], 0, LOST, lost, None, entry[6]
                        continue
                    line += 1
                    if event is not SKIPPED:
                        yield line, *entry
            else:
                yield from zip(count(line + 1), *zip(*batch, strict=True), strict=False)
                line += len(batch)
            self.line = self.records = line
        if line < found.promised:
            self.notice(f"the file ends, but its statistics tell of {found.promised} events")


def _clock(found: Container) -> Callable[[int], int] | None:
    """What turns a time stamp into nanoseconds; None: it is that already."""
    shift_ns = found.shift_ns
    if found.tsc is not None:
        multiplier, shift = found.tsc
        return lambda ticks: (ticks * multiplier >> shift) + shift_ns
    if found.clock not in _NS_CLOCKS:
        return lambda ticks: ticks * _BILLION
    if shift_ns:
        return lambda ticks: ticks + shift_ns
    return None
