"""What is written down while time passes: waits, holds, latencies, samples."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from tdpmmu.worlds.simulate.histogram import Histogram

WORST, HOLDS = 1000, 5000
"""How many of the longest latencies and lock holds are kept with their moment."""

LOCK, CPU, NOISE, FLUSH, SPLIT, REFAULT, FAULT, REFILL = (
    "lock wait",
    "cpu wait",
    "host noise",
    "flush",
    "split",
    "refault",
    "fault",
    "refill",
)
"""Why a vCPU does not run its guest.

``cpu wait``: it could run, but others have the CPU.  ``host noise``: ticks and other
interruptions.  ``flush``: it waits for a flush of its own, or
is made to leave for another's.  ``refill``: walks after a flush.  The others are work of its own
faults: one that splits a huge page, one where something was mapped before, one where nothing was.
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """One fault, from the access to when it went through.

    ``ns`` long, begun at ``at``.
    """

    ns: int
    at: int
    vcpu: int
    gfn: int
    tag: int


@dataclass(frozen=True, slots=True)
class Hold:
    """A lock was held for ``ns``, from ``at`` on, by a thread of that kind."""

    ns: int
    at: int
    lock: str
    mode: str
    kind: str
    thread: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes mapped by huge pages and by 4K pages, and bytes of page tables, at ``at`` ns."""

    at: int
    huge: int
    small: int
    tables: int


class Ledger:
    """Totals, distributions and samples of one run."""

    def __init__(self, sample_every: int) -> None:
        """``sample_every``: nanoseconds between samples."""
        self.counts: Counter[str] = Counter()
        self.stalls: Counter[str] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.latencies: dict[int, Histogram] = {}
        self.holds: dict[tuple[str, str, str], Histogram] = {}
        self.samples: list[Sample] = []
        self.huge_bytes = 0
        self.small_bytes = 0
        self.tables = 0
        self.next_sample = 0
        self._every = sample_every
        self._worst: list[tuple[int, int, int, int, int]] = []
        self._longest: list[tuple[int, int, int, str, str, str]] = []

    # --- time -----------------------------------------------------------------------------------

    def sample(self, now: int) -> None:
        """Take the samples that are due by ``now``."""
        while self.next_sample <= now:
            at = self.next_sample
            self.samples.append(Sample(at, self.huge_bytes, self.small_bytes, self.tables * 4096))
            self.next_sample += self._every

    def waited(self, kind: str, cause: str, ns: int) -> None:
        """A thread of that kind has stood still."""
        self.waits[kind, cause] += ns

    def stalled(self, cause: str, ns: int) -> None:
        """A vCPU has not run its guest."""
        self.stalls[cause] += ns

    def held(self, lock: str, mode: str, kind: str, thread: int, since: int, ns: int) -> None:
        """A lock is given back."""
        key = (lock, mode, kind)
        histogram = self.holds.get(key)
        if histogram is None:
            histogram = self.holds[key] = Histogram.empty()
        histogram.add(ns)
        entry = (ns, -since, -thread, lock, mode, kind)
        if len(self._longest) < HOLDS:
            heapq.heappush(self._longest, entry)
        elif entry > self._longest[0]:
            heapq.heapreplace(self._longest, entry)

    def latency(self, ns: int, at: int, vcpu: int, gfn: int, tag: int) -> None:
        """A fault is over."""
        histogram = self.latencies.get(tag)
        if histogram is None:
            histogram = self.latencies[tag] = Histogram.empty()
        histogram.add(ns)
        entry = (ns, -at, -vcpu, -gfn, -tag)
        if len(self._worst) < WORST:
            heapq.heappush(self._worst, entry)
        elif entry > self._worst[0]:
            heapq.heapreplace(self._worst, entry)

    # --- what comes out -------------------------------------------------------------------------

    def worst(self) -> tuple[Latency, ...]:
        """The longest faults, the longest first."""
        found = sorted(self._worst, reverse=True)
        return tuple(Latency(ns, -at, -vcpu, -gfn, -tag) for ns, at, vcpu, gfn, tag in found)

    def longest(self) -> tuple[Hold, ...]:
        """The longest holds, by their beginning."""
        found = [
            Hold(ns, -at, lock, mode, kind, -thread)
            for ns, at, thread, lock, mode, kind in self._longest
        ]
        return tuple(sorted(found, key=lambda hold: (hold.at, hold.thread)))
