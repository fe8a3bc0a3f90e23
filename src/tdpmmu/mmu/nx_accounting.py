"""The list of page tables that stand where a huge page could (``mmu.c``, v5.12)."""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader, TablePage
from tdpmmu.events.records import NxPageAccounted, NxPageUnaccounted, Warned
from tdpmmu.machine.op import Add, Emit, ListAdd, ListDel, Read, Write
from tdpmmu.mmu.flush import Flush


class NxAccounting(Flush):
    """Up to 6.17 one list for the TDP MMU's pages and the legacy MMU's."""

    async def account_nx_huge_page(self, sp: TablePage, possible: bool) -> None:
        """A shadow page for a fetch that NX keeps from a huge page, if one is ``possible``."""
        if possible:
            await self.account_huge_nx_page(sp)

    async def account_huge_nx_page(self, sp: TablePage) -> None:
        """``account_huge_nx_page``: onto the tail of the list of pages to recover."""
        if await Read(sp.nx_huge_page_disallowed):
            return
        await Add(self.kvm.nx_lpage_splits, 1)
        await ListAdd(self.kvm.lpage_disallowed_mmu_pages, sp, tail=True)
        await Write(sp.nx_huge_page_disallowed, True)
        header = await ReadHeader(sp)
        await Emit(NxPageAccounted(sp.name, header.gfn))

    async def unaccount_huge_nx_page(self, sp: TablePage) -> None:
        """``unaccount_huge_nx_page``."""
        await Add(self.kvm.nx_lpage_splits, -1)
        await Write(sp.nx_huge_page_disallowed, False)
        if not await ListDel(self.kvm.lpage_disallowed_mmu_pages, sp):
            await Emit(Warned(f"list_del corruption: {sp.name} is not on the list to recover"))
        header = await ReadHeader(sp)
        await Emit(NxPageUnaccounted(sp.name, header.gfn))
