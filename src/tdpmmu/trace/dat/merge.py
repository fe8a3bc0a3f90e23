"""Bring the entries of all CPUs into the order of time, with a page or two of each in memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter

from tdpmmu.trace.dat.container import Container, CpuData
from tdpmmu.trace.dat.kinds import Kinds, Page
from tdpmmu.trace.dat.pages import Entry, PageWalker

_TICKS = itemgetter(0)


class CpuEntries:
    """The entries of one CPU: ``pending`` are those read and not yet taken."""

    def __init__(
        self,
        container: Container,
        data: CpuData,
        walker: PageWalker,
        kinds: Kinds,
    ) -> None:
        self.pending: list[Entry] = []
        self.last = -1
        self.done = False
        self._pages = container.pages(data)
        self._cpu = data.cpu
        self._walker = walker
        self._kinds = kinds

    def more(self) -> None:
        """Read the next page that has entries; ``done`` if there is none."""
        for cursor, place, data in self._pages:
            entries = self._walker.walk(self._cpu, data, Page(data, self._kinds), cursor, place)
            if not entries:
                continue
            if entries[0][0] < self.last:
                cursor.fail(
                    f"expected a page of CPU {self._cpu} that begins at {self.last} or later; "
                    f"it begins at {entries[0][0]}",
                    place,
                )
            self.last = entries[-1][0]
            self.pending += entries
            return
        self.done = True

    def take(self, horizon: int | None) -> list[Entry]:
        """The pending entries before ``horizon``; None: all."""
        pending = self.pending
        if horizon is None:
            self.pending = []
            return pending
        count = bisect_left(pending, horizon, key=_TICKS)
        taken = pending[:count]
        del pending[:count]
        return taken


def merged(cpus: list[CpuEntries]) -> Iterator[list[Entry]]:
    """The entries of all CPUs in lists that follow each other, none empty.

    Of the same time, those of the lower CPU come first.
    """
    for cpu in cpus:
        cpu.more()
    while True:
        growing = [cpu for cpu in cpus if not cpu.done]
        horizon = min((cpu.last for cpu in growing), default=None)
        batch: list[Entry] = []
        for cpu in cpus:
            batch += cpu.take(horizon)
        batch.sort(key=_TICKS)
        if batch:
            yield batch
        if horizon is None:
            return
        for cpu in growing:
            if cpu.last == horizon:
                cpu.more()
