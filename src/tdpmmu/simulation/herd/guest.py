"""One guest of the herd, as its vCPU's thread sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.arch.hardware import EXITING, IN_GUEST, VcpuCells
from tdpmmu.simulation.guest import ACCESSES, Touches
from tdpmmu.simulation.herd import loop
from tdpmmu.simulation.vcpu import FAULTS, PML_ENTRIES, StepGuest
from tdpmmu.worlds.simulate.ops import FOREVER, KICKED
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.simulation.herd.herd import Herd

CHUNK = 2048
"""How many of a guest's next touches are in the arrays."""


class HerdGuest(StepGuest):
    """The same guest, whose touches and TLB are rows of the herd's arrays."""

    def __init__(self, herd: Herd, vcpu: VcpuCells, thread: SimThread) -> None:
        self._herd = herd
        self._number = number = vcpu.number
        self._row = herd.cpus[number].data
        super().__init__(herd.kvm, vcpu, thread, herd.costs, herd.ledger)
        self._touches = herd.touches[number]
        self._batch: Touches | None = None
        self._taken = 0

    # --- the world's side -----------------------------------------------------------------------

    def enter(self, now: int) -> int:
        row, step, vcpu = self._row, self.thread.step, self.vcpu
        self._herd.patterns.over(self, now)
        due = row[loop.DUE] = min(FOREVER, now + self.left)
        row[loop.KICKED] = FOREVER
        row[loop.ROOT] = step[vcpu.loaded][0]
        row[loop.BUSY] = loop.OTHERS * bool(
            step[vcpu.request]
            or step[vcpu.reload]
            or step[vcpu.apic_reload]
            or step[vcpu.ipi]
            or step[vcpu.pml]
            or step[vcpu.mode] == EXITING
            or self._herd.caches.low(self._number)
        )
        row[loop.RUNS] = 1
        return due

    def kick(self, now: int) -> str:
        self._leave()
        due = self._row[loop.DUE]
        self.left = FOREVER if due >= FOREVER else max(0, due - now)
        return KICKED

    def ask(self) -> None:
        """Somebody asks something of the running guest: its next fault is not like others."""
        self._row[loop.BUSY] = loop.OTHERS

    def flushed(self) -> None:
        self._herd.flush_tlb(self._number)

    def _leave(self) -> None:
        row = self._row
        row[loop.RUNS] = 0
        if row[loop.IPI]:
            row[loop.IPI] = 0
            self._herd.words[loop.IPIS] -= 1

    def told(self) -> None:
        """An IPI is on its way that the compiled loop has sent."""
        self.thread.step[self.vcpu.ipi] = True
        self.thread.kicked_at = self._row[loop.KICKED]

    def bounced(self) -> None:
        """It has left, flushed and entered again: what that comes to."""
        step, vcpu = self.thread.step, self.vcpu
        step[vcpu.ipi] = step[vcpu.request] = False
        step[vcpu.mode] = IN_GUEST
        self.thread.kicked_at = -1

    # --- touches --------------------------------------------------------------------------------

    @property
    def since(self) -> int:
        return int(self._row[loop.SINCE])

    @since.setter
    def since(self, value: int) -> None:
        self._row[loop.SINCE] = value

    def look(self, now: int) -> str | None:
        """The touch that is next, by what the tables say now: None if it hits after all."""
        gfn, access, _ = self._next()
        kind = ACCESSES[access]
        hit, _, present = self._look(gfn, kind)
        if hit:
            logged = self.thread.step[self.vcpu.pml]
            if logged:
                self.ask()
            self._row[loop.FULL] = len(logged) >= PML_ENTRIES
            return None
        self.ledger.counts["GuestAccess"] += 1
        if self.since < 0:
            self.since = now
        self.fault_gfn, self.fault_access, self.fault_present = gfn, kind, present
        self.left = 0
        self._leave()
        return FAULTS

    def passed(self, now: int) -> bool:
        """A touch has hit, and that was the last one there is room for, or fills a log.

        True if the guest has to leave for its log.
        """
        row = self._row
        if row[loop.AT] == row[loop.END]:
            self._load()
            row[loop.DUE] = min(FOREVER, row[loop.DUE] + self.left)
        elif row[loop.FULL]:
            row[loop.DUE] = min(FOREVER, row[loop.DUE] + int(self._touches[row[loop.AT], 0]))
        if not row[loop.FULL]:
            return False
        row[loop.FULL] = 0
        self._leave()
        self.left = row[loop.DUE] - now
        return True

    def _next(self) -> tuple[int, int, int]:
        """Gfn, access and tag of the touch that is next."""
        what = int(self._touches[self._row[loop.AT], loop.WHAT])
        return (
            what & loop.GFN_MASK,
            what >> loop.ACCESS_SHIFT & 15,
            what >> loop.TAG_SHIFT,
        )

    def _touch(self) -> tuple[int, int]:
        gfn, _, tag = self._next()
        return gfn, tag

    def _advance(self) -> None:
        row = self._row
        row[loop.AT] += 1
        if row[loop.AT] == row[loop.END]:
            self._load()
        else:
            self.left = int(self._touches[row[loop.AT], loop.THINK])

    # --- batches --------------------------------------------------------------------------------

    def start(self, batches: Iterator[Touches]) -> None:
        self.batches = batches
        self._load()

    def _load(self) -> None:
        """The next touches, from the batch that is at hand or another."""
        row = self._row
        while self._batch is None or self._taken == len(self._batch.gfn):
            self._batch = next(self.batches, None)
            self._taken = 0
            if self._batch is None:
                row[loop.AT] = row[loop.END] = 0
                self.left = FOREVER
                return
        batch, first = self._batch, self._taken
        last = min(first + CHUNK, len(batch.gfn))
        into = self._touches[: last - first]
        into[:, loop.THINK] = batch.think_ns[first:last]
        what = batch.access[first:last].astype(np.int64) << loop.ACCESS_SHIFT
        what |= batch.gfn[first:last]
        if batch.tag is not None:
            what |= batch.tag[first:last].astype(np.int64) << loop.TAG_SHIFT
        into[:, loop.WHAT] = what
        self._taken = last
        row[loop.AT], row[loop.END] = 0, last - first
        self.left = int(into[0, loop.THINK])
