"""The dirty log's words, many in one operation: bits are cleared, and what they stood for is armed.

What a word costs depends only on how far apart its bits are, on where it begins in a cache line, on
where it ends in its table, and on what the leaves look like that it is about.  The first word of
such a *shape* is rehearsed: the kernel's own code for it is run operation by operation, and what it
has changed is put back.  Words are done at once as long as nobody else has a turn, and guests only
touch what hits afterwards, too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.spte import BASE_ADDR_MASK, PAGE_SHIFT
from tdpmmu.arch.table import TABLE_PFN, ReadHeader, ReadSpte, Spte
from tdpmmu.events.records import Event, LockReleased, LockTaken
from tdpmmu.kernel.locks import AssertHeld, HeldForWrite
from tdpmmu.kernel.rcu import ReadLock, ReadUnlock
from tdpmmu.kernel.refcount import IncNotZero
from tdpmmu.machine.op import Add, Emit, Op, Read
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.simulation.dirty import DirtyWords
from tdpmmu.simulation.masks import present_mask
from tdpmmu.simulation.tables import ENTRIES, EntryCell
from tdpmmu.worlds.live import LiveStep, Memory
from tdpmmu.worlds.simulate.scan import LINE_SPTES, Scan

if TYPE_CHECKING:
    from tdpmmu.simulation.machine import Simulation
    from tdpmmu.worlds.simulate.clock import Clock
    from tdpmmu.worlds.simulate.thread import SimThread

Ints = npt.NDArray[np.int64]
Row = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

LEAST, MOST = 16, 1 << 16
"""Words in one operation, at most: twice as many after all of them could be done."""

CLASSES = 6
"""How many sorts of leaves words may have, that some bits are cleared from."""

SHAPE_BITS = 6 + 3 + 3 + 3
"""How far apart a word's bits are; whether tables begin and end where it does; where in a line."""

HARMLESS = (Read, ReadHeader, ReadSpte, Emit, AssertHeld, HeldForWrite, Add, IncNotZero, Spte)
"""What the code for a word does; whatever else it does is for the clock."""


@dataclass(frozen=True, slots=True, eq=False)
class ArmWords(Op):
    """Take words out of the bitmap from ``first`` on, and arm their gfns: how many were done."""

    slot: Memslot
    words: DirtyWords
    first: int


@dataclass(frozen=True, slots=True)
class Known:
    """What a word of some shape takes, and which events it causes."""

    ns: int
    counts: dict[str, int]


class Rehearsal(LiveStep):
    """A step that can be taken back."""

    __slots__ = ("counts", "undo")

    def __init__(self, memory: Memory, thread: int) -> None:
        super().__init__(memory, thread)
        self.undo: list[tuple[Cell, Any]] = []
        self.counts: Counter[str] = Counter()

    def __setitem__(self, cell: Cell, value: Any) -> None:
        self.undo.append((cell, self[cell]))
        super().__setitem__(cell, value)

    def emit(self, event: Event) -> None:
        self.counts[event.__class__.__name__] += 1

    def touch(self, cell: Cell, write: bool) -> None:
        """Neither lifetimes nor guards are looked at."""

    def take_back(self) -> dict[tuple[int, int], int]:
        """All is as it was; the last values of the entries that had been changed, by row."""
        last: dict[tuple[int, int], int] = {}
        for cell, old in reversed(self.undo):
            if isinstance(cell, EntryCell):
                last.setdefault((cell.page.number, cell.index), self[cell])
            super().__setitem__(cell, old)
        return last


