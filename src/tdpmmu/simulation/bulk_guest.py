"""A guest whose hits are looked up many at a time.

It plans a *window*: the times of its next touches, as far as they hit.  A hit touches nothing that
others can see, so the guest has to be looked at only where one does not.  Whoever changes what
others have planned with makes them look at it again (``windows.py``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.spte import Access
from tdpmmu.simulation.guest import ACCESSES, Touches
from tdpmmu.simulation.macro import Macros, Recording
from tdpmmu.simulation.tables import SimKvm
from tdpmmu.simulation.vcpu import FAULTS, PML_ENTRIES, PML_FULL, StepGuest
from tdpmmu.simulation.walk import Walker
from tdpmmu.simulation.windows import (
    LARGEST,
    LEVEL_SHIFT,
    NONE,
    SMALLEST,
    Ints,
    Tlb,
    Windows,
)
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.ledger import REFILL, Ledger
from tdpmmu.worlds.simulate.ops import FOREVER, KICKED
from tdpmmu.worlds.simulate.thread import SimThread


class BulkGuest(StepGuest):
    """The same guest, in windows."""

    def __init__(
        self,
        kvm: SimKvm,
        vcpu: VcpuCells,
        thread: SimThread,
        costs: Costs,
        ledger: Ledger,
        walker: Walker,
        macros: Macros,
        bring_forward: Callable[[SimThread, int], None],
        windows: Windows,
    ) -> None:
        super().__init__(kvm, vcpu, thread, costs, ledger)
        self.walker = walker
        self.macros = macros
        self.recording: Recording | None = None
        self.tlb = Tlb(costs.tlb_entries)
        self._bring_forward = bring_forward
        self._refills = np.array([0, *(costs.refill(level) for level in (1, 2, 3))])
        self._size = SMALLEST
        self._first = 0
        self._count = 0
        self._shift = 0
        self._times: Ints = np.empty(0, dtype=np.int64)
        self._regions = windows.rows[len(windows.guests)]
        windows.guests.append(self)
        self._stops: list[int] = []
        self._next = 0
        self._fill_at = self._fill_key = self._fill_price = NONE
        self._after = 0
        self._away = True
        self._upcoming: Touches | None = None
        self._gfns: Ints = np.empty(0, dtype=np.int64)
        self._access = np.empty(0, dtype=np.uint8)
        self._thinks: Ints = np.empty(0, dtype=np.int64)
        self._tag: npt.NDArray[np.uint8] | None = None

    def root(self) -> int:
        """The number of the root that is loaded."""
        number: int = self.thread.step[self.vcpu.loaded][0]
        return number

    # --- the world's side -----------------------------------------------------------------------

    def enter(self, now: int) -> int:
        if self.recording is not None:
            self.macros.over(self, now)
        if self.left >= FOREVER:
            self.due, self._count = FOREVER, 0
            return FOREVER
        self._away = False
        if not self._count:
            # A plan can wait until the next touch: an IPI may well come before that.
            self._size = max(SMALLEST, self._size // 2)
            self.due = now + self.left
            return self.due
        # What was planned before the guest was left is still right, but for the time.
        self._shift += now + self.left - self._time(self.at - self._first)
        return self._due()

    def kick(self, now: int) -> str:
        if self._count:
            reached = int(np.searchsorted(self._times, now - self._shift))
            # What is passed may have come earlier than the window's times, moved by a fault, say.
            index = max(self.at - self._first, min(reached, self._stop()))
            when = self._time(index)
            self._pass(index)
            self.left = FOREVER if when >= FOREVER else max(0, when - now)
            self._leave(index)
        elif self.due < FOREVER:
            self.left = max(0, self.due - now)
        return KICKED

    def _leave(self, index: int) -> None:
        """Out of the guest before that touch of the window."""
        self._away = True
        if index == self._count:
            self._count = 0

    def flushed(self) -> None:
        self.tlb.clear()
        self._count = 0

    def settle(self, until: int) -> None:
        """Count what has hit by then."""
        if self._count and not self._away:
            reached = int(np.searchsorted(self._times, until - self._shift, side="right"))
            self._pass(min(reached, self._stop()))

    def reach(self, now: int) -> int | str:
        stop = self._stop()
        self._pass(stop)
        if stop == self._count:
            if self._count:
                self._size = min(LARGEST, 4 * self._size)
            due = self._plan(now)
            if self._stop():
                return due
        return self._look_at(now)

    # --- planning -------------------------------------------------------------------------------

    def _plan(self, when: int) -> int:
        """A window from the touch that is next, which comes at ``when``."""
        at = self.at
        gfns = self._gfns[at : at + self._size]
        count = len(gfns)
        hit, level = self.walker(self.root(), gfns, self._access[at : at + count])
        if self.since >= 0:
            # The touch that a fault was for: when it goes through is written down.
            hit[0] = False
        cost = np.full(count, self.costs.access, dtype=np.int64)
        self._fill_at = self._fill_key = self._fill_price = NONE
        room = self.tlb.room
        if room > 0:
            self._plan_fills(gfns, hit, level, cost, room)
        self._times = np.empty(count, dtype=np.int64)
        self._times[0] = when
        steps = cost + self._thinks[at + 1 : at + count + 1]
        np.cumsum(steps[:-1], out=self._times[1:])
        self._times[1:] += when
        self._after = int(self._times[-1] + steps[-1])
        self._regions[:count] = gfns >> 9
        self._regions[count:] = -1
        self._stops = np.nonzero(~hit)[0].tolist()
        self._next = 0
        self._first, self._count, self._shift, self._away = at, count, 0, False
        return self._due()

    def _plan_fills(
        self,
        gfns: Ints,
        hit: npt.NDArray[np.bool_],
        level: Ints,
        cost: Ints,
        room: int,
    ) -> None:
        """Which hits cost a walk: first ones of pages that the TLB does not hold."""
        where = np.flatnonzero(hit)
        keys = (gfns[where] >> 9 * (level[where] - 1)) | level[where] << LEVEL_SHIFT
        unique, first = np.unique(keys, return_index=True)
        held = self.tlb.held()
        if len(held):
            at = np.minimum(np.searchsorted(held, unique), len(held) - 1)
            new = held[at] != unique
            unique, first = unique[new], first[new]
        order = np.argsort(first)[:room]
        self._fill_at = where[first[order]]
        self._fill_key = unique[order]
        self._fill_price = self._refills[self._fill_key >> LEVEL_SHIFT]
        cost[self._fill_at] += self._fill_price

    def _stop(self) -> int:
        """The touch of the window, by its number there, up to which all is planned."""
        if not self._count:
            return 0
        return self._stops[self._next] if self._next < len(self._stops) else self._count

    def _time(self, index: int) -> int:
        """When a touch of the window, or the one after it, comes."""
        if index < self._count:
            return int(self._times[index]) + self._shift
        return self._after + self._shift

    def _due(self) -> int:
        self.due = min(FOREVER, self._time(self._stop()))
        return self.due

    def _pass(self, index: int) -> None:
        """All touches of the window before that one have hit."""
        passed = self._first + index - self.at if self._count else 0
        if passed <= 0:
            return
        self.ledger.counts["GuestAccess"] += passed
        if len(self._fill_at):
            done = int(np.searchsorted(self._fill_at, index))
            if done:
                self.tlb.update(self._fill_key[:done])
                self.ledger.stalled(REFILL, int(self._fill_price[:done].sum()))
                self._fill_at = self._fill_at[done:]
                self._fill_key = self._fill_key[done:]
                self._fill_price = self._fill_price[done:]
        self.at += passed
        if self.at == len(self._gfns):
            self._next_batch()

    def unsettle(self, touches: list[int], by: SimThread) -> None:
        """These touches of the window, in order, have to be looked at one by one."""
        if not self._count:
            return
        here = self.at - self._first
        if not self._away:
            # Of what happens at one time, the thread with the smaller number does it first.
            side: Literal["left", "right"] = "left" if by.number < self.thread.number else "right"
            passed = int(np.searchsorted(self._times, by.now - self._shift, side=side))
            here = max(here, passed)
        stops = self._stops
        for index in touches[bisect_left(touches, here) :]:
            at = bisect_left(stops, index, self._next)
            if at == len(stops) or stops[at] != index:
                stops.insert(at, index)
        self._bring_forward(self.thread, self._due())

    # --- one touch ------------------------------------------------------------------------------

    def _look_at(self, now: int) -> int | str:
        """The touch that is next, by what the tables say now."""
        index = self.at - self._first
        gfn, access = int(self._gfns[self.at]), int(self._access[self.at])
        kind = ACCESSES[access]
        fmt = self.kvm.format
        level, row, spte = self.walker.find(self.root(), gfn)
        self.ledger.counts["GuestAccess"] += 1
        if not fmt.is_shadow_present(spte):
            hit, level, present = False, level, False
        elif not fmt.allows(spte, kind) or (kind is Access.WRITE and not fmt.is_dirty(spte)):
            hit, level, present = self._look(gfn, kind)
        else:
            hit, present = True, True
        if not hit:
            if self.since < 0:
                self.since = now
            over = -1
            if spte == fmt.nonpresent:
                over = self.macros.try_one(self, now, gfn, access, level, row)
            if over < 0:
                self.fault_gfn, self.fault_access, self.fault_present = gfn, kind, present
                self.left = 0
                self._leave(index)
                return FAULTS
            now = over
            self.ledger.counts["GuestAccess"] += 1
        if self.since >= 0:
            self._fault_over(now)
        refill, stale = self._fill(gfn, level)
        stale = stale or self._planned_fill(index)
        self._advance()
        self._next += 1
        due = now + self.costs.access + refill + self.left
        if self.at == 0 or stale:
            self._count = 0
        if len(self.thread.step[self.vcpu.pml]) >= PML_ENTRIES:
            self.left = min(FOREVER, due - now)
            self._away = True
            return PML_FULL
        if self.left >= FOREVER:
            self.due, self._count = FOREVER, 0
            return FOREVER
        if not self._count:
            return self._plan(due)
        self._shift += due - self._time(index + 1)
        return self._due()

    def _fill(self, gfn: int, level: int) -> tuple[int, bool]:
        """The walk of a touch that is looked at by itself; whether that upsets the window."""
        key = (gfn >> 9 * (level - 1)) | level << LEVEL_SHIFT
        room = self.tlb.room
        if key in self.tlb or room <= 0:
            return 0, False
        self.tlb.add(key)
        refill = self.costs.refill(level)
        self.ledger.stalled(REFILL, refill)
        if len(self._fill_at) == 0:
            return refill, False
        if (self._fill_key == key).any():
            return refill, True
        if len(self._fill_at) == room:
            self._drop_fill()
        return refill, False

    def _drop_fill(self) -> None:
        """The last walk of the window finds no room in the TLB any more."""
        last, price = int(self._fill_at[-1]), int(self._fill_price[-1])
        self._fill_at = self._fill_at[:-1]
        self._fill_key = self._fill_key[:-1]
        self._fill_price = self._fill_price[:-1]
        self._times[last + 1 :] -= price
        self._after -= price

    def _planned_fill(self, index: int) -> bool:
        """Whether the window has a walk for a touch that was looked at by itself after all."""
        return len(self._fill_at) > 0 and int(self._fill_at[0]) == index

    # --- batches --------------------------------------------------------------------------------

    def start(self, batches: Iterator[Touches]) -> None:
        self.batches = batches
        self._upcoming = self._following()
        self._next_batch()

    def _advance(self) -> None:
        self.at += 1
        if self.at == len(self._gfns):
            self._next_batch()
        else:
            self.left = int(self._thinks[self.at])

    def _touch(self) -> tuple[int, int]:
        return int(self._gfns[self.at]), 0 if self._tag is None else int(self._tag[self.at])

    def _following(self) -> Touches | None:
        return next((batch for batch in self.batches if len(batch.gfn)), None)

    def _next_batch(self) -> None:
        batch = self._upcoming
        self.at = 0
        if batch is None:
            self._gfns, self.left = NONE, FOREVER
            return
        self.left = int(batch.think_ns[0])
        self._tag = batch.tag
        self._upcoming = following = self._following()
        self._gfns = batch.gfn
        self._access = batch.access
        # After the last touch comes the next batch's first one.
        think = FOREVER if following is None else int(following.think_ns[0])
        self._thinks = np.append(batch.think_ns, think)
