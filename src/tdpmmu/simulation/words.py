"""The dirty log's words, many in one operation: bits are cleared, and what they stood for is armed.

What a word costs depends only on how far apart its bits are, on where it begins in a cache line, on
where it ends in its table, on what the leaves look like that it is about, and on where all that is
(`places.py`).  The first word of
such a *shape* is rehearsed: the kernel's own code for it is run operation by operation, and what it
has changed is put back.  Words are done at once as long as nobody else has a turn, and guests only
touch what hits afterwards, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.spte import BASE_ADDR_MASK, PAGE_SHIFT
from tdpmmu.arch.table import ReadHeader, ReadSpte, Spte
from tdpmmu.events.records import LockReleased, LockTaken, PfnMarkedDirty
from tdpmmu.kernel.locks import AssertHeld, HeldForWrite
from tdpmmu.kernel.rcu import ReadLock, ReadUnlock
from tdpmmu.kernel.refcount import IncNotZero
from tdpmmu.machine.op import Add, Emit, Op, Read
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.simulation.dirty import DirtyWords
from tdpmmu.simulation.masks import present_mask
from tdpmmu.simulation.places import NOWHERE, Fetches, Places
from tdpmmu.simulation.tables import ENTRIES
from tdpmmu.simulation.undo import Rehearsal
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


class Shapes:
    """The shapes of a slot's words, each of which is rehearsed once."""

    def __init__(self, run: Simulation, clock: Clock, thread: SimThread, slot: Memslot) -> None:
        self._run = run
        self._clock = clock
        self._thread = thread
        self._slot = slot
        self._known: dict[int, Known | None] = {}
        self._classes: dict[int, int] = {}
        cell = run.kvm.tdp_mmu_roots
        (root,) = run.memory[cell.chunk][cell.offset]
        self._places = Places(run, root.number)
        fmt = run.format
        self._bits = fmt.dirty if run.mmu.logs_by_cpu() else fmt.writable
        self._marks = run.numa is not None and run.numa.marks

    def do(self, words: DirtyWords, first: int, last: int, limit: int) -> tuple[int, int]:
        """How many from ``first`` on, up to ``last``, can be done before ``limit``; their time."""
        run, thread = self._run, self._thread
        starts = words.starts[first : last + 1]
        gfns = words.gfns[starts[0] : starts[-1]]
        starts = starts - starts[0]
        tables, there, places = self._places.find(gfns, thread)
        index = gfns & ENTRIES - 1
        entries = run.kvm.rows.array[tables, index]
        bits = np.uint64(self._bits)
        clears = there & present_mask(run.format, entries) & (entries & bits != 0)
        keys = self._keys(gfns, starts, entries, clears, places[starts[:-1]])
        fetches = None
        if self._marks:
            cleared = np.flatnonzero(clears)
            fetches = Fetches(run, thread, gfns[cleared], np.searchsorted(cleared, starts))
            keys[fetches.words[fetches.costs == NOWHERE]] = -1
        kinds, at, which = np.unique(keys, return_index=True, return_inverse=True)
        prices = [
            self._price(
                int(kind),
                words.word(first + int(one)),
                slice(*starts[one : one + 2]),
                tables,
                entries,
                clears,
            )
            for kind, one in zip(kinds, at, strict=True)
        ]
        bad = [number for number, known in enumerate(prices) if known is None]
        count = len(keys)
        if bad:
            count = int(np.argmax(np.isin(which, bad)))
        ns = np.array([0 if known is None else known.ns for known in prices], dtype=np.int64)[which]
        if fetches is not None:
            np.add.at(ns, fetches.words, fetches.costs)
        over = np.cumsum(ns[:count])
        count = int(np.searchsorted(over, limit - thread.now, side="left"))
        if not count:
            return 0, 0
        end = int(starts[count])
        rows = run.kvm.rows.array
        cells = tables[:end][clears[:end]], index[:end][clears[:end]]
        rows[cells] &= ~bits
        # Whoever finds now what he needs finds it at any time before.
        seen = run.hits_until(thread.now + int(over[count - 1]) + 1)
        possible = int(np.searchsorted(over[:count], seen - thread.now, side="left"))
        if possible < count:
            back = slice(int(starts[possible]), end)
            undone = clears[back]
            rows[tables[back][undone], index[back][undone]] = entries[back][undone]
            count = possible
        self._count(prices, which[:count])
        run.dirty.take(gfns[: starts[count]])
        took = int(over[count - 1]) if count else 0
        if fetches is not None:
            fetches.done(count, thread.now + took)
        return count, took

    def _keys(self, gfns: Ints, starts: Ints, entries: Row, clears: Mask, places: Ints) -> Ints:
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
        keys = np.where(places == NOWHERE, -1, keys + (places << SHAPE_BITS + 7 * CLASSES))
        strange = [sort for sort, number in self._classes.items() if number >= CLASSES]
        if strange:
            here = (clears & np.isin(sorts, np.array(strange, dtype=np.uint64))).astype(np.int64)
            keys = np.where(np.add.reduceat(here, starts[:-1]) > 0, -1, keys)
        return keys

    def _price(
        self,
        key: int,
        word: tuple[int, ...],
        part: slice,
        tables: Ints,
        entries: Row,
        clears: Mask,
    ) -> Known | None:
        """What words like this one take; None: they have to be done one by one."""
        if key < 0:
            return None
        if key not in self._known:
            bits = self._bits
            expected = {
                (int(table), gfn & ENTRIES - 1): int(entry) & ~bits
                for gfn, table, entry, clear in zip(
                    word, tables[part], entries[part], clears[part], strict=True
                )
                if clear
            }
            known, changed = self._rehearse(word)
            if self._marks and known is not None:
                marked = known.counts.get("PfnMarkedDirty", 0)
                known = known if marked == len(expected) else None
            self._known[key] = known if changed == expected else None
        return self._known[key]

    def _rehearse(self, word: tuple[int, ...]) -> tuple[Known | None, dict[tuple[int, int], int]]:
        """The code of one word, and which entries it has left changed."""
        run = self._run
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
                ns += self._takes(op, scan)
            else:
                body.close()
                break
        changed = step.take_back()
        return Known(ns, dict(step.counts)) if complete else None, changed

    def _takes(self, op: Op, scan: Scan) -> int:
        """One operation; lines of other CPUs come on top of that."""
        run, clock, thread = self._run, self._clock, self._thread
        if isinstance(op, Spte):
            far = run.numa.far_entry(thread, op, scan) if run.numa is not None else 0
            return far + clock.spte_price(op, scan)
        ns = clock.price(op)
        if self._marks and isinstance(op, Emit) and isinstance(op.event, PfnMarkedDirty):
            assert run.numa is not None
            ns += run.numa.far_page(thread, run.kvm.memory.gfn_of(op.event.pfn))
        return ns

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
        self._shapes: dict[tuple[int, Memslot], Shapes] = {}
        self._batch = LEAST
        clock.handlers[ArmWords] = self._arm

    def _arm(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, ArmWords)
        clock = self._clock
        limit = min(clock.next_but_guests(), clock.until)
        done = ns = 0
        if limit - thread.now > self._run.costs.dirty_word:
            key = thread.number, op.slot
            if key not in self._shapes:
                self._shapes[key] = Shapes(self._run, clock, thread, op.slot)
            last = min(op.first + self._batch, len(op.words))
            done, ns = self._shapes[key].do(op.words, op.first, last, limit)
            self._batch = min(MOST, 2 * done) if done == self._batch else max(LEAST, done)
        clock.complete(thread, done, ns)
        return True
