"""Zapping in every root (``tdp_mmu.c``, v5.12-rc4)."""

from __future__ import annotations

from tdpmmu.arch.table import ReadHeader, TablePage
from tdpmmu.mmu.roots import Roots


class TdpMmu(Roots):
    """What the rest of KVM calls: zap a range, one page, everything."""

    async def tdp_mmu_zap_gfn_range(self, start: int, end: int, can_yield: bool = True) -> bool:
        """``kvm_tdp_mmu_zap_gfn_range``: in every root; true if a flush is owed."""
        flush = False
        root = await self.first_root()
        while root is not None:
            zapped = await self.zap_gfn_range(root, start, end, can_yield)
            flush = flush or zapped
            root = await self.next_root(root)
        return flush

    async def zap_sp(self, sp: TablePage) -> bool:
        """What recovery calls for a TDP page: zap the gfns it maps, wherever they are mapped.

        Later kernels name it ``kvm_tdp_mmu_zap_sp``.
        """
        header = await ReadHeader(sp)
        end = header.gfn + self.kvm.geometry.pages(header.role_level)
        return await self.tdp_mmu_zap_gfn_range(header.gfn, end)

    async def tdp_mmu_zap_all(self) -> None:
        """``kvm_tdp_mmu_zap_all``."""
        if await self.tdp_mmu_zap_gfn_range(0, self.kvm.geometry.max_gfn):
            await self.flush_remote_tlbs()

    async def page_as_id(self, root: TablePage) -> int:
        """``kvm_mmu_page_as_id``."""
        header = await ReadHeader(root)
        return int(header.as_id)

    async def tdp_mmu_unmap(self, as_id: int, start: int, end: int) -> bool:
        """``kvm_tdp_mmu_unmap_gfn_range``: in the roots of a slot's address space; never yields."""
        flush = False
        root = await self.first_root()
        while root is not None:
            if await self.page_as_id(root) == as_id:
                zapped = await self.zap_gfn_range(root, start, end, False)
                flush = flush or zapped
            root = await self.next_root(root)
        return flush
