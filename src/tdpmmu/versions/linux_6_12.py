"""v6.12: tables are marked before they are linked, huge pages split in place."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.apic import RequestApicReload, WriteApicAccessAddr
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.spte import Access
from tdpmmu.arch.table import (
    CmpXchgSpte,
    FreeUnused,
    Header,
    ReadHeader,
    SetPrivate,
    TablePage,
    WriteSpte,
)
from tdpmmu.events.records import NxPageAccounted, NxPageUnaccounted, PageLinked, Warned
from tdpmmu.machine.op import Add, Emit, ListAdd, ListDel, Read, Write
from tdpmmu.mmu.fault import RET_PF_RETRY, Fault
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.page_split import PageSplit
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.versions.linux_6_1 import Linux_6_1

NO_SLOT_ZAP_ALL = "no-slot-zap-all"
"""The VM has ``KVM_X86_QUIRK_SLOT_ZAP_ALL`` off."""


class Linux_6_12(Linux_6_1):
    """v6.12: recovery under the write lock still, one list for both MMUs."""

    version: ClassVar[str] = "6.12"
    spte_kernel: ClassVar[str] = "6.12"
    changes: ClassVar[tuple[str, ...]] = (
        "61f94478547b a table is marked before it is linked (6.2)",
        "21a36ac6b6c7 and put on the list only if still marked (6.2)",
        "d25ceb926436 the list of all TDP tables is gone (6.2)",
        "f5d16bb9be68 frozen entries are never mapped over (6.2)",
        "a fault splits a huge page in place (6.2)",
        "eb298605705a pages of a slot that is logged are not recovered (6.2)",
        "817fa998362d the slot is looked up in the page's address space (6.4)",
        "0df9dab891ff invalidated roots are zapped by who invalidates them (6.6)",
        "the APIC access page is looked up as a page fault does it, and retried (6.3)",
        "roots are allocated and given up under mmu_lock for read (6.9)",
        "1aa4bb916808 clearing the dirty log splits the last gfn's huge page, too (6.8)",
        "aca48556c592 a zapped SPTE is processed after its flush (6.10)",
        "cf3ff0ee24d6 tables for eager splitting are allocated outside of mmu_lock (6.11)",
        "roots are zapped 4K, 2M, 1G, root (6.12)",
    )
    lockless_nx_flag: ClassVar[bool] = True

    # --- page table pages -----------------------------------------------------------------------

    async def alloc_page(self, fault: Fault, it: TdpIter) -> TablePage:
        """``tdp_mmu_alloc_sp``, ``tdp_mmu_init_child_sp``, marked as the fault says."""
        page = await super().alloc_page(fault, it)
        await SetPrivate(page.nx_huge_page_disallowed, fault.huge_page_disallowed)
        return page

    async def unlink_page(self, sp: TablePage, shared: bool) -> None:
        """``tdp_mmu_unlink_sp``."""
        if not await Read(sp.nx_huge_page_disallowed):
            return
        await self.kvm.tdp_mmu_pages_lock.lock()
        await Write(sp.nx_huge_page_disallowed, False)
        await self.untrack_possible_nx_huge_page(sp)
        await self.kvm.tdp_mmu_pages_lock.unlock()

    async def list_split_page(self, sp: TablePage, shared: bool) -> None:
        """There is no list of all TDP tables any more."""

    def split_end(self, last: int) -> int:
        return last + 1

    async def alloc_page_for_split(self, it: TdpIter, pool: int, shared: bool) -> TablePage:
        """cf3ff0ee24d6 (6.11): always outside of the lock."""
        return await PageSplit.alloc_page_for_split(self, it, pool, shared)

    async def account_nx_huge_page(self, sp: TablePage, possible: bool) -> None:
        """``account_nx_huge_page``: marked in any case, listed if a huge page is possible."""
        kvm = self.kvm
        await Write(sp.nx_huge_page_disallowed, True)
        if possible and sp not in await Read(kvm.lpage_disallowed_mmu_pages):
            await Add(kvm.nx_lpage_splits, 1)
            await ListAdd(kvm.lpage_disallowed_mmu_pages, sp, tail=True)
            header = await ReadHeader(sp)
            await Emit(NxPageAccounted(sp.name, header.gfn))

    async def unaccount_huge_nx_page(self, sp: TablePage) -> None:
        """``unaccount_nx_huge_page``: quietly, if it is not on the list."""
        kvm = self.kvm
        await Write(sp.nx_huge_page_disallowed, False)
        if await ListDel(kvm.lpage_disallowed_mmu_pages, sp):
            await Add(kvm.nx_lpage_splits, -1)
            header = await ReadHeader(sp)
            await Emit(NxPageUnaccounted(sp.name, header.gfn))

    async def track_possible_nx_huge_page(self, sp: TablePage) -> None:
        """``track_possible_nx_huge_page``."""
        kvm = self.kvm
        if sp in await Read(kvm.lpage_disallowed_mmu_pages):
            return
        await Add(kvm.nx_lpage_splits, 1)
        await ListAdd(kvm.lpage_disallowed_mmu_pages, sp, tail=True)
        header = await ReadHeader(sp)
        await Emit(NxPageAccounted(sp.name, header.gfn))

    async def untrack_possible_nx_huge_page(self, sp: TablePage) -> None:
        """``untrack_possible_nx_huge_page``: quietly nothing if it is not on the list."""
        kvm = self.kvm
        if not await ListDel(kvm.lpage_disallowed_mmu_pages, sp):
            return
        await Add(kvm.nx_lpage_splits, -1)
        header = await ReadHeader(sp)
        await Emit(NxPageUnaccounted(sp.name, header.gfn))

    async def zap_spte_atomic(self, it: TdpIter) -> bool:
        """``tdp_mmu_zap_spte_atomic``: what hung below is dealt with once the entry is clear."""
        kvm = self.kvm
        await kvm.mmu_lock.assert_held_read()
        old = it.old_spte
        if not await CmpXchgSpte(it.sptep, old, kvm.format.removed):
            return False
        await self.flush_remote_tlbs_with_address(it.gfn, kvm.geometry.pages(it.level))
        await WriteSpte(it.sptep, kvm.format.nonpresent)
        await self.handle_changed_spte(it.sptep, old, kvm.format.nonpresent, it.level, True)
        return True

    def zap_passes(self) -> tuple[int, ...]:
        """4K, 2M, 1G, root."""
        levels = self.kvm.geometry.levels
        return (
            (*range(1, min(3, levels) + 1), levels) if levels > 3 else tuple(range(1, levels + 1))
        )

    async def flush_shadow_memslot(self, slot: Memslot) -> None:
        """``kvm_arch_flush_shadow_memslot``: without the quirk only the slot's own leaves go."""
        kvm = self.kvm
        if NO_SLOT_ZAP_ALL not in kvm.config.options:
            await self.zap_all_fast()
            return
        await kvm.mmu_lock.write_lock()
        end = slot.base_gfn + slot.npages
        if await self.unmap_gfn_range(slot.as_id, slot.base_gfn, end):
            await self.flush_remote_tlbs()
        await kvm.mmu_lock.write_unlock()

    # --- the APIC access page -------------------------------------------------------------------

    async def unmap_gfn_range(self, as_id: int, start: int, end: int) -> bool:
        """``kvm_unmap_gfn_range``: vCPUs are asked for the APIC access page right here (6.3)."""
        flush = await super().unmap_gfn_range(as_id, start, end)
        if self.has_apic_page() and start <= self.apic_gfn < end:
            await self.request_apic_reload()
        return flush

    async def invalidate_range(self, start: int, end: int) -> None:
        """KVM has no such callback any more."""

    async def reload_apic_access_page(self, vcpu: VcpuCells) -> None:
        """``vmx_set_apic_access_page_addr``: as a page fault would; a request is its retry."""
        kvm = self.kvm
        fault = Fault(self.apic_gfn, Access.READ, 0, 0, 0)
        fault.mmu_seq = await Read(kvm.mmu_notifier_seq)
        pfn = await kvm.memory.get_user_page(self.apic_gfn)
        await kvm.mmu_lock.read_lock()
        if await self.notifier_retry(fault):
            await RequestApicReload(vcpu)
        else:
            await WriteApicAccessAddr(vcpu, pfn)
        await kvm.mmu_lock.read_unlock()

    # --- roots ----------------------------------------------------------------------------------

    async def lock_to_free_roots(self) -> None:
        await self.kvm.mmu_lock.read_lock()

    async def unlock_to_free_roots(self) -> None:
        await self.kvm.mmu_lock.read_unlock()

    async def get_vcpu_root(self, pool: int, as_id: int, guest_mode: bool = False) -> TablePage:
        """``kvm_tdp_mmu_alloc_root``: a usable root, or under ``tdp_mmu_pages_lock`` a new one."""
        kvm = self.kvm
        await kvm.mmu_lock.read_lock()
        root = await self.usable_root(as_id, guest_mode)
        if root is None:
            await kvm.tdp_mmu_pages_lock.lock()
            root = await self.usable_root_again(as_id, guest_mode)
            if root is None:
                root = await self.alloc_tdp_root(pool, as_id, guest_mode)
            await kvm.tdp_mmu_pages_lock.unlock()
        await kvm.mmu_lock.read_unlock()
        return root

    async def usable_root(self, as_id: int, guest_mode: bool) -> TablePage | None:
        """A valid root of this role, with a reference, found inside RCU."""
        root = await self.tdp_mmu_next_root(None, True)
        while root is not None:
            header = await ReadHeader(root)
            if header.as_id == as_id and header.guest_mode == guest_mode:
                return root
            root = await self.tdp_mmu_next_root(root, True)
        return None

    async def usable_root_again(self, as_id: int, guest_mode: bool) -> TablePage | None:
        """The second look, with ``tdp_mmu_pages_lock`` held: another vCPU may have been first."""
        for root in await Read(self.kvm.tdp_mmu_roots):
            header = await ReadHeader(root)
            same = header.as_id == as_id and header.guest_mode == guest_mode
            if not same or await Read(root.invalid):
                continue
            if await self.try_get_root(root):
                found: TablePage = root
                return found
            await Emit(Warned("no reference to be had to a valid root"))
        return None

    # --- page faults ----------------------------------------------------------------------------

    async def disallowed_by_child(self, fault: Fault, spte: int, level: int) -> bool:
        """``disallowed_hugepage_adjust``: only a table that is marked sends the fault below it."""
        spte_format = self.kvm.format
        if (
            level <= 1
            or level != fault.goal_level
            or not spte_format.is_shadow_present(spte)
            or spte_format.is_large(spte)
        ):
            return False
        child = self.kvm.page_of(spte)
        marked: bool = await Read(child.nx_huge_page_disallowed)
        return marked

    async def tdp_mmu_map(self, fault: Fault) -> str:
        """``kvm_tdp_mmu_map``."""
        kvm = self.kvm
        spte = kvm.format
        result = RET_PF_RETRY
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, kvm.hardware.page_by_number[fault.root], fault.gfn, fault.gfn + 1)
        while await it.next_pte():
            if await self.disallowed_by_child(fault, it.old_spte, it.level):
                fault.goal_level -= 1
            if self.leave_frozen(fault, it):
                break
            if it.level == fault.goal_level:
                result = await self.map_target_level(fault, it)
                break
            if spte.is_shadow_present(it.old_spte) and not spte.is_large(it.old_spte):
                continue
            if not await self.map_table(fault, it):
                break
        await kvm.rcu.read_unlock()
        return result

    async def map_table(self, fault: Fault, it: TdpIter) -> bool:
        """``tdp_mmu_link_sp``, or ``tdp_mmu_split_huge_page`` where a huge page is in the way."""
        kvm = self.kvm
        sp = await self.alloc_page(fault, it)
        if kvm.format.is_shadow_present(it.old_spte):
            await self.fill_split_table(sp, it.old_spte, it.level - 1)
        if not await self.set_spte_atomic(it, kvm.format.nonleaf(sp.pfn)):
            await FreeUnused(sp)
            return False
        await Emit(PageLinked(sp.name, it.gfn, it.level - 1, fault.huge_page_disallowed))
        if fault.huge_page_disallowed and fault.req_level >= it.level:
            await self.track_new_page(sp)
        return True

    def leave_frozen(self, fault: Fault, it: TdpIter) -> bool:
        """Whether the entry is another thread's to change: the fault is retried."""
        return self.kvm.format.is_frozen(it.old_spte)

    async def track_new_page(self, sp: TablePage) -> None:
        """The end of ``kvm_tdp_mmu_map``'s loop: onto the list, unless it was zapped meanwhile."""
        await self.kvm.tdp_mmu_pages_lock.lock()
        if await Read(sp.nx_huge_page_disallowed):
            await self.track_possible_nx_huge_page(sp)
        await self.kvm.tdp_mmu_pages_lock.unlock()

    # --- NX recovery ----------------------------------------------------------------------------

    async def slot_is_logged(self, header: Header) -> bool:
        """Whether the slot of a page, in its own address space, has dirty logging on."""
        slots = await Read(self.kvm.memslots[header.as_id])
        slot = slots.find(header.gfn)
        if slot is None:
            await Emit(Warned("no memslot for a page on the list to recover"))
        return slot is not None and slot.log

    async def recover_page(self, sp: TablePage, invalid_list: InvalidList) -> bool:
        """A page of a slot that is logged would fault straight back: it only leaves the list."""
        header = await ReadHeader(sp)
        if await self.slot_is_logged(header):
            await Write(sp.nx_huge_page_disallowed, False)
            await self.untrack_possible_nx_huge_page(sp)
            return False
        return await super().recover_page(sp, invalid_list)
