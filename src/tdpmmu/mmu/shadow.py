"""The life of a shadow page: unlinking, zapping, freeing (``mmu.c``, v6.12).

Pages that shadow guest tables, and direct ones below them where a large guest page is mapped small;
they hang below legacy roots and are on the same lists whatever made them.
"""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.table import FreeNow, Header, ReadHeader, ReadSpte, TablePage, WriteSpte
from tdpmmu.events.records import GfnUntracked, PageZapped, Warned
from tdpmmu.machine.op import Add, Emit, ListDel, Read, Write
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.unsync import Unsync


class InvalidList:
    """A local ``LIST_HEAD(invalid_list)``: zapped pages whose flush and free are still to come."""

    position_fields: ClassVar[tuple[str, ...]] = ("pages",)
    __slots__ = position_fields

    def __init__(self) -> None:
        self.pages: list[TablePage] = []


class ShadowMmu(Unsync):
    """Prepare and commit; everything under ``mmu_lock`` held for write."""

    # --- unlinking ------------------------------------------------------------------------------

    async def drop_parent_pte(self, sp: TablePage, sptep: Cell) -> None:
        """``drop_parent_pte``: clear an entry that points to ``sp``."""
        if not await ListDel(sp.parent_ptes, sptep):
            await Emit(Warned(f"BUG: {sptep.name} is not among the parents of {sp.name}"))
        await WriteSpte(sptep, self.kvm.format.nonpresent)

    async def page_zap_pte(self, sp: TablePage, sptep: Cell, invalid: InvalidList | None) -> int:
        """``mmu_page_zap_pte``: clear an entry, whatever it is; how many pages that zapped."""
        spte_format = self.kvm.format
        spte = await ReadSpte(sptep)
        if not spte_format.is_shadow_present(spte):
            if spte_format.is_mmio(spte):
                await WriteSpte(sptep, spte_format.nonpresent)
            return 0
        header = await ReadHeader(sp)
        if spte_format.is_last(spte, header.level):
            await self.drop_spte(sptep)
            return 0
        child = self.kvm.page_of(spte)
        await self.drop_parent_pte(child, sptep)
        if invalid is None or not await self.zaps_orphan(child):
            return 0
        before = len(invalid.pages)
        await self.prepare_zap_page(child, invalid)
        return len(invalid.pages) - before

    async def zaps_orphan(self, child: TablePage) -> bool:
        """Whether a page without parents goes with the last: if it maps L2 (from 5.9).

        One that is a root in use stays (7a2c70e777a0).
        """
        header = await ReadHeader(child)
        if not header.guest_mode or await Read(child.root_count):
            return False
        return not await Read(child.parent_ptes)

    async def unlink_children(self, sp: TablePage, invalid_list: InvalidList) -> int:
        """``kvm_mmu_page_unlink_children``."""
        zapped = 0
        for sptep in sp.entries:
            zapped += await self.page_zap_pte(sp, sptep, invalid_list)
        return zapped

    async def unlink_parents(self, sp: TablePage) -> None:
        """``kvm_mmu_unlink_parents``."""
        for sptep in await Read(sp.parent_ptes):
            await self.drop_parent_pte(sp, sptep)

    async def zap_unsync_children(self, sp: TablePage, invalid_list: InvalidList) -> int:
        """``mmu_zap_unsync_children``."""
        zapped = 0
        while True:
            pages = await self.unsync_walk(sp)
            if not pages:
                return zapped
            for page in pages:
                await self.prepare_zap_page(page, invalid_list)
                await self.clear_parents(sp, page)
                zapped += 1

    # --- zapping --------------------------------------------------------------------------------

    async def prepare_zap_page(self, sp: TablePage, invalid_list: InvalidList) -> int:
        """``__kvm_mmu_prepare_zap_page``: how many other pages went with it.

        A root in use is taken off the lists and left for its last user to free.
        """
        kvm = self.kvm
        await kvm.mmu_lock.assert_held_write()
        header = await ReadHeader(sp)
        await Emit(PageZapped(sp.name, header.gfn, header.level, True))
        zapped = await self.zap_unsync_children(sp, invalid_list)
        zapped += await self.unlink_children(sp, invalid_list)
        await self.unlink_parents(sp)
        was_invalid = await Read(sp.invalid)
        if not was_invalid and not header.direct:
            await self.unaccount_shadowed(sp, header)
        if await Read(sp.unsync):
            await self.unlink_unsync_page(sp)
        zapped_root = False
        if not await Read(sp.root_count):
            # An invalid page was a root, and is off the list already.
            on_list = await ListDel(kvm.active_mmu_pages, sp)
            if on_list == was_invalid:
                await Emit(Warned(f"list corruption: {sp.name} on active_mmu_pages: {on_list}"))
            await Add(kvm.n_used_mmu_pages, -1)
            invalid_list.pages.append(sp)
        else:
            if not await ListDel(kvm.active_mmu_pages, sp) and not was_invalid:
                await Emit(Warned(f"list corruption: {sp.name} is not on active_mmu_pages"))
            zapped_root = not was_invalid
        if await Read(sp.nx_huge_page_disallowed):
            await self.unaccount_huge_nx_page(sp)
        await Write(sp.invalid, True)
        if zapped_root:
            await self.reload_remote_mmus()
        return zapped

    async def unaccount_shadowed(self, sp: TablePage, header: Header) -> None:
        """``unaccount_shadowed``: the guest may write the table again."""
        kvm = self.kvm
        if header.level > 1:
            tracked = await Read(kvm.write_tracked[header.as_id])
            first = tracked.index(header.gfn)
            await Write(kvm.write_tracked[header.as_id], tracked[:first] + tracked[first + 1 :])
        await Emit(GfnUntracked(header.as_id, header.gfn, sp.name))

    async def commit_zap_page(self, invalid_list: InvalidList) -> None:
        """``kvm_mmu_commit_zap_page``: flush, then free what is on the list."""
        if not invalid_list.pages:
            return
        await self.flush_remote_tlbs()
        while invalid_list.pages:
            await self.free_shadow_page(invalid_list.pages.pop(0))

    async def free_shadow_page(self, sp: TablePage) -> None:
        """``kvm_mmu_free_shadow_page``."""
        header = await ReadHeader(sp)
        await ListDel(self.kvm.mmu_page_hash[header.gfn], sp)
        await FreeNow(sp)

    async def remote_flush_or_zap(self, invalid_list: InvalidList, flush: bool) -> None:
        """``kvm_mmu_remote_flush_or_zap``: commit, which flushes, or flush if ``flush`` says so."""
        if invalid_list.pages:
            await self.commit_zap_page(invalid_list)
        elif flush:
            await self.flush_remote_tlbs()

    async def zap_all_shadow_pages(self) -> None:
        """The legacy half of ``kvm_mmu_zap_all``: the newest page first."""
        invalid_list = InvalidList()
        while await self.zap_active_pages(invalid_list, False):
            pass
        await self.commit_zap_page(invalid_list)

    async def zap_obsolete_pages(self) -> None:
        """``kvm_zap_obsolete_pages``, of ``kvm_mmu_zap_all_fast``: the oldest page first.

        In one go: the kernel breaks the lock after ten pages; nobody has them.
        """
        invalid_list = InvalidList()
        while await self.zap_active_pages(invalid_list, True):
            pass
        await self.commit_zap_page(invalid_list)

    async def zap_active_pages(self, invalid_list: InvalidList, oldest_first: bool) -> bool:
        """One go over the list; true if it has to start again, as other pages went, too."""
        pages = await Read(self.kvm.active_mmu_pages)
        for sp in pages[::-1] if oldest_first else pages:
            if await Read(sp.invalid):
                await Emit(Warned(f"{sp.name} on active_mmu_pages is invalid"))
                continue
            if await self.prepare_zap_page(sp, invalid_list):
                return True
        return False
