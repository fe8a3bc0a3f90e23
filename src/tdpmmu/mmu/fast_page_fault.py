"""Page faults that are fixed without ``mmu_lock`` (``fast_page_fault``, ``mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.table import CmpXchgSpte
from tdpmmu.machine.op import Read
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.dirty_ring import DirtyRing
from tdpmmu.mmu.fault import RET_PF_FIXED, RET_PF_SPURIOUS, Fault
from tdpmmu.mmu.tdp_iter import TdpIter


class FastPageFault(DirtyRing):
    """What write protection or access tracking has taken from a leaf comes back by a cmpxchg."""

    def page_fault_can_be_fast(self, fault: Fault) -> bool:
        """``page_fault_can_be_fast``: a write that is not allowed, or perhaps access tracking."""
        if not fault.present:
            return not self.kvm.format.has_ad_bits
        return fault.write

    def is_access_allowed(self, fault: Fault, spte: int) -> bool:
        """``is_access_allowed``."""
        spte_format = self.kvm.format
        if fault.execute:
            return spte_format.is_executable(spte)
        if fault.write:
            return spte_format.is_writable(spte)
        return spte_format.is_readable(spte)

    async def fast_page_fault(self, vcpu: VcpuCells, fault: Fault) -> str:
        """``fast_page_fault``."""
        if not self.page_fault_can_be_fast(fault):
            return ""
        kvm = self.kvm
        slots = await Read(kvm.memslots[fault.as_id])
        await kvm.rcu.read_lock()
        result = await self.fix_leaf(fault, slots.find(fault.gfn))
        await kvm.rcu.read_unlock()
        return result

    async def fix_leaf(self, fault: Fault, slot: object) -> str:
        """The leaf as it is found under RCU, and one try to change it."""
        kvm = self.kvm
        spte = kvm.format
        it = TdpIter(kvm, kvm.hardware.page_by_number[fault.root], fault.gfn, fault.gfn + 1)
        while await it.next_pte():
            if not spte.is_shadow_present(it.old_spte):
                return ""
            if not spte.is_last(it.old_spte, it.level):
                continue
            if self.is_access_allowed(fault, it.old_spte):
                return RET_PF_SPURIOUS
            new = it.old_spte
            if spte.is_access_track(new):
                new = spte.restore_acc_track(new) | spte.accessed
            if fault.write and spte.is_mmu_writable(it.old_spte):
                # A huge page of a slot that is logged has to be split, under the lock.
                if it.level > 1 and getattr(slot, "log", False):
                    return ""
                new |= spte.writable
            if new == it.old_spte or not self.is_access_allowed(fault, new):
                return ""
            if not await CmpXchgSpte(it.sptep, it.old_spte, new):
                return ""
            if spte.is_writable(new) and not spte.is_writable(it.old_spte):
                await self.fast_page_fault_fixed(slot, fault.gfn)
            await self.trace_fast_page_fault(fault, it.sptep, it.old_spte, new)
            return RET_PF_FIXED
        return ""

    async def trace_fast_page_fault(self, fault: Fault, sptep: Cell, old: int, new: int) -> None:
        """``trace_fast_page_fault``: for whoever holds the model against a kernel."""

    async def fast_page_fault_fixed(self, slot: object, gfn: int) -> None:
        """``fast_pf_fix_direct_spte``: logged once the page is writable."""
        await self.mark_page_dirty_in_slot(slot, gfn)  # type: ignore[arg-type]
