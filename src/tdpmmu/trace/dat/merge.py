"""Bring the entries of all CPUs into the order of time, with a page or two of each in memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter

from tdpmmu.trace.dat.container import Container, CpuData
from tdpmmu.trace.dat.kinds import Kinds, Page
from tdpmmu.trace.dat.pages import Entry, PageWalker
from tdpmmu.trace.records import Run

_TICKS = itemgetter(0)


class CpuEntries:
    """The entries of one CPU: ``pending`` are those read and not yet taken.

    All that are not read yet come at ``limit`` or later; None: there are no more.
    """

    def __init__(
        self, container: Container, data: CpuData, walker: PageWalker, kinds: Kinds
    ) -> None:
        self.pending: list[Entry | Run] = []
        self.limit: int | None = 0
        self._last = 0
        self._pages = container.pages(data)
        self._next = next(self._pages, None)
        self._cpu = data.cpu
        self._walker = walker
        self._kinds = kinds

    def more(self) -> None:
        """Read the next page."""
        if self._next is not None:
            cursor, place, data = self._next
            entries = self._walker.walk(self._cpu, data, Page(data, self._kinds), cursor, place)
            if entries:
                if entries[0][0] < self._last:
                    cursor.fail(
                        f"expected a page of CPU {self._cpu} that begins at {self._last} or later; "
                        f"it begins at {entries[0][0]}",
                        place,
                    )
                last = entries[-1]
                self._last = last.times[-1] if isinstance(last, Run) else last[0]
                self.pending += entries
        self._next = next(self._pages, None)
        self.limit = None if self._next is None else self._walker.begins(self._next[2])

    def take(self, horizon: int | None) -> list[Entry | Run]:
        """The pending entries before ``horizon``; None: all."""
        pending = self.pending
        if horizon is None or self._last < horizon:
            self.pending = []
            return pending
        count = bisect_left(pending, horizon, key=_TICKS)
        last = pending[count - 1] if count else None
        if isinstance(last, Run) and last.times[-1] >= horizon:
            pending[count - 1 : count] = last.split(bisect_left(last.times, horizon))
        taken = pending[:count]
        del pending[:count]
        return taken


def entries_of(run: Run) -> list[Entry]:
    """The entries of a run."""
    return [row[1:] for row in run.rows()]


def merged(cpus: list[CpuEntries]) -> Iterator[list[Entry | Run]]:
    """The entries of all CPUs in lists that follow each other, none empty.

    Of the same time, those of the lower CPU come first.
    """
    while True:
        limits = [cpu.limit for cpu in cpus if cpu.limit is not None]
        horizon = min(limits, default=None)
        taken = [entries for cpu in cpus if (entries := cpu.take(horizon))]
        if len(taken) == 1:
            yield taken[0]
        elif taken:
            yield _sorted(taken)
        if horizon is None:
            return
        for cpu in cpus:
            if cpu.limit == horizon:
                cpu.more()


def _sorted(taken: list[list[Entry | Run]]) -> list[Entry | Run]:
    batch: list[Entry | Run] = []
    for entries in taken:
        for entry in entries:
            if isinstance(entry, Run):
                batch += entries_of(entry)
            else:
                batch.append(entry)
    batch.sort(key=_TICKS)
    return batch
