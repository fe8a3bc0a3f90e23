"""Faults that have been seen before: their effect and cost at once, without running the code.

What a fault does depends only on what it reads.  The first fault of a *pattern* (how the walk ends,
what is asked for, what the tables on the way say, where the lock's line is) runs operation by
operation.  If nobody else did anything meanwhile, and all that came of it is one leaf where there
was nothing, or a leaf that got bits (and a page that is marked dirty), it is remembered: how long
it took, what it counted, how long it held the lock.  The compiled loop does the next one in one
step if nothing can happen before its end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.spte import BASE_ADDR_MASK, Access
from tdpmmu.kernel.locks import NOBODY
from tdpmmu.simulation.herd import loop

if TYPE_CHECKING:
    from tdpmmu.simulation.herd.guest import HerdGuest
    from tdpmmu.simulation.machine import Simulation
    from tdpmmu.worlds.simulate.clock import Clock

SIMPLE = frozenset(
    {
        "FaultFixed",
        "GuestAccess",
        "GuestEntered",
        "GuestLeft",
        "LockReleased",
        "LockTaken",
        "MightSleep",
        "PageMarkedDirty",
        "SpteChanged",
    }
)
"""Kinds of events of a fault that does nothing but install or change a leaf."""


@dataclass(slots=True)
class Recording:
    """A fault on its way, that may become known."""

    table: npt.NDArray[np.int64]
    pattern: int
    level: int
    cell: int
    before: int
    now: int
    turns: int
    counts: Counter[str]
    waited: int
    holds: list[tuple[str, str, int, int]] = field(default_factory=list)


class Patterns:
    """All patterns seen in one run, a table of them for each generation of memslots."""

    def __init__(self, run: Simulation, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        self._tables: dict[int, npt.NDArray[np.int64]] = {}
        self._counts: dict[tuple[int, int], dict[str, int]] = {}
        self._recordings: dict[int, Recording] = {}
        kvm = run.kvm
        self._lock = kvm.mmu_lock.name
        self._fields = tuple(
            (cell.chunk, cell.offset)
            for cell in (kvm.mmu_notifier_count, kvm.mmu_lock.writer, kvm.memslots[0])
        )

    @property
    def open(self) -> bool:
        """Whether a fault can be simple just now."""
        memory = self._run.memory
        (a, b), (c, d), _ = self._fields
        free = not memory[a][b] and memory[c][d] == NOBODY
        return free and not self._clock.locks.contended(self._lock)

    @property
    def table(self) -> npt.NDArray[np.int64]:
        """The patterns of these memslots."""
        chunk, offset = self._fields[2]
        generation = self._run.memory[chunk][offset].generation
        found = self._tables.get(generation)
        if found is None:
            shape = loop.PATTERNS, loop.PATTERN_COLUMNS
            found = self._tables[generation] = np.zeros(shape, dtype=np.int64)
        return found

    # --- recording ------------------------------------------------------------------------------

    def record(self, guest: HerdGuest, pattern: int, level: int, cell: int, now: int) -> None:
        """The guest's fault, of which nothing is known, begins."""
        thread, clock = guest.thread, self._clock
        thread.holds = []
        self._recordings[thread.number] = Recording(
            self.table,
            pattern,
            level,
            cell,
            self._run.kvm.rows.flat[cell],
            now,
            clock.turns,
            clock.ledger.counts.copy(),
            thread.locked,
        )

    def over(self, guest: HerdGuest, now: int) -> None:
        """The guest is entered again, perhaps after a fault that was watched."""
        thread = guest.thread
        seen = self._recordings.pop(thread.number, None)
        if seen is None:
            return
        holds, thread.holds = thread.holds, None
        clock = self._clock
        if clock.turns != seen.turns or thread.locked != seen.waited:
            return
        counts = Counter(clock.ledger.counts)
        counts.subtract(seen.counts)
        counts = Counter({kind: n for kind, n in counts.items() if n})
        level = seen.level
        first = guest.fault_gfn >> 9 * (level - 1) << 9 * (level - 1)
        spte = self._run.kvm.rows.flat[seen.cell]
        simple = (
            set(counts) <= SIMPLE
            and counts["SpteChanged"] == 1
            and spte & BASE_ADDR_MASK == self._run.pfn(first) << 12
            and holds is not None
            and len(holds) <= 1
            and counts["PageMarkedDirty"] <= (level == 1)
        )
        bits = spte & ~BASE_ADDR_MASK
        if seen.pattern >= loop.INSTALLS:
            fmt = self._run.format
            simple = simple and spte & seen.before == seen.before
            # The write that is tried again has to leave no other trace.
            simple = simple and fmt.allows(spte, Access.WRITE) and fmt.is_dirty(spte)
            bits = spte & ~seen.before
        known = seen.table[seen.pattern]
        if not simple:
            known[loop.STATE] = loop.OTHERWISE
            return
        assert holds is not None
        since, ns = next(((at, ns) for name, _, at, ns in holds if name == self._lock), (0, -1))
        _, free = clock.locks.line(self._lock)
        known[loop.TAKES] = now - seen.now
        known[loop.BITS] = np.uint64(bits).astype(np.int64)
        known[loop.MARKS] = counts["PageMarkedDirty"]
        known[loop.LOCK_AT] = since - seen.now
        known[loop.LOCK_NS] = ns
        known[loop.LINE_AT] = free - seen.now if free > seen.now else -1
        known[loop.STATE] = loop.SIMPLE
        self._counts[id(seen.table), seen.pattern] = dict(counts)

    def settle(self) -> None:
        """Count what was not counted one by one."""
        counts = self._clock.ledger.counts
        for table in self._tables.values():
            for pattern in np.flatnonzero(table[:, loop.TIMES]).tolist():
                times = int(table[pattern, loop.TIMES])
                table[pattern, loop.TIMES] = 0
                for kind, n in self._counts[id(table), pattern].items():
                    counts[kind] += n * times
