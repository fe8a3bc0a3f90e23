"""v5.13: roots are torn down under ``mmu_lock`` held for read."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.table import ReadSpte, TablePage
from tdpmmu.events.records import Refcount
from tdpmmu.kernel.refcount import IncNotZero
from tdpmmu.machine.op import Add, Emit, ListDel, Read, Write
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.versions.linux_5_12 import Linux_5_12


class Linux_5_13(Linux_5_12):
    """v5.13: a memslot update invalidates the roots and zaps them in parallel with faults."""

    version: ClassVar[str] = "5.13"
    spte_kernel: ClassVar[str] = "5.13"
    changes: ClassVar[tuple[str, ...]] = (
        "b7cccd397f31 a memslot update invalidates the TDP MMU's roots",
        "4c6654bd160d and zaps them under mmu_lock for read before it returns",
        "a root's last reference may be put under mmu_lock for read",
        "24ae4cfaaaa2 dirty logging is switched on and off under mmu_lock for read",
        "e1eed5847b09 an invalidation's walk of the TDP MMU may yield",
    )

    async def lock_slot_walk(self) -> None:
        await self.kvm.mmu_lock.read_lock()

    async def unlock_slot_walk(self) -> None:
        await self.kvm.mmu_lock.read_unlock()

    async def try_get_root(self, root: TablePage) -> bool:
        """``kvm_tdp_mmu_get_root``: ``refcount_inc_not_zero``."""
        new: int = await IncNotZero(root.root_count)
        if new:
            await Emit(Refcount(root.name, new - 1, new, "kvm_tdp_mmu_get_root"))
        return bool(new)

    async def tdp_mmu_next_root(
        self, prev_root: TablePage | None, only_valid: bool
    ) -> TablePage | None:
        """``tdp_mmu_next_root``: the next one that is not being freed, with a reference.

        RCU keeps roots from being freed under the walk; the reference to the last is put after it.
        """
        kvm = self.kvm
        await kvm.rcu.read_lock()
        roots = await Read(kvm.tdp_mmu_roots)
        at = 0
        if prev_root is not None:
            at = roots.index(prev_root) + 1 if prev_root in roots else len(roots)
        found: TablePage | None = None
        for root in roots[at:]:
            if only_valid and await Read(root.invalid):
                continue
            if await self.try_get_root(root):
                found = root
                break
        await kvm.rcu.read_unlock()
        if prev_root is not None:
            await self.put_root(prev_root)
        return found

    async def first_root(self) -> TablePage | None:
        return await self.tdp_mmu_next_root(None, False)

    async def next_root(self, root: TablePage) -> TablePage | None:
        return await self.tdp_mmu_next_root(root, False)

    async def put_root(self, root: TablePage) -> None:
        """``kvm_tdp_mmu_put_root``: the last reference unlinks the root, zaps and frees it."""
        new = await Add(root.root_count, -1)
        await Emit(Refcount(root.name, new + 1, new, "kvm_tdp_mmu_put_root"))
        if new == 0:
            await self.free_root(root)

    async def free_root(self, root: TablePage) -> None:
        kvm = self.kvm
        await kvm.tdp_mmu_pages_lock.lock()
        await ListDel(kvm.tdp_mmu_roots, root)
        await kvm.tdp_mmu_pages_lock.unlock()
        await self.zap_root(root, False)
        await kvm.rcu.call(root)

    async def zap_root(self, root: TablePage, can_yield: bool) -> bool:
        """Zap everything below a root, in the mode in which ``mmu_lock`` is held."""
        if await self.kvm.mmu_lock.held_for_write():
            return await self.zap_gfn_range(root, 0, self.kvm.geometry.max_gfn, can_yield)
        return await self.zap_gfn_range_shared(root, 0, self.kvm.geometry.max_gfn, can_yield, False)

    async def zap_gfn_range_shared(
        self, root: TablePage, start: int, end: int, can_yield: bool, flush: bool
    ) -> bool:
        """``zap_gfn_range`` with ``shared``: each entry is frozen, flushed, cleared."""
        kvm = self.kvm
        await kvm.rcu.read_lock()
        it = TdpIter(kvm, root, start, end)
        while await it.next_pte():
            while True:
                if can_yield and await self.iter_cond_resched(it, flush, True):
                    flush = False
                    break
                if not kvm.format.is_shadow_present(it.old_spte):
                    break
                outside = it.gfn < start or it.gfn + kvm.geometry.pages(it.level) > end
                if outside and not kvm.format.is_last(it.old_spte, it.level):
                    break
                if await self.zap_spte_atomic(it):
                    flush = True
                    break
                it.old_spte = await ReadSpte(it.sptep)
        await kvm.rcu.read_unlock()
        return flush

    async def tdp_mmu_unmap(self, as_id: int, start: int, end: int, flush: bool = False) -> bool:
        """``kvm_tdp_mmu_unmap_gfn_range``: it may yield, and holds no reference to the root."""
        roots = await Read(self.kvm.tdp_mmu_roots)
        while roots:
            root = roots[0]
            if await self.page_as_id(root) == as_id:
                flush = await self.zap_gfn_range(root, start, end, True, flush)
            # ``list_for_each_entry``: what a root that was unlinked says of the next one stays.
            now = await Read(self.kvm.tdp_mmu_roots)
            roots = now[now.index(root) + 1 :] if root in now else roots[1:]
        return flush

    async def unmap_gfn_range(self, as_id: int, start: int, end: int) -> bool:
        """``kvm_unmap_gfn_range``: what the rmaps owe is handed on to the walk, which may yield."""
        flush = await self.unmap_rmap(start, end)
        return await self.tdp_mmu_unmap(as_id, start, end, flush)

    async def zap_all_fast(self) -> None:
        """``kvm_mmu_zap_all_fast``: invalidate, reload; then zap what was invalidated."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        invalidated = await self.invalidate_all_roots()
        await self.reload_remote_mmus()
        await self.zap_obsolete_pages()
        await kvm.mmu_lock.write_unlock()
        await kvm.mmu_lock.read_lock()
        await self.zap_invalidated_roots(invalidated)
        await kvm.mmu_lock.read_unlock()

    async def invalidate_all_roots(self) -> tuple[TablePage, ...]:
        """``kvm_tdp_mmu_invalidate_all_roots``: each invalidated root keeps a reference."""
        invalidated: list[TablePage] = []
        for root in await Read(self.kvm.tdp_mmu_roots):
            if await self.try_get_root(root):
                await Write(root.invalid, True)
                invalidated.append(root)
        return tuple(invalidated)

    async def zap_invalidated_roots(self, invalidated: tuple[TablePage, ...]) -> None:
        """``kvm_tdp_mmu_zap_invalidated_roots``."""
        flush = False
        for root in invalidated:
            zapped = await self.zap_root(root, True)
            flush = flush or zapped
            await self.put_root(root)
        if flush:
            await self.flush_remote_tlbs()
