"""The guests of published measurements, as their texts describe them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tdpmmu.simulation.guest import EXEC, WRITE, DirtyLog, Guest, HostEvent, Touches
from tdpmmu.simulation.workloads.patterns import REGION

Ints = npt.NDArray[np.int64]

GIB_PAGES = 1 << 18
TIMED = 1
"""The tag of touches that the measurement times."""


@dataclass(frozen=True, slots=True)
class NxHugePagesPerfTest:
    """``nx_huge_pages_perf_test`` (selftest of the read-lock recovery series).

    One vCPU goes through memory once, page by page.  In each even 1G it writes a byte of the page
    and executes it; in each odd 1G it times one write.  Its own page tables are in the memory that
    comes besides (slot 0): 512 pages on, the CPU walks through one that it has not been to.

    ``touch_ns``, ``code_ns``: to write to a page, and to execute what has just been written.
    ``timed_ns``, ``rest_ns``: of a timed write, what is between the two clocks and what is not.
    """

    guest: Guest
    touch_ns: int = 40
    code_ns: int = 0
    timed_ns: int = 40
    rest_ns: int = 0

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        pages = self.guest.main_pages
        for start in range(0, pages, REGION):
            gfn = np.repeat(np.arange(start, min(start + REGION, pages), dtype=np.int64), 2)
            # What comes after a timed write is one more, of the same page, that nobody times.
            if start & GIB_PAGES:
                think, kinds, tags = (self.timed_ns, self.rest_ns), (WRITE, WRITE), (TIMED, 0)
            else:
                think, kinds, tags = (self.touch_ns, self.code_ns), (WRITE, EXEC), (0, 0)
            yield self._walked(gfn, *(np.resize(one, len(gfn)) for one in (think, kinds, tags)))

    def _walked(self, gfn: Ints, think: Ints, kinds: Ints, tags: Ints) -> Touches:
        """With the page of the guest's tables that the first write is translated by."""
        if self.guest.small_bytes:
            table = self.guest.main_pages + gfn[0] // REGION
            gfn = np.insert(gfn, 0, table)
            think = np.insert(think, 1, 0)
            kinds, tags = np.insert(kinds, 0, WRITE), np.insert(tags, 0, tags[0])
        return Touches(think, gfn, kinds.astype(np.uint8), tags.astype(np.uint8))

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return iter(())


@dataclass(frozen=True, slots=True)
class DisableDirtyLogging:
    """The end of ``dirty_log_perf_test -e``: vCPUs go on writing while logging is switched off.

    Each vCPU writes to every page of its own share, over and over, ``touch_ns`` apart.  Logging is
    switched on at the start (eager splitting maps all of it by 4K pages), and off at ``off_ns``.
    """

    guest: Guest
    off_ns: int
    touch_ns: int = 40

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        share = self.guest.pages // self.guest.vcpus
        at = 0
        while True:
            gfn = vcpu * share + (at + np.arange(8 * REGION, dtype=np.int64)) % share
            at += 8 * REGION
            think = np.full(len(gfn), self.touch_ns, dtype=np.int64)
            yield Touches(think, gfn, np.full(len(gfn), WRITE, dtype=np.uint8))

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        yield 0, DirtyLog(True)
        yield self.off_ns, DirtyLog(False)


@dataclass(frozen=True, slots=True)
class UdpPingPong:
    """``latte``: two machines send a small datagram to and fro.

    One vCPU takes part; the others idle.  Each round trip takes ``round_trip_ns`` and touches
    ``pages`` pages at random, of all memory; a fault in between makes it longer.  ``executes`` is
    the part of them that is executed, ``executed`` the part of the 2M regions that hold code:
    Windows strews it over most of them.
    """

    guest: Guest
    round_trip_ns: int = 66_000
    pages: int = 2
    executed: float = 1.0
    executes: float = 0.25

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        if vcpu:
            return
        count = 4096 * self.pages
        regions = max(1, round(self.executed * (self.guest.pages // REGION)))
        while True:
            think = np.zeros(count, dtype=np.int64)
            think[:: self.pages] = self.round_trip_ns
            code = rng.random(count) < self.executes
            gfn = rng.integers(0, self.guest.pages, count)
            gfn[code] = rng.integers(0, regions * REGION, int(code.sum()))
            yield Touches(think, gfn, np.where(code, EXEC, WRITE).astype(np.uint8))

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        return iter(())
