"""The events of a ``trace.dat`` in the order of time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import IO

from tdpmmu.trace.dat.container import Container
from tdpmmu.trace.dat.files import read_container
from tdpmmu.trace.dat.formats import Formats, parse_fields
from tdpmmu.trace.dat.kinds import Kinds
from tdpmmu.trace.dat.merge import CpuEntries, merged
from tdpmmu.trace.dat.pages import LOST, SKIPPED, PageWalker
from tdpmmu.trace.records import Lost, Record, Trace

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

    def events(self, names: Collection[str] | None) -> Iterator[Record | Lost]:
        """The records of these events (None: all)."""
        found, kinds = self._container, self._kinds
        walker = PageWalker(
            found.cursor,
            parse_fields(found.header_page),
            self._formats.any_fields(),
            kinds.chooser(names),
        )
        time_of = _clock(found)
        line = self.line
        for batch in merged([CpuEntries(found, data, walker, kinds) for data in found.cpus]):
            for ticks, cpu, pid, event, fields, at, page in batch:
                if fields is None:
                    if event is LOST:
                        yield Lost(line + 1, cpu, None if pid < 0 else pid)
                        continue
                    line += 1
                    self.line = self.records = line
                    if event is SKIPPED:
                        continue
                    event, fields = kinds.resolve(event, page, at)
                    if names is not None and event not in names:
                        continue
                else:
                    line += 1
                    self.line = self.records = line
                ns = ticks if time_of is None else time_of(ticks)
                yield Record(line, ns, cpu, pid, event, fields, at, page)


def _clock(found: Container) -> Callable[[int], int] | None:
    """What turns a time stamp into nanoseconds; None: it is that already."""
    shift_ns = found.shift_ns
    if found.tsc is not None:
        multiplier, shift, offset = found.tsc
        return lambda ticks: ((ticks - offset) * multiplier >> shift) + shift_ns
    if found.clock not in _NS_CLOCKS:
        return lambda ticks: ticks * _BILLION
    if shift_ns:
        return lambda ticks: ticks + shift_ns
    return None
