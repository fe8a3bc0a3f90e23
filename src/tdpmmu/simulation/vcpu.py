"""A vCPU: the loop of ``KVM_RUN`` around a guest that touches one page after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tdpmmu.arch.hardware import AccessMemory, VcpuCells
from tdpmmu.arch.spte import Access, SpteFormat
from tdpmmu.arch.table import TablePage
from tdpmmu.events.records import GuestAccess
from tdpmmu.kernel.locks import Sleep
from tdpmmu.mmu.fault import RET_PF_EMULATE
from tdpmmu.simulation.guest import ACCESSES, Touches
from tdpmmu.simulation.regions import LOST, Regions
from tdpmmu.simulation.tables import SimKvm
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.ledger import (
    CPU,
    FAULT,
    FLUSH,
    LOCK,
    NOISE,
    REFAULT,
    REFILL,
    SPLIT,
    Ledger,
)
from tdpmmu.worlds.simulate.ops import FOREVER, HALTED, KICKED, NeedResched, RunGuest, Spend
from tdpmmu.worlds.simulate.thread import SimThread

FAULTS, PML_FULL = "fault", "PML full"
"""Why the guest is left, besides an IPI."""

PML_ENTRIES = 512


class StepGuest:
    """The guest between entry and exit, touch by touch.

    A touch is decided by the page tables as they are at that moment.  What was touched since the
    last flush is held by the TLB, as far as it has room; the rest costs a walk.
    """

    def __init__(
        self,
        kvm: SimKvm,
        vcpu: VcpuCells,
        thread: SimThread,
        costs: Costs,
        ledger: Ledger,
    ) -> None:
        self.kvm = kvm
        self.vcpu = vcpu
        self.thread = thread
        self.costs = costs
        self.ledger = ledger
        self.batches: Iterator[Touches] = iter(())
        self.think: list[int] = []
        self.gfns: list[int] = []
        self.accesses: list[int] = []
        self.tags: list[int] = []
        self.at = 0
        self.left = 0
        self.due = FOREVER
        self.since = -1
        self.fault_gfn = 0
        self.fault_access = Access.READ
        self.fault_present = False
        self.walked: TablePage | None = None
        self.held: set[tuple[int, int]] = set()

    # --- the world's side -----------------------------------------------------------------------

    def start(self, batches: Iterator[Touches]) -> None:
        """What it will touch."""
        self.batches = batches
        self._next_batch()

    def enter(self, now: int) -> int:
        self.due = min(FOREVER, now + self.left)
        return self.due

    def reach(self, now: int) -> int | str:
        if self.due >= FOREVER:
            return FOREVER
        gfn = self.gfns[self.at]
        access = self.accesses[self.at]
        hit, level, present = self._look(gfn, ACCESSES[access])
        self.thread.step.emit(
            GuestAccess(self.vcpu.number, gfn, ACCESSES[access].value, not hit, False)
        )
        if not hit:
            if self.since < 0:
                self.since = now
            self.left = 0
            self.fault_gfn, self.fault_present = gfn, present
            self.fault_access = ACCESSES[access]
            return FAULTS
        if self.since >= 0:
            self._fault_over(now)
        cost = self.costs.access
        page = (level, gfn >> 9 * (level - 1))
        if page not in self.held and len(self.held) < self.costs.tlb_entries:
            self.held.add(page)
            refill = self.refill(level)
            cost += refill
            self.ledger.stalled(REFILL, refill)
        self._advance()
        self.due = min(FOREVER, now + cost + self.left)
        if len(self.thread.step[self.vcpu.pml]) >= PML_ENTRIES:
            self._pause(now)
            return PML_FULL
        return self.due

    def refill(self, level: int) -> int:
        """What a walk costs that has found a leaf of this level."""
        return self.costs.refill(level)

    def kick(self, now: int) -> str:
        self._pause(now)
        return KICKED

    def _pause(self, now: int) -> None:
        self.left = FOREVER if self.due >= FOREVER else max(0, self.due - now)

    def interrupted(self, now: int, ns: int) -> None:
        """A touch that a measurement times has taken longer, though it may well hit."""
        if self.left >= FOREVER or self.since >= 0:
            return
        gfn, tag = self._touch()
        if tag:
            ns += self.costs.vm_exit + self.costs.vm_entry
            self.ledger.latency(ns, now, self.vcpu.number, gfn, tag)

    def flushed(self) -> None:
        """The TLB is empty."""
        self.held.clear()

    def skip(self, now: int) -> None:
        """KVM has done the access for the guest."""
        if self.since >= 0:
            self._fault_over(now)
        self._advance()

    # --- touches --------------------------------------------------------------------------------

    def _look(self, gfn: int, kind: Access) -> tuple[bool, int, bool]:
        """Whether a walk allows the access, at which level, and whether anything was present."""
        step, hardware = self.thread.step, self.kvm.hardware
        live = hardware.walk(step, step[self.vcpu.loaded][0], gfn)
        if live is None:
            return False, 0, False
        cell, level, spte = live
        self.walked = cell.page
        if not hardware.format.allows(spte, kind):
            return False, level, hardware.format.is_walkable(spte)
        if kind is Access.WRITE and not hardware.format.is_dirty(spte):
            AccessMemory(hardware, self.vcpu, gfn, kind)._set_dirty(step)
        return True, level, True

    def _fault_over(self, now: int) -> None:
        gfn, tag = self._touch()
        self.ledger.latency(now - self.since, self.since, self.vcpu.number, gfn, tag)
        self.since = -1

    def _touch(self) -> tuple[int, int]:
        """The gfn and the tag of the touch that is next."""
        return self.gfns[self.at], self.tags[self.at]

    def _advance(self) -> None:
        self.at += 1
        if self.at == len(self.gfns):
            self._next_batch()
        else:
            self.left = self.think[self.at]

    def _next_batch(self) -> None:
        batch = next((batch for batch in self.batches if len(batch.gfn)), None)
        self.at = 0
        if batch is None:
            self.gfns, self.left = [], FOREVER
            return
        self._take(batch)

    def _take(self, batch: Touches) -> None:
        self.think = batch.think_ns.tolist()
        self.gfns = batch.gfn.tolist()
        self.accesses = batch.access.tolist()
        self.tags = batch.tag.tolist() if batch.tag is not None else [0] * len(self.gfns)
        self.left = self.think[0]


class WhatFault:
    """Told of the events of vCPUs' faults, to say afterwards what sort one was.

    ``faulting``: the gfn that a thread is dealing with.
    """

    def __init__(self, fmt: SpteFormat, regions: Regions) -> None:
        self._format = fmt
        self._regions = regions
        self.faulting: dict[int, int] = {}
        self.splits: set[int] = set()

    def changed(self, gfn: int, level: int, old: int, new: int) -> None:
        """An SPTE of this level or of more has changed: regions that lose what they mapped."""
        fmt = self._format
        if fmt.is_shadow_present(old) and not fmt.is_shadow_present(new) and level <= 2:
            self._regions.set(LOST, gfn)

    def linked(self, thread: int) -> None:
        """A fetch has put a table where a huge page could be."""
        self.splits.add(thread)

    def sort(self, thread: int, gfn: int) -> str:
        """Of the thread's fault on ``gfn`` that has just been dealt with."""
        if thread in self.splits:
            self.splits.remove(thread)
            return SPLIT
        return REFAULT if self._regions.has(LOST, gfn) else FAULT


