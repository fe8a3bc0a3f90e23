"""The events of a ``trace.dat`` in the order of time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import IO

from tdpmmu.trace.dat.container import Container
from tdpmmu.trace.dat.files import read_container
from tdpmmu.trace.dat.formats import Formats, parse_fields
from tdpmmu.trace.dat.kinds import Kinds
from tdpmmu.trace.dat.layouts import SKIPPED
from tdpmmu.trace.dat.merge import CpuEntries, merged
from tdpmmu.trace.dat.pages import PageWalker
from tdpmmu.trace.records import LOST, Lost, Row, Run, Trace

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
        return self._read(names, runs=False)  # type: ignore[return-value]

    def runs(self, names: Collection[str] | None = None) -> Iterator[Row | Run]:
        """The rows of these events (None: all), many alike ones as a :class:`Run`."""
        return self._read(names, runs=True)

    def _read(self, names: Collection[str] | None, *, runs: bool) -> Iterator[Row | Run]:
        found, kinds = self._container, self._kinds
        time_of = _clock(found)
        runs = runs and time_of is None
        walker = PageWalker(
            found.cursor,
            parse_fields(found.header_page),
            self._formats.any_fields(),
            kinds.chooser(names),
            runs=runs,
        )
        line = 0
        for batch in merged([CpuEntries(found, data, walker, kinds) for data in found.cpus]):
            if not (runs or walker.odd or time_of is not None):
                yield from zip(count(line + 1), *zip(*batch, strict=True), strict=False)
                line += len(batch)
            else:
                for entry in batch:
                    if isinstance(entry, Run):
                        yield entry._replace(line=line + 1)
                        line += len(entry.times)
                        continue
                    ticks, cpu, pid, event, fields, at, page = entry
                    ns = ticks if time_of is None else time_of(ticks)
                    if event is LOST:
                        lost = Lost(line + 1, cpu, None if pid < 0 else pid)
                        yield line + 1, ns, cpu, 0, LOST, lost, None, page
                        continue
                    line += 1
                    if event is not SKIPPED:
                        yield line, ns, cpu, pid, event, fields, at, page
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
