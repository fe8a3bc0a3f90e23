"""Page faults up to the TDP MMU's door (``direct_page_fault``, ``mmu.c``, v5.12)."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.spte import Access
from tdpmmu.events.records import FaultFixed
from tdpmmu.kernel.locks import Sleep
from tdpmmu.machine.op import LEFT, NEITHER, Emit, Op, Read, Step
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.fault import RET_PF_RETRY, Fault
from tdpmmu.mmu.kvm import Kvm
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

    def hugepage_adjust(self, fault: Fault) -> None:
        """``kvm_mmu_hugepage_adjust``: the level the host allows, 4K for a fetch under NX."""
        fault.huge_page_disallowed = fault.execute and self.kvm.config.nx_huge_pages
        fault.req_level = self.kvm.config.huge_level
        fault.goal_level = 1 if fault.huge_page_disallowed else fault.req_level

    async def notifier_retry(self, fault: Fault) -> bool:
        """``mmu_notifier_retry_hva``: the host's page table may have changed since it was read."""
        kvm = self.kvm
        if await Read(kvm.mmu_notifier_count):
            start, end = await Read(kvm.mmu_notifier_range)
            if start <= fault.gfn < end:
                return True
        seq: int = await Read(kvm.mmu_notifier_seq)
        return seq != fault.mmu_seq

    async def direct_page_fault(
        self, vcpu: VcpuCells, gfn: int, access: Access, root: int, as_id: int, pool: int
    ) -> str:
        """``direct_page_fault``: find the host's page, then map it under ``mmu_lock`` for read."""
        kvm = self.kvm
        fault = Fault(gfn, access, root, as_id, pool)
        await Sleep("mmu_topup_memory_caches")
        fault.mmu_seq = await SnapshotSeq(kvm, vcpu.faulting)
        await Sleep("try_async_pf")
        fault.pfn = await kvm.memory.get_user_page(gfn, vcpu.faulting)
        await kvm.mmu_lock.read_lock()
        result = RET_PF_RETRY
        if not await self.notifier_retry(fault):
            self.hugepage_adjust(fault)
            result = await self.tdp_mmu_map(fault)
        await kvm.mmu_lock.read_unlock()
        await Emit(FaultFixed(vcpu.number, gfn, result))
        return result
