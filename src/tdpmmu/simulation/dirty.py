"""The dirty bitmap of a large slot: an array, of which the host's kernel makes what is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tdpmmu.events.records import DirtyLogTaken, PageMarkedDirty
from tdpmmu.machine.op import Op
from tdpmmu.mmu.dirty_log import NewDirtyBitmap, SetDirtyBit, TakeDirtyBits

if TYPE_CHECKING:
    from tdpmmu.worlds.simulate.clock import Clock
    from tdpmmu.worlds.simulate.thread import SimThread

WORD = 64

Ints = npt.NDArray[np.int64]
Gfns = range | Ints


class DirtyWords:
    """Gfns that are set, in order, by word of the bitmap: ``starts`` says where each word begins.

    The last of ``starts`` is the end.
    """

    def __init__(self, gfns: Ints) -> None:
        self.gfns = gfns
        cuts = np.flatnonzero(np.diff(gfns // WORD)) + 1
        self.starts: Ints = np.concatenate(([0], cuts, [len(gfns)][: len(gfns)]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def word(self, at: int) -> tuple[int, ...]:
        """The gfns of one."""
        return tuple(self.gfns[self.starts[at] : self.starts[at + 1]].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class FindDirty(Op):
    """Look at each word of the bitmap that has some of ``gfns``: those with bits set."""

    gfns: Gfns


@dataclass(frozen=True, slots=True)
class CopyDirtyLog(Op):
    """Userspace's copy of the bitmap: the gfns that are set."""


class DirtyBits:
    """The one slot's bitmap, and what is done with it in virtual time.

    ``taken``: how many bits were ever cleared for userspace.
    """

    def __init__(self, clock: Clock, pages: int) -> None:
        self.bits = np.zeros(pages, dtype=np.bool_)
        self.taken = 0
        self._clock = clock
        clock.handlers[SetDirtyBit] = self._set
        clock.handlers[TakeDirtyBits] = self._take
        clock.handlers[NewDirtyBitmap] = self._new
        clock.handlers[FindDirty] = self._find
        clock.handlers[CopyDirtyLog] = self._copy

    def _set(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, SetDirtyBit)
        self.bits[op.gfn] = True
        thread.step.emit(PageMarkedDirty(op.as_id, op.gfn))
        self._clock.complete(thread, None, self._clock.costs.dirty_bit)
        return True

    def _take(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, TakeDirtyBits)
        taken = tuple(gfn for gfn in op.gfns if self.bits[gfn])
        if taken:
            self.bits[list(taken)] = False
            self.taken += len(taken)
            thread.step.emit(DirtyLogTaken(op.as_id, taken))
        self._clock.complete(thread, taken, self._clock.costs.dirty_word)
        return True

    def take(self, gfns: Ints) -> None:
        """Clear these for userspace, which are set."""
        self.bits[gfns] = False
        self.taken += len(gfns)

    def _new(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, NewDirtyBitmap)
        self.bits = np.zeros(len(self.bits), dtype=np.bool_)
        if op.full:
            self.bits[:] = True
            self._clock.ledger.counts["PageMarkedDirty"] += len(self.bits)
        self._clock.complete(thread, None, self._clock.costs.ioctl)
        return True

    def _find(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, FindDirty)
        gfns = op.gfns
        if isinstance(gfns, range):
            words = -(-len(gfns) // WORD)
            found = np.flatnonzero(self.bits[gfns.start : gfns.stop]) + gfns.start
        else:
            words = len(np.unique(gfns // WORD))
            found = gfns[self.bits[gfns]]
        self._clock.complete(thread, DirtyWords(found), words * self._clock.costs.read)
        return True

    def _copy(self, thread: SimThread, op: Op) -> bool:
        words = -(-len(self.bits) // WORD)
        price = words * self._clock.costs.read
        self._clock.complete(thread, np.flatnonzero(self.bits), price)
        return True