class Shapes:
    """The words of one call, of which each shape is rehearsed once."""

    def __init__(self, run: Simulation, clock: Clock, thread: SimThread, op: ArmWords) -> None:
        self._run = run
        self._clock = clock
        self._thread = thread
        self._slot = op.slot
        self._words = op.words
        self._known: dict[int, Known | None] = {}
        self._classes: dict[int, int] = {}
        fmt = run.format
        self._bits = fmt.dirty if run.mmu.logs_by_cpu() else fmt.writable
        self.batch = LEAST

    def do(self, first: int, limit: int) -> tuple[int, int]:
        """How many words from ``first`` on can be done before ``limit``, and what they take."""
        run, words = self._run, self._words
        last = min(first + self.batch, len(words))
        starts = words.starts[first : last + 1]
        gfns = words.gfns[starts[0] : starts[-1]]
        starts = starts - starts[0]
        tables, found = self._tables(gfns)
        if not found.all():
            # A word is in one table: those up to the first that has none.
            last = first + int(np.searchsorted(starts, int(np.argmin(found)), side="right")) - 1
            starts = starts[: last - first + 1]
            gfns, tables = gfns[: starts[-1]], tables[: starts[-1]]
        if last == first:
            return 0, 0
        index = gfns & ENTRIES - 1
        entries = run.kvm.rows.array[tables, index]
        bits = np.uint64(self._bits)
        clears = present_mask(run.format, entries) & (entries & bits != 0)
        keys = self._keys(gfns, starts, entries, clears)
        kinds, at, which = np.unique(keys, return_index=True, return_inverse=True)
        prices = [
            self._price(int(kind), first + int(one), starts, int(one), tables, entries, clears)
            for kind, one in zip(kinds, at, strict=True)
        ]
        bad = [number for number, known in enumerate(prices) if known is None]
        count = len(keys)
        if bad:
            count = int(np.argmax(np.isin(which, bad)))
        ns = np.array([0 if known is None else known.ns for known in prices], dtype=np.int64)
        over = np.cumsum(ns[which[:count]])
        count = int(np.searchsorted(over, limit - self._thread.now, side="left"))
        if not count:
            return 0, 0
        end = int(starts[count])
        run.kvm.rows.array[tables[:end], index[:end]] = np.where(
            clears[:end], entries[:end] & ~bits, entries[:end]
        )
        # Whoever finds now what he needs finds it at any time before.
        seen = run.hits_until(self._thread.now + int(over[count - 1]) + 1)
        possible = int(np.searchsorted(over[:count], seen - self._thread.now, side="left"))
        if possible < count:
            back = slice(int(starts[possible]), end)
            run.kvm.rows.array[tables[back], index[back]] = entries[back]
            count = possible
        self._count(prices, which[:count])
        run.dirty.take(gfns[: starts[count]])
        return count, int(over[count - 1]) if count else 0

    def _tables(self, gfns: Ints) -> tuple[Ints, Mask]:
        """The last-level table of each gfn, by row, and whether there is one."""
        kvm, fmt = self._run.kvm, self._run.format
        (root,) = self._roots()
        regions, which = np.unique(gfns >> 9, return_inverse=True)
        rows = np.full(len(regions), root, dtype=np.int64)
        there = np.ones(len(regions), dtype=np.bool_)
        for level in range(kvm.geometry.levels, 1, -1):
            entries = kvm.rows.array[rows, regions >> 9 * (level - 2) & ENTRIES - 1]
            there &= present_mask(fmt, entries) & (entries & np.uint64(fmt.large) == 0)
            below = (entries & np.uint64(BASE_ADDR_MASK)) >> np.uint64(PAGE_SHIFT)
            rows = np.where(there, below.astype(np.int64) - TABLE_PFN, 0)
        return rows[which], there[which]

    def _roots(self) -> tuple[int, ...]:
        cell = self._run.kvm.tdp_mmu_roots
        return tuple(page.number for page in self._run.memory[cell.chunk][cell.offset])

    def _keys(self, gfns: Ints, starts: Ints, entries: Row, clears: Mask) -> Ints:
        """The shape of each word as one number."""
        firsts, lasts = gfns[starts[:-1]], gfns[starts[1:] - 1]
        keys: Ints = lasts - firsts
        for shift in (9, 18, 27):
            keys = keys << 1 | (firsts & (1 << shift) - 1 == 0)
        for shift in (0, 9, 18):
            keys = keys << 1 | (lasts >> shift & ENTRIES - 1 == ENTRIES - 1)
        keys = keys * LINE_SPTES + firsts % LINE_SPTES
        sorts = entries & ~np.uint64(BASE_ADDR_MASK)
        # Only the lines after the first one are fetched ahead.
        dear = gfns // LINE_SPTES == np.repeat(firsts, np.diff(starts)) // LINE_SPTES
        sorts |= dear.astype(np.uint64) << np.uint64(PAGE_SHIFT)
        for sort in np.unique(sorts[clears]).tolist():
            self._classes.setdefault(sort, len(self._classes))
        for sort, number in self._classes.items():
            if number < CLASSES:
                here = (clears & (sorts == np.uint64(sort))).astype(np.int64)
                keys = keys + (np.add.reduceat(here, starts[:-1]) << SHAPE_BITS + 7 * number)
        strange = [sort for sort, number in self._classes.items() if number >= CLASSES]
        if strange:
            here = (clears & np.isin(sorts, np.array(strange, dtype=np.uint64))).astype(np.int64)
            keys = np.where(np.add.reduceat(here, starts[:-1]) > 0, -1, keys)
        return keys

    def _price(
        self,
        key: int,
        word: int,
        starts: Ints,
        at: int,
        tables: Ints,
        entries: Row,
        clears: Mask,
    ) -> Known | None:
        """What words like this one take; None: they have to be done one by one."""
        if key < 0:
            return None
        if key not in self._known:
            part = slice(int(starts[at]), int(starts[at + 1]))
            gfns = self._words.word(word)
            bits = self._bits
            expected = {
                (int(table), gfn & ENTRIES - 1): int(entry) & ~bits
                for gfn, table, entry, clear in zip(
                    gfns, tables[part], entries[part], clears[part], strict=True
                )
                if clear
            }
            known, changed = self._rehearse(gfns)
            self._known[key] = known if changed == expected else None
        return self._known[key]

    def _rehearse(self, word: tuple[int, ...]) -> tuple[Known | None, dict[tuple[int, int], int]]:
        """The code of one word, and which entries it has left changed."""
        run, clock = self._run, self._clock
        step = Rehearsal(run.memory, self._thread.number)
        ns = run.costs.dirty_word
        step.counts["DirtyLogTaken"] += 1
        body = run.mmu.arm_gfns(self._slot, word, 0)
        result: Any = None
        complete = False
        scan = Scan()
        while True:
            try:
                op = body.send(result)
            except StopIteration:
                complete = True
                break
            if isinstance(op, (ReadLock, ReadUnlock)):
                kind = LockTaken if isinstance(op, ReadLock) else LockReleased
                step.counts[kind.__name__] += 1
                ns += run.costs.rcu
                result = None
            elif isinstance(op, HARMLESS):
                result = op.apply(step, 0)
                ns += clock.spte_price(op, scan) if isinstance(op, Spte) else clock.price(op)
            else:
                body.close()
                break
        changed = step.take_back()
        return Known(ns, dict(step.counts)) if complete else None, changed

    def _count(self, prices: list[Known | None], which: Ints) -> None:
        counts = self._clock.ledger.counts
        for number, times in enumerate(np.bincount(which, minlength=len(prices)).tolist()):
            known = prices[number]
            if known is not None and times:
                for kind, n in known.counts.items():
                    counts[kind] += n * times


class WordOps:
    """The operation in virtual time."""

    def __init__(self, run: Simulation, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        self._shapes: tuple[DirtyWords, Shapes] | None = None
        clock.handlers[ArmWords] = self._arm

    def _arm(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, ArmWords)
        clock = self._clock
        limit = min(clock.next_but_guests(), clock.until)
        done = ns = 0
        if limit - thread.now > self._run.costs.dirty_word and self._run.numa is None:
            if self._shapes is None or self._shapes[0] is not op.words:
                self._shapes = op.words, Shapes(self._run, clock, thread, op)
            shapes = self._shapes[1]
            done, ns = shapes.do(op.first, limit)
            shapes.batch = min(MOST, 2 * done) if done == shapes.batch else max(LEAST, done)
        clock.complete(thread, done, ns)
        return True
