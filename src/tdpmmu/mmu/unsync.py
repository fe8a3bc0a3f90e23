"""Unsync shadow pages: those whose guest table the guest may write unseen (``mmu.c``, v6.12).

A parent counts the children that are unsync or have such children, so that a walk finds them.
"""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader, ReadSpte, TablePage
from tdpmmu.events.records import GfnTracked, GfnUntracked, Warned
from tdpmmu.machine.op import Emit, Read, Write
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.rmap import Rmap


class Unsync(Rmap):
    """Marked under ``mmu_unsync_pages_lock``, cleared under ``mmu_lock`` held for write."""

    async def unsync_page(self, sp: TablePage) -> None:
        """``kvm_unsync_page``."""
        header = await ReadHeader(sp)
        await Write(sp.unsync, True)
        await self.mark_parents_unsync(sp)
        await Emit(GfnUntracked(header.as_id, header.gfn, sp.name))

    async def mark_parents_unsync(self, sp: TablePage) -> None:
        """``kvm_mmu_mark_parents_unsync``."""
        for sptep in await Read(sp.parent_ptes):
            await self.mark_unsync(sptep)

    async def mark_unsync(self, sptep: Cell) -> None:
        """``mark_unsync``: neither the bit nor the count is changed atomically."""
        sp: TablePage = sptep.page
        index = self.spte_index(sptep)
        bitmap = await Read(sp.unsync_child_bitmap)
        await Write(sp.unsync_child_bitmap, bitmap | {index})
        if index in bitmap:
            return
        count = await Read(sp.unsync_children)
        await Write(sp.unsync_children, count + 1)
        if not count:
            await self.mark_parents_unsync(sp)

    async def clear_unsync_child(self, sp: TablePage, index: int) -> None:
        """``clear_unsync_child_bit``."""
        count = await Read(sp.unsync_children)
        await Write(sp.unsync_children, count - 1)
        if count <= 0:
            await Emit(Warned(f"{sp.name}->unsync_children drops below zero"))
        bitmap = await Read(sp.unsync_child_bitmap)
        await Write(sp.unsync_child_bitmap, bitmap - {index})

    async def unlink_unsync_page(self, sp: TablePage) -> None:
        """``kvm_unlink_unsync_page``."""
        await Write(sp.unsync, False)

    async def unsync_walk(self, sp: TablePage) -> tuple[TablePage, ...]:
        """``mmu_unsync_walk``: the unsync pages below ``sp``; bits that mean nothing go."""
        if not await Read(sp.unsync_children):
            return ()
        spte_format = self.kvm.format
        header = await ReadHeader(sp)
        found: list[TablePage] = []
        bitmap = await Read(sp.unsync_child_bitmap)
        for index in sorted(bitmap):
            spte = await ReadSpte(sp.entries[index])
            if not spte_format.is_shadow_present(spte) or spte_format.is_last(spte, header.level):
                await self.clear_unsync_child(sp, index)
                continue
            child = self.kvm.page_of(spte)
            if await Read(child.unsync_children):
                below = await self.unsync_walk(child)
                found.extend(page for page in below if page not in found)
                if not below:
                    await self.clear_unsync_child(sp, index)
            elif await Read(child.unsync):
                if child not in found:
                    found.append(child)
            else:
                await self.clear_unsync_child(sp, index)
        return tuple(found)

    async def clear_parents(self, root: TablePage, sp: TablePage) -> None:
        """``mmu_pages_clear_parents``: after ``sp`` was synced, on the way up to ``root``."""
        spte_format = self.kvm.format
        header = await ReadHeader(root)
        bitmap = await Read(root.unsync_child_bitmap)
        for index in sorted(bitmap):
            spte = await ReadSpte(root.entries[index])
            if not spte_format.is_shadow_present(spte) or spte_format.is_last(spte, header.level):
                continue
            child = self.kvm.page_of(spte)
            if child is not sp:
                await self.clear_parents(child, sp)
                if await Read(child.unsync_children):
                    continue
            await self.clear_unsync_child(root, index)

    async def tracks_again(self, sp: TablePage) -> None:
        """From here on the guest cannot write the table that ``sp`` shadows."""
        header = await ReadHeader(sp)
        await Emit(GfnTracked(header.as_id, header.gfn, sp.name))
