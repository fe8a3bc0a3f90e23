"""The legacy (shadow) MMU as far as NX recovery needs it (``mmu.c``, v5.12).

Direct shadow pages, as a nested guest's huge pages get them when they are split for NX: they hang
below a legacy root, map host pages by rmap, and are on the same list as the TDP MMU's.
"""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.table import FreeNow, ReadHeader, ReadSpte, TablePage, WriteSpte
from tdpmmu.events.records import PageZapped
from tdpmmu.machine.op import Emit, ListAdd, ListDel, Read
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.nx_accounting import NxAccounting


class InvalidList:
    """A local ``LIST_HEAD(invalid_list)``: zapped pages whose flush and free are still to come."""

    position_fields: ClassVar[tuple[str, ...]] = ("pages",)
    __slots__ = position_fields

    def __init__(self) -> None:
        self.pages: list[TablePage] = []


class ShadowMmu(NxAccounting):
    """Prepare, commit, and the rmap; everything under ``mmu_lock`` held for write."""

    async def drop_spte(self, sptep: Cell, gfn: int) -> None:
        """``drop_spte``: clear a leaf and its rmap entry."""
        await WriteSpte(sptep, self.kvm.format.nonpresent)
        await ListDel(self.kvm.rmap[gfn], sptep)

    async def prepare_zap_page(self, sp: TablePage, invalid_list: InvalidList) -> None:
        """``kvm_mmu_prepare_zap_page``: unlink children and parent, put it on ``invalid_list``."""
        kvm = self.kvm
        await kvm.mmu_lock.assert_held_write()
        header = await ReadHeader(sp)
        await Emit(PageZapped(sp.name, header.gfn, header.level, True))
        for i in range(kvm.geometry.fanout):
            sptep = sp.entries[i]
            old = await ReadSpte(sptep)
            if not kvm.format.is_shadow_present(old):
                continue
            gfn = header.gfn + i * kvm.geometry.pages(header.level)
            if kvm.format.is_last(old, header.level):
                await self.drop_spte(sptep, gfn)
            else:
                await WriteSpte(sptep, kvm.format.nonpresent)
        if header.parent is not None:
            await WriteSpte(header.parent, kvm.format.nonpresent)
        await ListDel(kvm.active_mmu_pages, sp)
        if await Read(sp.nx_huge_page_disallowed):
            await self.unaccount_huge_nx_page(sp)
        invalid_list.pages.append(sp)

    async def commit_zap_page(self, invalid_list: InvalidList) -> None:
        """``kvm_mmu_commit_zap_page``: flush, then free what is on the list."""
        if not invalid_list.pages:
            return
        await self.flush_remote_tlbs()
        while invalid_list.pages:
            await FreeNow(invalid_list.pages.pop(0))

    async def remote_flush_or_zap(self, invalid_list: InvalidList, flush: bool) -> None:
        """``kvm_mmu_remote_flush_or_zap``: commit, which flushes, or flush if ``flush`` says so."""
        if invalid_list.pages:
            await self.commit_zap_page(invalid_list)
        elif flush:
            await self.flush_remote_tlbs()

    async def map_leaf(self, sp: TablePage, index: int, spte: int, gfn: int) -> None:
        """Install a leaf and its rmap entry (``mmu_set_spte``, ``rmap_add``)."""
        await WriteSpte(sp.entries[index], spte)
        await ListAdd(self.kvm.rmap[gfn], sp.entries[index])

    async def unmap_rmap(self, start: int, end: int) -> bool:
        """``kvm_unmap_rmapp`` over a range of gfns; true: flush owed."""
        flush = False
        for gfn in range(start, end):
            for sptep in await Read(self.kvm.rmap[gfn]):
                await self.drop_spte(sptep, gfn)
                flush = True
        return flush

    async def zap_all_shadow_pages(self) -> None:
        """The legacy half of ``kvm_mmu_zap_all``."""
        invalid_list = InvalidList()
        for sp in await Read(self.kvm.active_mmu_pages):
            await self.prepare_zap_page(sp, invalid_list)
        await self.commit_zap_page(invalid_list)
