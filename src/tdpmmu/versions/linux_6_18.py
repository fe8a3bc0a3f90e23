"""v6.18: NX recovery of the TDP MMU's pages under ``mmu_lock`` held for read."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.table import (
    ClearSpteBits,
    CmpXchgSpte,
    Header,
    ReadHeader,
    ReadSpte,
    TablePage,
)
from tdpmmu.events.records import (
    HugePageRecovered,
    NxPageAccounted,
    NxPageRecovered,
    NxPageUnaccounted,
    Warned,
    Yielded,
)
from tdpmmu.machine.op import Add, Emit, ListAdd, ListDel, Read, Write
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.notifier import GfnRange
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.versions.linux_6_12 import Linux_6_12


class Linux_6_18(Linux_6_12):
    """v6.18: recovery of TDP pages under the read lock (a57750909580)."""

    version: ClassVar[str] = "6.18"
    spte_kernel: ClassVar[str] = "6.18"
    changes: ClassVar[tuple[str, ...]] = (
        "13e2e4f62a4b huge pages take the place of tables as dirty logging ends (6.13)",
        "every SPTE that is made writable is made dirty (6.13)",
        "accessed bits are cleared without mmu_lock, and without A/D bits kept by software (6.15)",
        "43fb96ae7855 the worker is made by the first vCPU that runs (6.14)",
        "6777885605e1 one list for the TDP MMU, one for the legacy MMU (6.18)",
        "3ccbf6f47098 a prefault does not wait for a slot that is going away (6.18)",
        "a57750909580 TDP pages are recovered under mmu_lock for read (6.18)",
    )

    pfn_dirty_at_zap: ClassVar[bool] = False
    """Whoever maps a page marks it (66bc627e7fee, aa85986e7150, 6.13)."""

    # --- dirty logging ends ---------------------------------------------------------------------

    async def collapse_range(self, root: TablePage, slot: Memslot) -> None:
        """``recover_huge_pages_range``: in place, with one flush for all."""
        kvm = self.kvm
        if slot.log:
            await Emit(Warned("huge pages are recovered in a slot that is logged"))
            return
        flush = False
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, slot.base_gfn, slot.base_gfn + slot.npages, min_level=2)
        while await it.next_pte():
            while True:
                if await self.iter_cond_resched(it, flush, True):
                    flush = False
                    break
                if not await self.is_collapsible(slot, it):
                    break
                huge = await self.make_huge_spte(it)
                if not huge:
                    break
                table = kvm.page_of(it.old_spte)
                await Emit(HugePageRecovered(table.name, it.gfn, it.level))
                if await self.set_spte_atomic(it, huge):
                    flush = True
                    break
                it.old_spte = await self.reread(it)
        if flush:
            await self.flush_remote_tlbs()
        await kvm.rcu.read_unlock()

    async def make_huge_spte(self, parent: TdpIter) -> int:
        """``tdp_mmu_make_huge_spte``: as the first small page has it; 0 if there is none.

        Here it does not look for contention before every entry (``-EAGAIN``): the caller's walk
        yields at the next one.
        """
        kvm = self.kvm
        child = kvm.page_of(parent.old_spte)
        end = parent.gfn + kvm.geometry.pages(parent.level)
        it = TdpIter(kvm, child, parent.gfn, end, root_level=parent.level - 1)
        while await it.next_pte():
            spte = it.old_spte
            if kvm.format.is_shadow_present(spte) and kvm.format.is_last(spte, it.level):
                nx = kvm.config.nx_huge_pages
                return kvm.format.huge(spte, it.gfn - parent.gfn, executable=not nx)
        return 0

    def made_again(self, spte: int) -> int:
        """Whatever is writable is dirty (6.13)."""
        return spte

    def has_volatile_bits(self, spte: int, level: int) -> bool:
        """``spte_needs_atomic_update``: ageing looks at no lock; a lost accessed bit is no loss."""
        spte_format = self.kvm.format
        if not spte_format.is_shadow_present(spte) or not spte_format.is_last(spte, level):
            return False
        if spte_format.is_mmu_writable(spte) and not spte_format.is_writable(spte):
            return True
        if not spte_format.ad_enabled(spte):
            return True
        return spte_format.is_writable(spte) and not spte_format.is_dirty(spte)

    async def age_ranges(self, ranges: tuple[GfnRange, ...]) -> bool:
        """``kvm_age_gfn``: the TDP MMU's leaves without ``mmu_lock`` (6.15)."""
        young = False
        for as_id, start, end in ranges:
            aged = await self.tdp_mmu_age_gfn_range(as_id, start, end)
            young = young or aged
        return young

    async def tdp_mmu_age_gfn_range(self, as_id: int, start: int, end: int) -> bool:
        """``__kvm_tdp_mmu_age_gfn_range``: in an RCU section, in valid roots only."""
        kvm = self.kvm
        young = False
        await kvm.rcu.read_lock()
        for root in await Read(kvm.tdp_mmu_roots):
            if await self.page_as_id(root) == as_id and not await Read(root.invalid):
                aged = await self.age_gfn_range_in(root, start, end)
                young = young or aged
        await kvm.rcu.read_unlock()
        return young

    async def clear_young_bits(self, it: TdpIter, mask: int) -> None:
        """``tdp_mmu_clear_spte_bits_atomic``."""
        await ClearSpteBits(it.sptep, mask)

    async def write_spte(self, it: TdpIter, new: int) -> None:
        """``__tdp_mmu_set_spte_atomic`` of ageing: who was first has made it young again."""
        await CmpXchgSpte(it.sptep, it.old_spte, new)

    async def wake_worker(self) -> None:
        """``kvm_wake_nx_recovery_thread``: there is none before the first vCPU has run (6.14)."""
        if await Read(self.kvm.nx_worker_created):
            await super().wake_worker()

    async def pre_fault_gives_up(self, vcpu: VcpuCells, gfn: int, as_id: int) -> bool:
        """``-EAGAIN`` if the slot is invalid: its removal waits for this very SRCU reader."""
        slots = await Read(self.kvm.memslots[as_id])
        slot = slots.find(gfn)
        return slot is not None and slot.invalid

    async def track_possible_nx_huge_page(self, sp: TablePage) -> None:
        """``track_possible_nx_huge_page``, TDP MMU."""
        kvm = self.kvm
        if sp in await Read(kvm.possible_nx_tdp_pages):
            return
        await Add(kvm.nr_possible_nx_tdp, 1)
        await ListAdd(kvm.possible_nx_tdp_pages, sp, tail=True)
        header = await ReadHeader(sp)
        await Emit(NxPageAccounted(sp.name, header.gfn))

    async def untrack_possible_nx_huge_page(self, sp: TablePage) -> None:
        """``untrack_possible_nx_huge_page``, TDP MMU: quietly nothing if it is not on the list."""
        kvm = self.kvm
        if not await ListDel(kvm.possible_nx_tdp_pages, sp):
            return
        await Add(kvm.nr_possible_nx_tdp, -1)
        header = await ReadHeader(sp)
        await Emit(NxPageUnaccounted(sp.name, header.gfn))

    async def recover_nx_lpages(self) -> None:
        """``kvm_nx_huge_page_recovery_worker``: the legacy MMU's pages, then the TDP MMU's."""
        await self.recover_shadow_pages()
        await self.recover_tdp_pages()

    async def recover_shadow_pages(self) -> None:
        """``kvm_recover_nx_huge_pages`` of the legacy MMU, under the write lock."""
        kvm = self.kvm
        await kvm.srcu.read_lock()
        await kvm.mmu_lock.write_lock()
        await kvm.rcu.read_lock()
        invalid_list = InvalidList()
        splits = await Read(kvm.nx_lpage_splits)
        to_zap = self.pages_to_zap(splits)
        while to_zap > 0:
            pages = await Read(kvm.lpage_disallowed_mmu_pages)
            if not pages:
                break
            sp = pages[0]
            await self.unaccount_huge_nx_page(sp)
            header = await ReadHeader(sp)
            if not await self.slot_is_logged(header):
                await self.prepare_zap_page(sp, invalid_list)
            await Emit(NxPageRecovered(header.gfn, True))
            to_zap -= 1
            if await kvm.mmu_lock.needbreak():
                await self.remote_flush_or_zap(invalid_list, False)
                await kvm.rcu.read_unlock()
                await kvm.mmu_lock.cond_resched_write()
                await Emit(Yielded("kvm_recover_nx_huge_pages"))
                await kvm.rcu.read_lock()
        await self.remote_flush_or_zap(invalid_list, False)
        await kvm.rcu.read_unlock()
        await kvm.mmu_lock.write_unlock()
        await kvm.srcu.read_unlock()

    async def recover_tdp_pages(self) -> None:
        """``kvm_recover_nx_huge_pages`` of the TDP MMU, under the read lock."""
        kvm = self.kvm
        nr_pages = await Read(kvm.nr_possible_nx_tdp)
        to_zap = self.pages_to_zap(nr_pages)
        await kvm.srcu.read_lock()
        await kvm.mmu_lock.read_lock()
        await kvm.rcu.read_lock()
        flush = False
        while to_zap > 0:
            sp = await self.pick_nx_page()
            if sp is None:
                break
            header = await ReadHeader(sp)
            zapped = False
            if not await self.slot_is_logged(header):
                zapped = await self.zap_possible_nx_huge_page(sp, header)
            flush = flush or zapped
            await Emit(NxPageRecovered(header.gfn, zapped))
            to_zap -= 1
            if await kvm.mmu_lock.needbreak():
                if flush:
                    await self.flush_remote_tlbs()
                await kvm.rcu.read_unlock()
                await self.break_recovery_lock()
                await Emit(Yielded("kvm_recover_nx_huge_pages"))
                flush = False
                await kvm.rcu.read_lock()
        await self.tdp_recovery_ends(flush)
        await kvm.mmu_lock.read_unlock()
        await kvm.srcu.read_unlock()

    async def break_recovery_lock(self) -> None:
        """``cond_resched_rwlock_read``."""
        await self.kvm.mmu_lock.cond_resched_read()

    async def tdp_recovery_ends(self, flush: bool) -> None:
        """The flush that is still owed, and only then out of RCU."""
        if flush:
            await self.flush_remote_tlbs()
        await self.kvm.rcu.read_unlock()

    async def pick_nx_page(self) -> TablePage | None:
        """The first page of the list, unaccounted before the spinlock is let go."""
        kvm = self.kvm
        await kvm.tdp_mmu_pages_lock.lock()
        pages = await Read(kvm.possible_nx_tdp_pages)
        if not pages:
            await kvm.tdp_mmu_pages_lock.unlock()
            return None
        sp: TablePage = pages[0]
        if not await Read(sp.nx_huge_page_disallowed):
            await Emit(Warned("a page on the list to recover is not marked disallowed"))
        await Write(sp.nx_huge_page_disallowed, False)
        await self.untrack_possible_nx_huge_page(sp)
        await kvm.tdp_mmu_pages_lock.unlock()
        return sp

    def still_points_to(self, spte: int, level: int, sp: TablePage) -> bool:
        """Whether a parent SPTE refers to this very table: not frozen, no leaf, no other table."""
        spte_format = self.kvm.format
        return (
            spte_format.is_shadow_present(spte)
            and not spte_format.is_last(spte, level)
            and spte_format.pfn(spte) == sp.pfn
        )

    async def zap_possible_nx_huge_page(self, sp: TablePage, header: Header) -> bool:
        """``kvm_tdp_mmu_zap_possible_nx_huge_page``: one cmpxchg; true: a flush is owed."""
        kvm = self.kvm
        if header.parent is None:
            await Emit(Warned("recovery of a root"))
            return False
        level = header.level + 1
        it = TdpIter(kvm, kvm.hardware.page_by_number[header.root], header.gfn, header.gfn + 1)
        it.sptep = header.parent
        it.level = level
        it.gfn = header.gfn
        it.old_spte = await ReadSpte(header.parent)
        if not self.still_points_to(it.old_spte, level, sp):
            return False
        if not await self.set_spte_atomic(it, kvm.format.nonpresent):
            now = await ReadSpte(header.parent)
            if self.still_points_to(now, level, sp):
                await Emit(Warned("a lost cmpxchg, but the SPTE still points to the table"))
            return False
        return True
