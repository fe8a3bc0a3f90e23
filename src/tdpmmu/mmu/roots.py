"""TDP MMU roots: allocation, references, iteration (``tdp_mmu.c``, v5.12)."""

from __future__ import annotations

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import CurrentRoot, FlushOwnTlb, LoadRoot
from tdpmmu.arch.table import Allocate, FreeNow, Header, ReadHeader, SetPrivate, TablePage
from tdpmmu.events.records import Refcount
from tdpmmu.machine.op import Add, Emit, ListAdd, ListDel, Read
from tdpmmu.mmu.tdp_zap import TdpZap

NO_TDP_MMU = "no-tdp-mmu"
"""The module parameter ``tdp_mmu`` is off; the VM must be one that can have shadow pages."""


class Roots(TdpZap):
    """A root is shared by all vCPUs of one role; here that is the address space (SMM or not)."""

    def tdp_mmu_enabled(self) -> bool:
        """``tdp_mmu_enabled``."""
        return NO_TDP_MMU not in self.kvm.config.options

    async def get_vcpu_root(self, pool: int, as_id: int, guest_mode: bool = False) -> TablePage:
        """``get_tdp_mmu_vcpu_root``: the root for this address space, a new one if need be."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        for root in await Read(kvm.tdp_mmu_roots):
            header = await ReadHeader(root)
            same = header.as_id == as_id and header.guest_mode == guest_mode
            if same and not await Read(root.invalid):
                await self.get_root(root)
                await kvm.mmu_lock.write_unlock()
                return root  # type: ignore[no-any-return]
        root = await self.alloc_tdp_root(pool, as_id, guest_mode)
        await kvm.mmu_lock.write_unlock()
        return root

    async def alloc_tdp_root(self, pool: int, as_id: int, guest_mode: bool) -> TablePage:
        """A new root, on the list."""
        kvm = self.kvm
        levels = kvm.geometry.levels
        root: TablePage = await Allocate(
            kvm.pools[pool],
            Header(0, levels, levels, as_id, 0, tdp=True, guest_mode=guest_mode),
            root=True,
        )
        count = await self.new_root_count()
        await SetPrivate(root.root_count, count)
        await ListAdd(kvm.tdp_mmu_roots, root)
        return root

    async def new_root_count(self) -> int:
        """The references that a new root starts with."""
        return 1

    async def get_root(self, root: TablePage) -> None:
        """``kvm_mmu_get_root``."""
        new = await Add(root.root_count, 1)
        await Emit(Refcount(root.name, new - 1, new, "kvm_mmu_get_root"))

    async def put_root(self, root: TablePage) -> None:
        """``tdp_mmu_put_root``: the last reference frees the root."""
        await self.kvm.mmu_lock.assert_held_write()
        new = await Add(root.root_count, -1)
        await Emit(Refcount(root.name, new + 1, new, "kvm_mmu_put_root"))
        if new == 0:
            await self.free_root(root)

    async def free_root(self, root: TablePage) -> None:
        """``kvm_tdp_mmu_free_root``: zap everything below it, then the page itself, at once."""
        await self.kvm.mmu_lock.assert_held_write()
        await ListDel(self.kvm.tdp_mmu_roots, root)
        await self.zap_gfn_range(root, 0, self.kvm.geometry.max_gfn, False)
        await FreeNow(root)

    async def first_root(self) -> TablePage | None:
        """Start of ``for_each_tdp_mmu_root_yield_safe``; the root comes with a reference."""
        await self.kvm.mmu_lock.assert_held_write()
        roots = await Read(self.kvm.tdp_mmu_roots)
        if not roots:
            return None
        await self.get_root(roots[0])
        return roots[0]  # type: ignore[no-any-return]

    async def next_root(self, root: TablePage) -> TablePage | None:
        """The next one, with a reference; the reference to the last is put."""
        roots = await Read(self.kvm.tdp_mmu_roots)
        after = roots.index(root) + 1 if root in roots else len(roots)
        await self.put_root(root)
        if after >= len(roots):
            return None
        await self.get_root(roots[after])
        return roots[after]  # type: ignore[no-any-return]

    async def load_root(self, vcpu: VcpuCells, root: TablePage) -> None:
        """``kvm_mmu_load``: use ``root``, after a local flush of what an earlier life left."""
        await LoadRoot(vcpu, (root.number,))
        await FlushOwnTlb(vcpu)

    async def lock_to_free_roots(self) -> None:
        """``mmu_lock`` as a vCPU gives its root up: up to 6.8 for write."""
        await self.kvm.mmu_lock.write_lock()

    async def unlock_to_free_roots(self) -> None:
        """The counterpart."""
        await self.kvm.mmu_lock.write_unlock()

    async def reload_root(self, vcpu: VcpuCells) -> None:
        """``kvm_mmu_free_obsolete_roots``, then ``kvm_mmu_load`` if the root was one."""
        number = await CurrentRoot(vcpu)
        root = self.kvm.hardware.page_by_number[number]
        await self.lock_to_free_roots()
        if not await Read(root.invalid):
            await self.unlock_to_free_roots()
            return
        header = await ReadHeader(root)
        await LoadRoot(vcpu, ())
        await self.put_root(root)
        await self.unlock_to_free_roots()
        fresh = await self.get_vcpu_root(vcpu.pool, header.as_id, header.guest_mode)
        await self.load_root(vcpu, fresh)

    async def unload_root(self, vcpu: VcpuCells) -> None:
        """``kvm_mmu_unload``: the vCPU gives up its root and its reference."""
        number = await CurrentRoot(vcpu)
        if number < 0:
            return
        await self.lock_to_free_roots()
        await LoadRoot(vcpu, ())
        await self.put_root(self.kvm.hardware.page_by_number[number])
        await self.unlock_to_free_roots()
