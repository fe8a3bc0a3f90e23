"""Shadow pages of guest tables: finding, making, linking and syncing them (``mmu.c``, v6.12)."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.guest import ACC_EXEC, ACC_WRITE, gpte_access, gpte_gfn, is_accessed_gpte
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.table import Allocate, Header, ReadHeader, ReadSpte, TablePage, WriteSpte
from tdpmmu.events.records import GfnTracked, PageLinked, Warned
from tdpmmu.machine.op import Add, Emit, ListAdd, Read, Write
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.guest_walk import protect_clean_gpte, read_guest_atomic
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.nx_worker import NxWorker
from tdpmmu.mmu.shadow import InvalidList


@dataclass(frozen=True, slots=True)
class Role:
    """``union kvm_mmu_page_role``, without what never differs here; a page's own ``invalid`` is a
    cell.
    """

    level: int
    direct: bool
    access: int
    as_id: int
    guest_mode: bool
    invalid: bool = False


def role_of(header: Header) -> Role:
    """The role of a page."""
    return Role(header.level, header.direct, header.access, header.as_id, header.guest_mode)


class ShadowPages(NxWorker):
    """One shadow page for each guest table and role; under ``mmu_lock`` held for write."""

    # --- finding and making ---------------------------------------------------------------------

    async def get_shadow_page(self, vcpu: VcpuCells, gfn: int, role: Role) -> TablePage:
        """``kvm_mmu_get_shadow_page``."""
        sp = await self.find_shadow_page(vcpu, gfn, role)
        if sp is None:
            sp = await self.alloc_shadow_page(vcpu.pool, gfn, role)
        return sp

    async def find_shadow_page(
        self, vcpu: VcpuCells | None, gfn: int, role: Role
    ) -> TablePage | None:
        """``kvm_mmu_find_shadow_page``: an unsync page is brought up to date, but stays unsync.

        Without a vCPU only a direct page can be found.
        """
        invalid_list = InvalidList()
        found: TablePage | None = None
        for sp in await Read(self.kvm.mmu_page_hash[gfn]):
            if await Read(sp.invalid):
                continue
            header = await ReadHeader(sp)
            if role_of(header) != role:
                if role.level > 1 and await Read(sp.unsync):
                    await self.prepare_zap_page(sp, invalid_list)
                continue
            if not role.direct and await Read(sp.unsync):
                assert vcpu is not None
                flush = await self.sync_page(vcpu, sp, invalid_list)
                if flush is None:
                    break
                if flush:
                    await self.flush_remote_tlbs()
            found = sp
            break
        await self.commit_zap_page(invalid_list)
        return found

    async def alloc_shadow_page(self, pool: int, gfn: int, role: Role) -> TablePage:
        """``kvm_mmu_alloc_shadow_page``."""
        kvm = self.kvm
        sp: TablePage = await Allocate(
            kvm.pools[pool],
            Header(
                gfn,
                role.level,
                role.level,
                role.as_id,
                -1,
                tdp=False,
                guest_mode=role.guest_mode,
                direct=role.direct,
                access=role.access,
            ),
        )
        await Add(kvm.n_used_mmu_pages, 1)
        await ListAdd(kvm.active_mmu_pages, sp)
        await ListAdd(kvm.mmu_page_hash[gfn], sp)
        if role.invalid:
            await Write(sp.invalid, True)
        if not role.direct:
            await self.account_shadowed(sp, gfn, role)
        return sp

    async def account_shadowed(self, sp: TablePage, gfn: int, role: Role) -> None:
        """``account_shadowed``: upper tables are write-tracked, last ones only write-protected."""
        kvm = self.kvm
        if role.level > 1:
            tracked = await Read(kvm.write_tracked[role.as_id])
            await Write(kvm.write_tracked[role.as_id], tuple(sorted((*tracked, gfn))))
        if await self.slot_gfn_write_protect(role.as_id, gfn):
            await self.flush_remote_tlbs_with_address(gfn, 1)
        await Emit(GfnTracked(role.as_id, gfn, sp.name))

    # --- linking --------------------------------------------------------------------------------

    async def child_role(self, sptep: Cell, direct: bool, access: int) -> Role:
        """``kvm_mmu_child_role``: the parent's but for level, access and directness."""
        parent: TablePage = sptep.page
        header = await ReadHeader(parent)
        invalid = await Read(parent.invalid)
        if invalid:
            invalid = await self.inherits_invalid(parent)
        level = header.level - 1
        return Role(level, direct, access, header.as_id, header.guest_mode, invalid)

    async def inherits_invalid(self, parent: TablePage) -> bool:
        """``WARN_ON_ONCE(role.invalid)``, and the child is made a valid one all the same."""
        await Emit(Warned(f"a child of {parent.name}, which is invalid"))
        return False

    async def get_child_sp(
        self, vcpu: VcpuCells, sptep: Cell, gfn: int, direct: bool, access: int
    ) -> TablePage | None:
        """``kvm_mmu_get_child_sp``; None (``-EEXIST``): it is linked there already."""
        role = await self.child_role(sptep, direct, access)
        spte = await ReadSpte(sptep)
        spte_format = self.kvm.format
        if spte_format.is_shadow_present(spte) and not spte_format.is_large(spte):
            child = self.kvm.page_of(spte)
            header = await ReadHeader(child)
            if self.child_fits(header, gfn, role):
                return None
        return await self.get_shadow_page(vcpu, gfn, role)

    def child_fits(self, child: Header, gfn: int, role: Role) -> bool:
        """Whether the page that is linked is the one that is wanted."""
        return child.gfn == gfn and role_of(child) == role

    async def link_shadow_page(self, sptep: Cell, sp: TablePage, flush: bool = True) -> None:
        """``__link_shadow_page``: whatever was there goes first, and is flushed if need be."""
        kvm = self.kvm
        parent: TablePage = sptep.page
        old = await ReadSpte(sptep)
        if kvm.format.is_shadow_present(old):
            invalid_list = InvalidList()
            await self.page_zap_pte(parent, sptep, invalid_list)
            await self.remote_flush_or_zap(invalid_list, flush)
        await WriteSpte(sptep, kvm.format.nonleaf(sp.pfn))
        await ListAdd(sp.parent_ptes, sptep)
        children = await Read(sp.unsync_children)
        if children:
            await self.links_unsync_children(sp)
        if children or await Read(sp.unsync):
            await self.mark_unsync(sptep)
        header = await ReadHeader(sp)
        await Emit(PageLinked(sp.name, header.gfn, header.level))

    async def links_unsync_children(self, sp: TablePage) -> None:
        """``WARN_ON_ONCE(sp->unsync_children)``: the fault handler has synced them before."""
        await Emit(Warned(f"{sp.name} is linked with unsync children"))

    # --- syncing --------------------------------------------------------------------------------

    async def sync_page(
        self, vcpu: VcpuCells, sp: TablePage, invalid_list: InvalidList
    ) -> bool | None:
        """``kvm_sync_page``: bring every entry up to date; true: a flush is owed.

        None: the guest's table cannot be read, and the page is zapped.
        """
        flush = False
        readable = True
        for sptep in sp.entries:
            changed = await self.sync_spte(vcpu, sp, sptep)
            readable = readable and changed is not None
            flush = flush or changed is True
        if not readable:
            await self.prepare_zap_page(sp, invalid_list)
            return None
        return flush

    async def sync_spte(self, vcpu: VcpuCells, sp: TablePage, sptep: Cell) -> bool | None:
        """``sync_spte`` of ``paging_tmpl.h``: true: a flush is owed; None: nothing to read."""
        kvm = self.kvm
        spte_format = kvm.format
        spte = await ReadSpte(sptep)
        mmio = spte_format.is_mmio(spte)
        if not mmio and not spte_format.is_shadow_present(spte):
            return False
        header = await ReadHeader(sp)
        index = self.spte_index(sptep)
        gpte = await read_guest_atomic(kvm, header.as_id, header.gfn, index)
        if gpte is None:
            return None
        if not is_accessed_gpte(gpte):
            await self.drop_spte(sptep)
            return await self.dropped_in_sync()
        wanted = protect_clean_gpte(header.access & gpte_access(gpte), gpte)
        if mmio:
            await self.sync_mmio_spte(header.as_id, sptep, gpte_gfn(gpte), wanted)
            return False
        shadowed = await Read(sp.shadowed)
        gfn, access = shadowed[index]
        if gpte_gfn(gpte) != gfn:
            await self.drop_spte(sptep)
            return await self.dropped_in_sync()
        if wanted == access:
            return False
        await self.set_page_translation(sptep, gfn, wanted)
        slots = await Read(kvm.memslots[header.as_id])
        new = await self.make_shadow_spte(
            slots.find(gfn),
            gfn,
            spte_format.pfn(spte),
            header.level,
            wanted,
            spte_format.is_host_writable(spte),
            old=spte,
            prefetch=True,
            can_unsync=False,
        )
        return await self.update_spte(sptep, new)

    async def sync_mmio_spte(self, as_id: int, sptep: Cell, gfn: int, access: int) -> None:
        """``sync_mmio_spte``: of another gfn it goes, else it is made again."""
        spte = await ReadSpte(sptep)
        if self.kvm.format.mmio_gfn(spte) != gfn:
            await WriteSpte(sptep, self.kvm.format.nonpresent)
        else:
            await self.mark_mmio_spte(as_id, sptep, gfn, access)

    async def dropped_in_sync(self) -> bool:
        """Whether who syncs owes a flush for a leaf that was dropped."""
        return True

    async def sync_children(self, vcpu: VcpuCells, parent: TablePage, can_yield: bool) -> bool:
        """``mmu_sync_children``: false if it had to give up (``can_yield`` false)."""
        kvm = self.kvm
        invalid_list = InvalidList()
        flush = False
        while True:
            pages = await self.unsync_walk(parent)
            if not pages:
                break
            protected = False
            for sp in pages:
                header = await ReadHeader(sp)
                if await self.slot_gfn_write_protect(header.as_id, header.gfn):
                    protected = True
            if protected:
                await self.remote_flush_or_zap(invalid_list, True)
                flush = False
            for sp in pages:
                await self.unlink_unsync_page(sp)
                await self.tracks_again(sp)
                changed = await self.sync_page(vcpu, sp, invalid_list)
                flush = flush or changed is True
                await self.clear_parents(parent, sp)
            if await kvm.mmu_lock.needbreak():
                await self.remote_flush_or_zap(invalid_list, flush)
                flush = False
                if not can_yield:
                    return False
                await kvm.mmu_lock.cond_resched_write()
        await self.remote_flush_or_zap(invalid_list, flush)
        return True

    # --- the leaves -----------------------------------------------------------------------------

    async def make_shadow_spte(
        self,
        slot: Memslot | None,
        gfn: int,
        pfn: int,
        level: int,
        access: int,
        host_writable: bool,
        *,
        old: int,
        prefetch: bool = False,
        can_unsync: bool,
    ) -> int:
        """``make_spte`` for a guest mapping with this access; not writable: ``wrprot``.

        ``old`` is what is there; ``prefetch``: nobody has accessed it.
        """
        spte_format = self.kvm.format
        write = bool(access & ACC_WRITE) and host_writable
        execute = bool(access & ACC_EXEC) and (level == 1 or not self.kvm.config.nx_huge_pages)
        as_id = slot.as_id if slot is not None else 0
        again = write and self.was_writable_leaf(old, level)
        if write and not again:
            write = await self.try_to_unsync_pages(as_id, gfn, can_unsync, prefetch)
        if write:
            await self.mark_page_dirty_in_slot(slot, gfn)
        spte = spte_format.leaf(
            pfn,
            level,
            write=write,
            execute=execute,
            dirty=not again,
            host_writable=host_writable,
            mmu_writable=write,
        )
        return spte_format.mark_for_access_track(spte) if prefetch else spte

    def was_writable_leaf(self, old: int, level: int) -> bool:
        """Whether ``make_spte`` knows by the old SPTE that no shadow page is in the way."""
        return False