async def run_vcpu(mmu: Any, guest: StepGuest, what: WhatFault) -> None:
    """``KVM_RUN``: enter, run, leave, and a page fault if that was why, until the guest halts."""
    vcpu, thread, ledger = guest.vcpu, guest.thread, guest.ledger
    await mmu.kvm.srcu.read_lock()
    begun, cause, lost = thread.now, FLUSH, lost_so_far(thread)
    while True:
        if await NeedResched():
            await give_way(mmu)
        if not await mmu.enter_guest(vcpu):
            continue
        rest = thread.now - begun
        for why_lost, ns in lost_so_far(thread).items():
            ledger.stalled(why_lost, ns - lost[why_lost])
            rest -= ns - lost[why_lost]
        ledger.stalled(cause, rest)
        why = await RunGuest(guest)
        begun, cause, lost = thread.now, FLUSH, lost_so_far(thread)
        await mmu.leave_guest(vcpu)
        if why == HALTED:
            break
        if why != FAULTS:
            continue
        gfn = what.faulting[thread.number] = guest.fault_gfn
        result = await handle_fault(mmu, guest)
        del what.faulting[thread.number]
        if result == RET_PF_EMULATE:
            guest.skip(thread.now)
        cause = what.sort(thread.number, gfn)
    await mmu.kvm.srcu.read_unlock()


def lost_so_far(thread: SimThread) -> dict[str, int]:
    """How long it has stood still outside of the guest, by cause."""
    return {
        LOCK: thread.locked,
        FLUSH: thread.flushing,
        CPU: thread.queued,
        NOISE: thread.disturbed,
    }


async def give_way(mmu: Any) -> None:
    """``xfer_to_guest_mode_handle_work``: the CPU is somebody else's for a while."""
    await mmu.kvm.srcu.read_unlock()
    await Sleep("schedule")
    await mmu.kvm.srcu.read_lock()


async def handle_fault(mmu: Any, guest: StepGuest) -> str:
    """From the handler's entry to its return."""
    await Spend(guest.costs.fault)
    vcpu = guest.vcpu
    result: str = await mmu.page_fault(
        vcpu, guest.fault_gfn, guest.fault_access, 0, 0, guest.fault_present
    )
    if result == RET_PF_EMULATE:
        await Spend(guest.costs.emulate)
    return result
