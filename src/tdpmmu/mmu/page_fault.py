"""Page faults up to the TDP MMU's door (``direct_page_fault``, ``mmu.c``, v5.12)."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import CurrentRoot
from tdpmmu.arch.spte import Access
from tdpmmu.events.records import FaultFixed, OutOfBounds
from tdpmmu.kernel.locks import Sleep
from tdpmmu.machine.op import LEFT, NEITHER, Emit, Op, Read, Step
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fault import RET_PF_EMULATE, RET_PF_RETRY, Fault
from tdpmmu.mmu.kvm import Kvm, Memslot
from tdpmmu.mmu.tdp_map import TdpMap


@dataclass(frozen=True, slots=True)
class SnapshotSeq(Op):
    """``mmu_seq = kvm->mmu_notifier_seq``, outside the lock."""

    kvm: Kvm
    faulting: Cell

    def apply(self, step: Step, alternative: int) -> int:
        return int(step[self.kvm.mmu_notifier_seq])

    def mover(self, step: Step) -> str:
        # As old as the fault is as bad as it gets, unless the page was looked up before.
        return LEFT if step[self.faulting] else NEITHER

    def describe(self) -> str:
        return "mmu_seq = kvm->mmu_notifier_seq"


class PageFault(TdpMap):
    """From ``#NPF`` / EPT violation to the TDP MMU, and back."""

    async def hugepage_adjust(self, fault: Fault) -> None:
        """``kvm_mmu_hugepage_adjust``: the level that is allowed, 4K for a fetch under NX."""
        fault.huge_page_disallowed = fault.execute and self.kvm.config.nx_huge_pages
        level = 1
        if fault.slot is not None and not fault.slot.log:
            level = await self.max_mapping_level(fault.slot, fault.gfn, fault.max_level)
        fault.req_level = level
        fault.goal_level = 1 if fault.huge_page_disallowed else level

    async def max_mapping_level(self, slot: Memslot, gfn: int, max_level: int) -> int:
        """``kvm_mmu_max_mapping_level``: what the host, the slot and what lies in it allow."""
        level = min(max_level, self.kvm.geometry.levels)
        while level > 1 and await self.lpage_info(slot, gfn, level):
            level -= 1
        return min(level, self.host_pfn_mapping_level(slot, gfn))

    def host_pfn_mapping_level(self, slot: Memslot, gfn: int) -> int:
        """``host_pfn_mapping_level``: how large the host maps the page behind a gfn."""
        return self.kvm.config.huge_level

    async def lpage_info(self, slot: Memslot, gfn: int, level: int) -> bool:
        """``lpage_info_slot(...)->disallow_lpage``: an array of the slot, from its base on."""
        pages = self.kvm.geometry.pages(level)
        first = slot.base_gfn // pages
        length = (slot.base_gfn + slot.npages - 1) // pages - first + 1
        index = gfn // pages - first
        if not 0 <= index < length:
            await Emit(OutOfBounds(f"lpage_info[{level}]", index, length))
            return True
        if self.lpage_misfit(slot, gfn, level):
            return True
        return await self.lpage_disallowed(slot.as_id, gfn, level)

    def lpage_misfit(self, slot: Memslot, gfn: int, level: int) -> bool:
        """``kvm_alloc_memslot_metadata``: the slot's ends, or its alignment, forbid huge pages."""
        pages = self.kvm.geometry.pages(level)
        start = self.kvm.geometry.round(gfn, level)
        inside = slot.covers(start) and slot.covers(start + pages - 1)
        return not inside or (slot.hva - slot.base_gfn) % pages != 0

    async def lpage_disallowed(self, as_id: int, gfn: int, level: int) -> bool:
        """``lpage_info->disallow_lpage``: what lies in the huge page forbids it."""
        return False

    async def notifier_retry(self, fault: Fault) -> bool:
        """``mmu_notifier_retry_hva``: the host's page table may have changed since it was read."""
        kvm = self.kvm
        if await Read(kvm.mmu_notifier_count):
            start, end = await Read(kvm.mmu_notifier_range)
            if start <= fault.gfn < end:
                return True
        seq: int = await Read(kvm.mmu_notifier_seq)
        return seq != fault.mmu_seq

    async def page_fault_handle_page_track(self, fault: Fault) -> bool:
        """``page_fault_handle_page_track``: a write to a tracked gfn is emulated."""
        return False

    async def fast_page_fault(self, vcpu: VcpuCells, fault: Fault) -> str:
        """``fast_page_fault``: a ``RET_PF_*`` if the fault could be fixed without ``mmu_lock``."""
        return ""

    async def faultin_pfn(self, vcpu: VcpuCells, fault: Fault) -> str:
        """``kvm_faultin_pfn``: slot and host page; a ``RET_PF_*`` if there is nothing to map."""
        slots = await Read(self.kvm.memslots[fault.as_id])
        fault.generation = slots.generation
        fault.slot = slots.find(fault.gfn)
        slot = fault.slot
        if slot is None:
            return await self.handle_noslot_fault(vcpu, fault)
        if slot.invalid:
            return RET_PF_RETRY
        if slot.readonly:
            if fault.write:
                return RET_PF_EMULATE
            fault.map_writable = False
        page = slot.hva + fault.gfn - slot.base_gfn
        fault.pfn = await self.kvm.memory.get_user_page(page, vcpu.faulting)
        return ""

    async def handle_noslot_fault(self, vcpu: VcpuCells, fault: Fault) -> str:
        """``kvm_handle_noslot_fault``: emulated MMIO; an MMIO SPTE is still to be installed."""
        return ""

    async def is_page_fault_stale(self, vcpu: VcpuCells, fault: Fault) -> bool:
        """``is_page_fault_stale``; before 5.16 only an invalidation makes a fault stale."""
        return fault.slot is not None and await self.notifier_retry(fault)

    async def direct_page_fault(
        self,
        vcpu: VcpuCells,
        gfn: int,
        access: Access,
        as_id: int,
        pool: int,
        present: bool = False,
    ) -> str:
        """``direct_page_fault``: find the host's page, then map it under ``mmu_lock`` for read."""
        kvm = self.kvm
        root = await CurrentRoot(vcpu)
        fault = Fault(gfn, access, root, as_id, pool)
        fault.present = present
        fault.guest_mode = vcpu.guest_mode
        if await self.page_fault_handle_page_track(fault):
            await Emit(FaultFixed(vcpu.number, gfn, RET_PF_EMULATE))
            return RET_PF_EMULATE
        result = await self.fast_page_fault(vcpu, fault)
        if result:
            await Emit(FaultFixed(vcpu.number, gfn, result))
            return result
        await Sleep("mmu_topup_memory_caches")
        fault.mmu_seq = await SnapshotSeq(kvm, vcpu.faulting)
        await Sleep("try_async_pf")
        result = await self.faultin_pfn(vcpu, fault)
        if result:
            await Emit(FaultFixed(vcpu.number, gfn, result))
            return result
        result = await self.map_under_lock(vcpu, fault)
        await Emit(FaultFixed(vcpu.number, gfn, result))
        return result

    async def map_under_lock(self, vcpu: VcpuCells, fault: Fault) -> str:
        """The end of ``direct_page_fault``: look whether the fault is stale, and map."""
        kvm = self.kvm
        await kvm.mmu_lock.read_lock()
        result = RET_PF_RETRY
        if not await self.is_page_fault_stale(vcpu, fault):
            await self.hugepage_adjust(fault)
            result = await self.tdp_mmu_map(fault)
        await kvm.mmu_lock.read_unlock()
        return result
