"""``struct tdp_iter``: a pre-order walk of a TDP paging structure (``tdp_iter.c``, v5.12)."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.table import ReadSpte, TablePage
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.kvm import Kvm


class TdpIter:
    """Visits every SPTE that maps a gfn of ``[start, end)``, parents before children.

    ``while await iter.next_pte():`` is ``for_each_tdp_pte``, ``continue`` included.
    ``next_last_level_gfn`` is where the walk heads, ``yielded_gfn`` where it headed when it last
    yielded: the two together are the forward-progress rule.  ``root`` may be any table, of
    ``root_level``.
    """

    position_fields: ClassVar[tuple[str, ...]] = (
        "root",
        "root_level",
        "min_level",
        "end",
        "next_last_level_gfn",
        "yielded_gfn",
        "pt_path",
        "level",
        "gfn",
        "sptep",
        "old_spte",
        "valid",
        "started",
        "yielded",
        "kvm",
    )
    __slots__ = position_fields

    def __init__(
        self,
        kvm: Kvm,
        root: TablePage,
        start: int,
        end: int,
        *,
        min_level: int = 1,
        root_level: int = 0,
    ) -> None:
        self.kvm = kvm
        self.root = root
        self.root_level = root_level or kvm.geometry.levels
        self.min_level = min_level
        self.end = end
        self.next_last_level_gfn = start
        self.yielded_gfn = start
        self.level = self.root_level
        self.pt_path: list[TablePage | None] = [None] * self.level
        self.gfn = 0
        self.sptep: Cell = root.entries[0]
        self.old_spte = 0
        self.valid = False
        self.started = False
        self.yielded = False

    async def next_pte(self) -> bool:
        """Go to the next SPTE; false once the walk has left the range."""
        if not self.started:
            self.started = True
            await self.start()
        else:
            await self.next()
        return self.valid and self.gfn < self.end

    async def start(self) -> None:
        """``tdp_iter_start``: back to the root, heading for ``next_last_level_gfn``."""
        geometry = self.kvm.geometry
        self.yielded_gfn = self.next_last_level_gfn
        self.level = self.root_level
        self.pt_path = [None] * self.level
        self.pt_path[self.level - 1] = self.root
        self.gfn = geometry.round(self.next_last_level_gfn, self.level)
        await self.refresh_sptep()
        self.valid = True

    async def next(self) -> None:
        """``tdp_iter_next``: down if possible, else sideways, else up and sideways.

        After a yield that only took note (from 5.16) it starts at the root again instead.
        """
        if self.yielded:
            self.yielded = False
            await self.start()
            return
        if await self.try_step_down():
            return
        while True:
            if await self.try_step_side():
                return
            if not await self.try_step_up():
                break
        self.valid = False

    async def refresh_sptep(self) -> None:
        """``tdp_iter_refresh_sptep``: point at the SPTE for gfn and level and read it."""
        table = self.pt_path[self.level - 1]
        assert table is not None
        self.sptep = table.entries[self.kvm.geometry.index(self.gfn, self.level)]
        self.old_spte = await ReadSpte(self.sptep)

    async def try_step_down(self) -> bool:
        """Into the table below, read afresh so as not to follow an entry that is gone."""
        if self.level == self.min_level:
            return False
        self.old_spte = await ReadSpte(self.sptep)
        if not self.kvm.format.is_shadow_present(self.old_spte) or self.kvm.format.is_last(
            self.old_spte, self.level
        ):
            return False
        self.level -= 1
        self.pt_path[self.level - 1] = self.kvm.page_of(self.old_spte)
        self.gfn = self.kvm.geometry.round(self.next_last_level_gfn, self.level)
        await self.refresh_sptep()
        return True

    async def try_step_side(self) -> bool:
        """To the next entry of this table."""
        geometry = self.kvm.geometry
        index = geometry.index(self.gfn, self.level)
        if index == geometry.fanout - 1:
            return False
        self.gfn += geometry.pages(self.level)
        self.next_last_level_gfn = self.gfn
        table = self.pt_path[self.level - 1]
        assert table is not None
        self.sptep = table.entries[index + 1]
        self.old_spte = await ReadSpte(self.sptep)
        return True

    async def try_step_up(self) -> bool:
        """To the parent table, whose current entry has been visited already."""
        if self.level == self.root_level:
            return False
        self.pt_path[self.level - 1] = None
        self.level += 1
        self.gfn = self.kvm.geometry.round(self.gfn, self.level)
        await self.refresh_sptep()
        return True
