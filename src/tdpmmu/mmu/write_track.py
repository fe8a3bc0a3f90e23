"""Write tracking: gfns that hold page tables which KVM shadows (``page_track.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader, TablePage
from tdpmmu.events.records import GfnTracked
from tdpmmu.machine.op import Emit, Read, Write
from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.memslots import MemslotUpdates
from tdpmmu.mmu.tdp_iter import TdpIter


class WriteTrack(MemslotUpdates):
    """A tracked gfn is mapped small and read-only, and a write to it is emulated."""

    async def gfn_is_write_tracked(self, as_id: int, gfn: int) -> bool:
        """``kvm_gfn_is_write_tracked``: in the address space of the fault's slot."""
        tracked = await Read(self.kvm.write_tracked[as_id])
        return gfn in tracked

    async def page_fault_handle_page_track(self, fault: Fault) -> bool:
        """``page_fault_handle_page_track``: a write to what is present and tracked."""
        if not (fault.present and fault.write):
            return False
        return await self.gfn_is_write_tracked(fault.as_id, fault.gfn)

    async def lpage_disallowed(self, as_id: int, gfn: int, level: int) -> bool:
        """``kvm_mmu_gfn_disallow_lpage``: no huge page over tracked gfns or shadowed tables."""
        kvm = self.kvm
        pages = kvm.geometry.pages(level)
        first = kvm.geometry.round(gfn, level)
        tracked = await Read(kvm.write_tracked[as_id])
        if any(first <= table < first + pages for table in tracked):
            return True
        if kvm.config.shadow_pages:
            for table in range(first, first + pages):
                for sp in await Read(kvm.mmu_page_hash[table]):
                    if await self.shadows_gptes(sp):
                        return True
        return await super().lpage_disallowed(as_id, gfn, level)

    async def make_spte(self, fault: Fault, it: TdpIter) -> int:
        """If ``mmu_try_to_unsync_pages`` says no: neither writable nor MMU-writable."""
        spte = await super().make_spte(fault, it)
        if self.kvm.format.is_writable(spte):
            fault.wrprot = not await self.try_to_unsync_pages(fault.as_id, it.gfn, True)
            if fault.wrprot:
                spte &= ~(self.kvm.format.writable | self.kvm.format.mmu_writable)
        return spte

    async def try_to_unsync_pages(
        self, as_id: int, gfn: int, can_unsync: bool, prefetch: bool = False
    ) -> bool:
        """``mmu_try_to_unsync_pages``: whether a gfn may be mapped writable.

        One that holds a last-level guest table may be: its shadow pages become unsync, though not
        for a ``prefetch``.
        """
        kvm = self.kvm
        if await self.gfn_is_write_tracked(as_id, gfn):
            return False
        if not kvm.config.shadow_pages:
            return True
        locked = False
        for sp in await Read(kvm.mmu_page_hash[gfn]):
            if not await self.shadows_gptes(sp):
                continue
            if not can_unsync:
                return False
            if await Read(sp.unsync):
                continue
            if prefetch:
                return False
            if not locked:
                # TDP faults hold mmu_lock for read only.
                locked = True
                await kvm.mmu_unsync_pages_lock.lock()
                if await Read(sp.unsync):
                    continue
            await self.unsync_page(sp)
        if locked:
            await kvm.mmu_unsync_pages_lock.unlock()
        return True

    async def shadows_gptes(self, sp: TablePage) -> bool:
        """``for_each_gfn_valid_sp_with_gptes``: neither zapped nor direct."""
        if await Read(sp.invalid):
            return False
        header = await ReadHeader(sp)
        return not header.direct

    async def track_gfn(self, as_id: int, gfn: int) -> None:
        """``__kvm_write_track_add_gfn``: mark it, take write access away, flush.

        In the roots of both address spaces here, as in the fix of zoo entry z62.
        """
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        tracked = await Read(kvm.write_tracked[as_id])
        await Write(kvm.write_tracked[as_id], tuple(sorted((*tracked, gfn))))
        flush = False
        for space in (0, 1):
            changed = await self.write_protect_gfn(space, gfn)
            flush = flush or changed
        if flush:
            await self.flush_remote_tlbs()
        await Emit(GfnTracked(as_id, gfn))
        await kvm.mmu_lock.write_unlock()

    async def slot_gfn_write_protect(self, as_id: int, gfn: int, min_level: int = 1) -> bool:
        """``kvm_mmu_slot_gfn_write_protect``: in both MMUs; true: a flush is owed."""
        changed = await self.rmap_write_protect(gfn, True, min_level)
        in_tdp = await self.write_protect_gfn(as_id, gfn, min_level)
        return changed or in_tdp

    async def write_protect_gfn(self, as_id: int, gfn: int, min_level: int = 1) -> bool:
        """``kvm_tdp_mmu_write_protect_gfn``: in a slot's address space; true: a flush is owed."""
        changed = False
        for root in await Read(self.kvm.tdp_mmu_roots):
            if await self.page_as_id(root) == as_id:
                one = await self.write_protect_gfn_in(root, gfn, min_level)
                changed = changed or one
        return changed

    async def write_protect_gfn_in(self, root: TablePage, gfn: int, min_level: int = 1) -> bool:
        """``write_protect_gfn``: both write bits of the leaf that maps a gfn."""
        kvm = self.kvm
        spte = kvm.format
        changed = False
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, gfn, gfn + 1, min_level=min_level)
        while await it.next_pte():
            if not spte.is_shadow_present(it.old_spte) or not spte.is_last(it.old_spte, it.level):
                continue
            if not self.needs_write_protection(it.old_spte):
                break
            await self.set_spte(it, it.old_spte & ~(spte.writable | spte.mmu_writable))
            changed = True
        await kvm.rcu.read_unlock()
        return changed

    def needs_write_protection(self, spte: int) -> bool:
        """Whether either write bit is set: W alone says nothing about TLBs or later."""
        spte_format = self.kvm.format
        return spte_format.is_writable(spte) or spte_format.is_mmu_writable(spte)
