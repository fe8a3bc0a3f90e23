"""A vCPU: entering the guest, its accesses, leaving for a fault (``vcpu_enter_guest``, v5.12)."""

from __future__ import annotations

from tdpmmu.arch.hardware import (
    FAULT_PRESENT,
    HIT,
    IN_GUEST,
    KICKED,
    OUTSIDE,
    AccessMemory,
    VcpuCells,
    VmEnter,
    VmExit,
)
from tdpmmu.arch.requests import (
    ExitRequested,
    FlushOwnTlb,
    Park,
    SetMode,
    TestAndClearReload,
    TestAndClearRequest,
)
from tdpmmu.arch.spte import Access
from tdpmmu.machine.op import Choose
from tdpmmu.mmu.direct_map import DirectMap
from tdpmmu.mmu.fault import RET_PF_EMULATE, RET_PF_RETRY
from tdpmmu.mmu.shadow_fault import GUEST_FAULT


class Vcpu(DirectMap):
    """The loop of ``KVM_RUN``."""

    async def enter_guest(self, vcpu: VcpuCells) -> bool:
        """``vcpu_enter_guest`` up to VMRUN; false if a request came in the window before it."""
        if self.kvm.dirty_rings and await self.dirty_ring_exit(vcpu):
            return False
        if await TestAndClearReload(vcpu):
            await self.reload_root(vcpu)
        if await TestAndClearRequest(vcpu):
            await self.flush_own_tlb(vcpu)
        await self.check_apic_page(vcpu)
        await SetMode(self.kvm.hardware, vcpu, IN_GUEST)
        await self.kvm.srcu.read_unlock()
        if await ExitRequested(vcpu):
            await SetMode(self.kvm.hardware, vcpu, OUTSIDE)
            await self.kvm.srcu.read_lock()
            return False
        await VmEnter(self.kvm.hardware, vcpu)
        return True

    async def check_apic_page(self, vcpu: VcpuCells) -> None:
        """``KVM_REQ_APIC_PAGE_RELOAD``."""

    async def flush_own_tlb(self, vcpu: VcpuCells) -> None:
        """``kvm_vcpu_flush_tlb_all``."""
        await FlushOwnTlb(vcpu)

    async def leave_guest(self, vcpu: VcpuCells) -> None:
        """From the exit to the point where interrupts are on and the mode says so."""
        await VmExit(vcpu)
        await self.flush_pml_buffer(vcpu)
        await SetMode(self.kvm.hardware, vcpu, OUTSIDE)
        await self.kvm.srcu.read_lock()

    async def vcpu_access(
        self,
        vcpu: VcpuCells,
        as_id: int,
        pool: int,
        gfns: tuple[int, ...],
        kinds: tuple[Access, ...],
        store: tuple[int, int] | None = None,
    ) -> None:
        """One guest access to any of ``gfns`` in any of ``kinds``, with the faults it takes.

        ``gfns`` are addresses if the guest pages.  ``store`` (index, value): what a write puts
        there, if that is one of the guest's page tables.
        """
        gfn = -1
        access = kinds[0]
        while True:
            if not await self.enter_guest(vcpu):
                continue
            if gfn < 0:
                gfn = await Choose("gfn", gfns)
                access = await Choose("access", kinds)
            outcome = await AccessMemory(self.kvm.hardware, vcpu, gfn, access, store)
            await self.leave_guest(vcpu)
            if outcome == HIT:
                return
            if outcome == KICKED:
                continue
            present = outcome == FAULT_PRESENT
            result = await self.page_fault(vcpu, gfn, access, as_id, pool, present)
            if result == GUEST_FAULT:
                return
            if result == RET_PF_EMULATE:
                if store is not None:
                    await self.emulate_store(vcpu, as_id, gfn, store)
                await self.emulate(vcpu, as_id, gfn, access)
                return

    async def pre_fault_memory(self, vcpu: VcpuCells, gfn: int, as_id: int, pool: int) -> None:
        """``kvm_arch_vcpu_pre_fault_memory``: map before the guest asks, and inside SRCU."""
        if await TestAndClearReload(vcpu):
            await self.reload_root(vcpu)
        while True:
            result = await self.direct_page_fault(vcpu, gfn, Access.READ, as_id, pool)
            if result != RET_PF_RETRY or await self.pre_fault_gives_up(vcpu, gfn, as_id):
                return

    async def pre_fault_gives_up(self, vcpu: VcpuCells, gfn: int, as_id: int) -> bool:
        """Whether a retry is left to userspace; before 6.18 it never is."""
        return False

    async def run_vcpu(
        self,
        vcpu: VcpuCells,
        as_id: int,
        pool: int,
        gfns: tuple[int, ...],
        kinds: tuple[Access, ...],
        accesses: int,
    ) -> None:
        """``accesses`` guest accesses, each to any of ``gfns`` in any of ``kinds``."""
        await self.kvm.srcu.read_lock()
        for _ in range(accesses):
            await self.vcpu_access(vcpu, as_id, pool, gfns, kinds)
        await self.kvm.srcu.read_unlock()
        await Park(vcpu)
