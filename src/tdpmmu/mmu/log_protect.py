"""Taking write access, or dirty bits, away for dirty logging (``tdp_mmu.c``, ``mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader, ReadSpte, TablePage
from tdpmmu.events.records import OutOfBounds, PfnMarkedDirty
from tdpmmu.machine.op import Emit, Read
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.mmu.write_track import WriteTrack

PML = "pml"
"""The CPU logs what it makes dirty (VMX page-modification logging)."""


class LogProtect(WriteTrack):
    """What makes the next write to a page leave a trace, in both MMUs; callers flush."""

    def logs_by_cpu(self) -> bool:
        """``kvm_x86_ops.cpu_dirty_log_size``: dirty bits will do, where the CPU logs them."""
        return PML in self.kvm.config.options

    async def need_write_protect(self, root: TablePage) -> bool:
        """``tdp_mmu_need_write_protect``: no log by the CPU, or none while it runs L2."""
        if not self.logs_by_cpu():
            return True
        header = await ReadHeader(root)
        return bool(header.guest_mode)

    async def log_bits(self, root: TablePage) -> int:
        """The bits whose absence makes the next write leave a trace."""
        wrprot = await self.need_write_protect(root)
        return self.kvm.format.writable if wrprot else self.kvm.format.dirty

    # --- walks of a slot ------------------------------------------------------------------------

    async def lock_slot_walk(self) -> None:
        """``mmu_lock`` as logging is switched on or off in the TDP MMU: up to 5.12 for write."""
        await self.kvm.mmu_lock.write_lock()

    async def unlock_slot_walk(self) -> None:
        """The counterpart."""
        await self.kvm.mmu_lock.write_unlock()

    async def first_slot_root(self, slot: Memslot) -> TablePage | None:
        """Start of ``for_each_valid_tdp_mmu_root_yield_safe``: of the slot's address space."""
        root = await self.first_root()
        return await self.if_slot_root(slot, root)

    async def next_slot_root(self, slot: Memslot, root: TablePage) -> TablePage | None:
        """The next one, with a reference; the reference to the last is put."""
        after = await self.next_root(root)
        return await self.if_slot_root(slot, after)

    async def if_slot_root(self, slot: Memslot, root: TablePage | None) -> TablePage | None:
        """This root or the next one that is valid and of the slot's address space."""
        while root is not None:
            header = await ReadHeader(root)
            if header.as_id == slot.as_id and not await Read(root.invalid):
                return root
            root = await self.next_root(root)
        return None

    async def remove_write_access(self, slot: Memslot, min_level: int) -> None:
        """``kvm_mmu_slot_remove_write_access``: every leaf of ``min_level`` and above."""
        kvm = self.kvm
        if kvm.config.shadow_pages:
            await kvm.mmu_lock.write_lock()
            for gfn in range(slot.base_gfn, slot.base_gfn + slot.npages):
                await self.rmap_cond_resched()
                await self.rmap_write_protect(gfn, False, min_level)
            await kvm.mmu_lock.write_unlock()
        await self.lock_slot_walk()
        root = await self.first_slot_root(slot)
        while root is not None:
            await self.clear_range_in(root, slot, kvm.format.writable, min_level)
            root = await self.next_slot_root(slot, root)
        await self.unlock_slot_walk()

    async def leaf_clear_dirty(self, slot: Memslot) -> None:
        """``kvm_mmu_slot_leaf_clear_dirty``."""
        kvm = self.kvm
        if kvm.config.shadow_pages:
            await kvm.mmu_lock.write_lock()
            for gfn in range(slot.base_gfn, slot.base_gfn + slot.npages):
                await self.rmap_cond_resched()
                await self.rmap_clear_dirty(gfn)
            await kvm.mmu_lock.write_unlock()
        await self.lock_slot_walk()
        root = await self.first_slot_root(slot)
        while root is not None:
            bits = await self.log_bits(root)
            await self.clear_range_in(root, slot, bits, 1)
            root = await self.next_slot_root(slot, root)
        await self.unlock_slot_walk()

    async def clear_range_in(
        self, root: TablePage, slot: Memslot, bits: int, min_level: int
    ) -> None:
        """``wrprot_gfn_range`` and ``clear_dirty_gfn_range`` of one root; may yield."""
        kvm = self.kvm
        shared = not await kvm.mmu_lock.held_for_write()
        await kvm.rcu.read_lock()
        it = self.iter_to_clear(root, slot, bits, min_level)
        while await it.next_pte():
            retried = False
            while True:
                if await self.iter_cond_resched(it, False, shared):
                    break
                if not self.is_leaf_to_clear(it, retried) or not it.old_spte & bits:
                    break
                if await self.set_spte_atomic(it, it.old_spte & ~bits):
                    break
                it.old_spte = await self.reread(it)
                retried = True
        await kvm.rcu.read_unlock()

    def iter_to_clear(self, root: TablePage, slot: Memslot, bits: int, min_level: int) -> TdpIter:
        """``for_each_tdp_pte_min_level`` of that walk, in which ``bits`` go."""
        end = slot.base_gfn + slot.npages
        return TdpIter(self.kvm, root, slot.base_gfn, end, min_level=min_level)

    def is_leaf_to_clear(self, it: TdpIter, retried: bool) -> bool:
        """Looked at again after a lost cmpxchg."""
        spte = self.kvm.format
        return spte.is_shadow_present(it.old_spte) and spte.is_last(it.old_spte, it.level)

    # --- some gfns of a slot, under mmu_lock held for write -------------------------------------

    async def clear_dirty_masked(self, slot: Memslot, gfns: tuple[int, ...]) -> None:
        """``kvm_mmu_write_protect_pt_masked`` / ``kvm_mmu_clear_dirty_pt_masked``: 4K leaves."""
        kvm = self.kvm
        for root in await Read(kvm.tdp_mmu_roots):
            header = await ReadHeader(root)
            if header.as_id == slot.as_id and not await Read(root.invalid):
                bits = await self.log_bits(root)
                await self.clear_dirty_masked_in(root, gfns, bits)
        if not kvm.config.shadow_pages:
            return
        for gfn in gfns:
            if not slot.covers(gfn):
                await Emit(OutOfBounds("rmap[1]", gfn - slot.base_gfn, slot.npages))
            elif self.logs_by_cpu():
                await self.rmap_clear_dirty(gfn)
            else:
                await self.rmap_write_protect(gfn, False, 1, 1)

    async def clear_dirty_masked_in(
        self, root: TablePage, gfns: tuple[int, ...], bits: int
    ) -> None:
        """``clear_dirty_pt_masked``."""
        kvm = self.kvm
        spte = kvm.format
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, gfns[0], gfns[-1] + 1)
        while await it.next_pte():
            if not spte.is_shadow_present(it.old_spte) or it.level > 1:
                continue
            if it.gfn in gfns and it.old_spte & bits:
                await self.clear_spte_bits(it, bits)
                await Emit(PfnMarkedDirty(spte.pfn(it.old_spte), 1))
        await kvm.rcu.read_unlock()

    async def rmap_cond_resched(self, flush: bool = False) -> bool:
        """``__walk_slot_rmaps`` before each rmap: true: it has broken the lock, after a flush."""
        if not await self.kvm.mmu_lock.needbreak():
            return False
        if flush:
            await self.flush_remote_tlbs()
        await self.kvm.mmu_lock.cond_resched_write()
        return True

    async def rmap_clear_dirty(self, gfn: int) -> bool:
        """``__rmap_clear_dirty`` of the 4K leaves of a gfn; true: a flush is owed."""
        spte = self.kvm.format
        flush = False
        for sptep in await self.rmap_sptes(gfn, 1, 1):
            old = await ReadSpte(sptep)
            bits = spte.writable if await self.ad_need_write_protect(sptep) else spte.dirty
            if old & bits:
                await self.update_spte(sptep, old & ~bits)
                flush = True
        return flush

    async def ad_need_write_protect(self, sptep: object) -> bool:
        """``spte_ad_need_write_protect``: the CPU would log addresses of L2."""
        header = await ReadHeader(sptep.page)  # type: ignore[attr-defined]
        return bool(header.guest_mode)
