"""Roots of shadow paging: one for each guest root table in use (``mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.guest import ACC_ALL
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import CurrentRoot, LoadRoot
from tdpmmu.arch.table import ReadHeader, TablePage
from tdpmmu.machine.op import Add, Read
from tdpmmu.mmu.guest_writes import GuestWrites
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.shadow_pages import Role


class ShadowRoots(GuestWrites):
    """Counted by ``root_count``; the last user of an invalid root frees it."""

    async def alloc_root(self, vcpu: VcpuCells, as_id: int) -> TablePage:
        """``mmu_alloc_shadow_roots``, ``mmu_alloc_root``: a root for the guest's root table."""
        kvm = self.kvm
        paging = vcpu.paging
        assert paging is not None
        await kvm.mmu_lock.write_lock()
        await self.make_mmu_pages_available()
        role = Role(paging.levels, False, ACC_ALL, as_id, vcpu.guest_mode)
        root = await self.get_shadow_page(vcpu, paging.root_gfn, role)
        await Add(root.root_count, 1)
        await kvm.mmu_lock.write_unlock()
        return root

    async def free_root_page(self, root: TablePage, invalid_list: InvalidList) -> None:
        """``mmu_free_root_page`` of a shadow root."""
        if not await Add(root.root_count, -1) and await Read(root.invalid):
            await self.prepare_zap_page(root, invalid_list)

    async def free_shadow_root(self, root: TablePage) -> None:
        """``kvm_mmu_free_roots``."""
        await self.kvm.mmu_lock.write_lock()
        invalid_list = InvalidList()
        await self.free_root_page(root, invalid_list)
        await self.commit_zap_page(invalid_list)
        await self.kvm.mmu_lock.write_unlock()

    async def mmu_load(self, vcpu: VcpuCells, as_id: int) -> TablePage:
        """``kvm_mmu_load``: of either kind."""
        if vcpu.paging is None:
            root = await self.get_vcpu_root(vcpu.pool, as_id, vcpu.guest_mode)
            await self.load_root(vcpu, root)
            return root
        root = await self.alloc_root(vcpu, as_id)
        await self.sync_root(vcpu, root)
        await self.load_root(vcpu, root)
        return root

    async def reload_root(self, vcpu: VcpuCells) -> None:
        """``kvm_mmu_free_obsolete_roots`` and ``kvm_mmu_load`` for either kind of root."""
        if vcpu.paging is None:
            await super().reload_root(vcpu)
            return
        root = self.kvm.hardware.page_by_number[await CurrentRoot(vcpu)]
        await self.kvm.mmu_lock.read_lock()
        obsolete = await Read(root.invalid)
        await self.kvm.mmu_lock.read_unlock()
        if not obsolete:
            return
        header = await ReadHeader(root)
        await LoadRoot(vcpu, ())
        await self.free_shadow_root(root)
        await self.mmu_load(vcpu, header.as_id)

    async def unload_root(self, vcpu: VcpuCells) -> None:
        """``kvm_mmu_unload`` for either kind of root."""
        if vcpu.paging is None:
            await super().unload_root(vcpu)
            return
        number = await CurrentRoot(vcpu)
        if number < 0:
            return
        await LoadRoot(vcpu, ())
        await self.free_shadow_root(self.kvm.hardware.page_by_number[number])
