"""Reverse maps of the shadow MMU: from a gfn to the leaves that map it (``mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader, ReadSpte, TablePage, WriteSpte, XchgSpte
from tdpmmu.events.records import PfnMarkedDirty, Warned
from tdpmmu.machine.op import Emit, ListAdd, ListDel, Read, Write
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.nx_accounting import NxAccounting


class Rmap(NxAccounting):
    """Everything under ``mmu_lock`` held for write."""

    def spte_index(self, sptep: Cell) -> int:
        """``spte_index``: where in its table an entry is."""
        return self.kvm.hardware.entry_index[sptep.key]

    async def page_gfn(self, sptep: Cell) -> int:
        """``kvm_mmu_page_get_gfn``: the gfn that a leaf maps, as its page remembers it."""
        sp: TablePage = sptep.page
        index = self.spte_index(sptep)
        header = await ReadHeader(sp)
        if header.direct:
            return int(header.gfn + index * self.kvm.geometry.pages(header.level))
        shadowed = await Read(sp.shadowed)
        return int(shadowed[index][0])

    async def set_page_translation(self, sptep: Cell, gfn: int, access: int) -> None:
        """``kvm_mmu_page_set_translation``: what the guest's entry said, to find the rmap again."""
        sp: TablePage = sptep.page
        header = await ReadHeader(sp)
        if header.direct:
            return
        index = self.spte_index(sptep)
        shadowed = await Read(sp.shadowed)
        await Write(sp.shadowed, (*shadowed[:index], (gfn, access), *shadowed[index + 1 :]))

    async def rmap_add(self, sptep: Cell, gfn: int, access: int) -> None:
        """``rmap_add``."""
        await self.set_page_translation(sptep, gfn, access)
        await ListAdd(self.kvm.rmap[gfn], sptep)

    async def rmap_remove(self, sptep: Cell) -> None:
        """``rmap_remove``, ``pte_list_remove``: the gfn comes from the page, not from the SPTE."""
        gfn = await self.page_gfn(sptep)
        if not await ListDel(self.kvm.rmap[gfn], sptep):
            await self.rmap_is_corrupt(sptep, gfn)

    async def rmap_is_corrupt(self, sptep: Cell, gfn: int) -> None:
        """``KVM_BUG_ON_DATA_CORRUPTION`` in ``pte_list_remove``."""
        await Emit(Warned(f"BUG: {sptep.name} is not in the rmap of gfn {gfn:#x}"))

    async def drop_spte(self, sptep: Cell) -> None:
        """``drop_spte``: clear a leaf, tell the host if it was dirty, and forget it."""
        spte = self.kvm.format
        old = await XchgSpte(sptep, spte.nonpresent)
        if not spte.is_shadow_present(old):
            return
        if spte.is_dirty(old):
            header = await ReadHeader(sptep.page)
            pages = self.kvm.geometry.pages(header.level)
            await Emit(PfnMarkedDirty(spte.pfn(old), pages))
        await self.rmap_remove(sptep)

    async def map_leaf(self, sp: TablePage, index: int, spte: int, gfn: int) -> None:
        """Install a leaf and its rmap entry (``mmu_set_spte``, ``rmap_add``)."""
        await WriteSpte(sp.entries[index], spte)
        await self.rmap_add(sp.entries[index], gfn, 7)

    async def rmap_sptes(self, gfn: int, first: int = 1, last: int = 0) -> tuple[Cell, ...]:
        """The leaves of levels ``first`` to ``last`` (0: all) that map a gfn (``gfn_to_rmap``)."""
        geometry = self.kvm.geometry
        found: list[Cell] = []
        for level in range(first, (last or self.kvm.config.huge_level) + 1):
            for sptep in await Read(self.kvm.rmap[geometry.round(gfn, level)]):
                header = await ReadHeader(sptep.page)
                # A page that was freed has no header: reading the entry is what tells.
                if header is None:
                    await ReadSpte(sptep)
                elif header.level == level:
                    found.append(sptep)
        return tuple(found)

    async def unmap_rmap(self, start: int, end: int) -> bool:
        """``kvm_unmap_rmapp`` over a range of gfns; true: flush owed."""
        flush = False
        for gfn in range(start, end):
            for sptep in await self.rmap_sptes(gfn):
                await self.drop_spte(sptep)
                flush = True
        return flush

    async def rmap_write_protect(
        self, gfn: int, pt_protect: bool, first: int = 1, last: int = 0
    ) -> bool:
        """``rmap_write_protect`` of levels ``first`` to ``last``: true: a flush is owed.

        ``pt_protect``: for a page table, MMU-writable goes, too; else for dirty logging.
        """
        spte = self.kvm.format
        flush = False
        for sptep in await self.rmap_sptes(gfn, first, last):
            old = await ReadSpte(sptep)
            either = spte.is_mmu_writable(old) and pt_protect
            if not spte.is_writable(old) and not either:
                continue
            mask = spte.writable | (spte.mmu_writable if pt_protect else 0)
            await self.update_spte(sptep, old & ~mask)
            flush = True
        return flush

    async def update_spte(self, sptep: Cell, new: int) -> bool:
        """``mmu_spte_update``: the same frame, other bits; true: a flush is owed."""
        spte = self.kvm.format
        old = await XchgSpte(sptep, new)
        if not spte.is_shadow_present(old):
            return False
        if spte.pfn(old) != spte.pfn(new):
            await Emit(Warned("mmu_spte_update of an SPTE with another pfn"))
        flush = spte.is_mmu_writable(old) and not spte.is_writable(new)
        if spte.is_dirty(old) and not spte.is_dirty(new):
            await Emit(PfnMarkedDirty(spte.pfn(old), 1))
            flush = True
        return flush
