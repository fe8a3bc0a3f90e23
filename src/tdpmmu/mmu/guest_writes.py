"""Writes to guest page tables, and the guest's own TLB flushes (``mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.arch.guest import GuestFlush, WriteGuestMemory
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import CurrentRoot, FlushOwnAddress, FlushOwnTlb
from tdpmmu.arch.spte import Access
from tdpmmu.arch.table import ReadSpte, TablePage
from tdpmmu.machine.op import Read
from tdpmmu.mmu.guest_walk import read_guest_atomic, walk_addr
from tdpmmu.mmu.shadow import InvalidList
from tdpmmu.mmu.shadow_fault import ShadowFault


class GuestWrites(ShadowFault):
    """What keeps shadow pages up to date: emulated writes, INVLPG, and loads of CR3."""

    async def emulate_store(
        self, vcpu: VcpuCells, as_id: int, address: int, store: tuple[int, int]
    ) -> None:
        """``x86_emulate_instruction`` of a write to a tracked or read-only gfn."""
        gfn = address
        if vcpu.paging is not None:
            walker = await walk_addr(self.kvm, vcpu.paging, as_id, address, Access.WRITE)
            if walker is None:
                return
            gfn = walker.gfn
        index, value = store
        if await read_guest_atomic(self.kvm, as_id, gfn, index) is None:
            return
        await WriteGuestMemory(self.kvm.guest, gfn, index, value)
        await self.emulate_write(vcpu, as_id, gfn)
        await self.track_write(gfn, index)

    async def host_writes(self, gfn: int, store: tuple[int, int]) -> None:
        """Userspace or a device writes guest memory: KVM is not told."""
        await WriteGuestMemory(self.kvm.guest, gfn, *store)

    async def track_write(self, gfn: int, index: int) -> None:
        """``kvm_mmu_track_write``: what shadows the entry that was written is zapped."""
        kvm = self.kvm
        if not kvm.config.shadow_pages:
            return
        await kvm.mmu_lock.write_lock()
        invalid_list = InvalidList()
        flush = False
        for sp in await Read(kvm.mmu_page_hash[gfn]):
            if not await self.shadows_gptes(sp):
                continue
            sptep = sp.entries[index]
            old = await ReadSpte(sptep)
            if kvm.format.is_shadow_present(old):
                flush = True
            await self.page_zap_pte(sp, sptep, None)
        await self.remote_flush_or_zap(invalid_list, flush)
        await kvm.mmu_lock.write_unlock()

    async def invlpg(self, vcpu: VcpuCells, address: int) -> None:
        """``kvm_mmu_invlpg``: sync the one entry if its page is unsync, flush the address here."""
        kvm = self.kvm
        await GuestFlush(vcpu.number, address)
        root = await CurrentRoot(vcpu)
        if root >= 0:
            await kvm.mmu_lock.write_lock()
            await self.invalidate_addr(vcpu, kvm.hardware.page_by_number[root], address)
            await kvm.mmu_lock.write_unlock()
        await FlushOwnAddress(kvm.hardware, vcpu, address)

    async def invalidate_addr(self, vcpu: VcpuCells, sp: TablePage, address: int) -> None:
        """``__kvm_mmu_invalidate_addr``: down the shadow pages as long as there is unsync below."""
        kvm = self.kvm
        assert vcpu.paging is not None
        level = vcpu.paging.levels
        while True:
            sptep = sp.entries[kvm.geometry.index(address, level)]
            if await Read(sp.unsync):
                changed = await self.sync_spte(vcpu, sp, sptep)
                if changed is None:
                    await self.page_zap_pte(sp, sptep, None)
                if changed is not False:
                    await self.flush_remote_tlbs()
            if not await Read(sp.unsync_children):
                return
            spte = await ReadSpte(sptep)
            if not kvm.format.is_shadow_present(spte) or kvm.format.is_last(spte, level):
                return
            sp = kvm.page_of(spte)
            level -= 1

    async def load_cr3(self, vcpu: VcpuCells) -> None:
        """A load of CR3 with the same value: ``kvm_mmu_sync_roots``, and a local flush."""
        await GuestFlush(vcpu.number, -1)
        await self.sync_roots(vcpu)
        await FlushOwnTlb(vcpu)

    async def sync_roots(self, vcpu: VcpuCells) -> None:
        """``kvm_mmu_sync_roots``."""
        number = await CurrentRoot(vcpu)
        if number >= 0:
            await self.sync_root(vcpu, self.kvm.hardware.page_by_number[number])

    async def sync_root(self, vcpu: VcpuCells, root: TablePage) -> None:
        """The lock is taken only if something below the root is unsync (``is_unsync_root``)."""
        kvm = self.kvm
        if not await Read(root.unsync) and not await Read(root.unsync_children):
            return
        await kvm.mmu_lock.write_lock()
        await self.sync_children(vcpu, root, True)
        await kvm.mmu_lock.write_unlock()
