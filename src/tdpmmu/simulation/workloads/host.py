"""What the host does to a guest's memory: THP, swap, NUMA balancing, migration."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tdpmmu.simulation.guest import DirtyLog, GetDirtyLog, Guest, HostEvent, Unmap
from tdpmmu.simulation.workloads.patterns import REGION

UNMAPS = {"thp-collapse": REGION, "thp-split": REGION, "swap-out": 1, "numa-balancing": REGION}
"""Host work that unmaps pages, and how many pages at a time at least."""

KINDS = (*UNMAPS, "migration")


@dataclass(frozen=True, slots=True)
class HostWork:
    """One thing that the host does from ``at_ns`` on, every ``every_ns``, ``times`` times.

    Those of :data:`UNMAPS` unmap ``pages`` pages at a random, aligned place: what happens to them
    then is the host's own affair, and a guest that comes back faults.  ``migration`` switches dirty
    logging on, fetches the log every ``every_ns`` (a round), ``times`` times, and switches it off.
    """

    kind: str
    at_ns: int = 0
    every_ns: int = 10**9
    times: int = 1
    pages: int = REGION

    def events(self, guest: Guest, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        """In order of time."""
        if self.kind == "migration":
            yield from self._migration()
            return
        places = max(1, guest.pages // self.pages)
        for turn in range(self.times):
            gfn = int(rng.integers(0, places)) * self.pages
            yield self.at_ns + turn * self.every_ns, Unmap(gfn, self.pages)

    def _migration(self) -> Iterator[tuple[int, HostEvent]]:
        yield self.at_ns, DirtyLog(True)
        for turn in range(1, self.times + 1):
            yield self.at_ns + turn * self.every_ns, GetDirtyLog()
        yield self.at_ns + (self.times + 1) * self.every_ns, DirtyLog(False)


def merged(
    guest: Guest, work: tuple[HostWork, ...], rng: np.random.Generator
) -> Iterator[tuple[int, HostEvent]]:
    """The events of all, in order of time; each has random numbers of its own."""
    streams = [
        one.events(guest, child) for one, child in zip(work, rng.spawn(len(work)), strict=True)
    ]
    return heapq.merge(*streams, key=lambda event: event[0])
