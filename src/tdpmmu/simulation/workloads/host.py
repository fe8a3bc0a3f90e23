"""What the host does to a guest's memory: THP, swap, NUMA balancing, migration."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tdpmmu.simulation.guest import (
    Collapse,
    DirtyLog,
    GetDirtyLog,
    Guest,
    HostEvent,
    Migrate,
    SplitHuge,
    SwapOut,
    Unmap,
)
from tdpmmu.simulation.workloads.patterns import REGION

AT_RANDOM: dict[str, tuple[int, Callable[[int, int], HostEvent]]] = {
    "thp-split": (REGION, SplitHuge),
    "swap-out": (1, SwapOut),
    "numa-balancing": (REGION, Unmap),
}
"""Host work at a random place: how many pages at a time at least, and what it is."""

LEAST = {**{kind: pages for kind, (pages, _) in AT_RANDOM.items()}, "thp-collapse": REGION}
"""How many pages of host work at a time at least."""

LOG = "dirty-log"
KINDS = (*LEAST, LOG)


@dataclass(frozen=True, slots=True)
class HostWork:
    """One thing that the host does from ``at_ns`` on, every ``every_ns``, ``times`` times.

    Those of :data:`AT_RANDOM` concern ``pages`` pages at a random, aligned place.  What the host
    has split or swapped out a guest finds as 4K pages when it comes back, until ``thp-collapse``
    (khugepaged) has come there: it goes through such memory in order.  ``numa-balancing`` gives
    other frames of the same size.  ``dirty-log`` switches dirty
    logging on, fetches the log every ``every_ns`` (a round), ``times`` times, and switches it off.
    """

    kind: str
    at_ns: int = 0
    every_ns: int = 10**9
    times: int = 1
    pages: int = REGION

    def events(self, guest: Guest, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        """In order of time."""
        if self.kind == LOG:
            yield from self._dirty_log()
            return
        if self.kind == "thp-collapse":
            for turn in range(self.times):
                yield self.at_ns + turn * self.every_ns, Collapse(self.pages)
            return
        _, event = AT_RANDOM[self.kind]
        places = max(1, guest.pages // self.pages)
        for turn in range(self.times):
            gfn = int(rng.integers(0, places)) * self.pages
            yield self.at_ns + turn * self.every_ns, event(gfn, self.pages)

    def _dirty_log(self) -> Iterator[tuple[int, HostEvent]]:
        yield self.at_ns, DirtyLog(True)
        for turn in range(1, self.times + 1):
            yield self.at_ns + turn * self.every_ns, GetDirtyLog()
        yield self.at_ns + (self.times + 1) * self.every_ns, DirtyLog(False)


@dataclass(frozen=True, slots=True)
class MigrationWork:
    """The guest is migrated away from ``at_ns`` on, and the run ends when it is gone."""

    plan: Migrate
    at_ns: int = 0

    def events(self, guest: Guest, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        """The one event."""
        yield self.at_ns, self.plan


AnyHostWork = HostWork | MigrationWork


def merged(
    guest: Guest, work: tuple[AnyHostWork, ...], rng: np.random.Generator
) -> Iterator[tuple[int, HostEvent]]:
    """The events of all, in order of time; each has random numbers of its own."""
    streams = [
        one.events(guest, child) for one, child in zip(work, rng.spawn(len(work)), strict=True)
    ]
    return heapq.merge(*streams, key=lambda event: event[0])
