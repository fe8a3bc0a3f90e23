"""Memory attributes: private and shared gfns (``kvm_main.c``, ``mmu.c``, v6.12)."""

from __future__ import annotations

from tdpmmu.events.records import AttributesChanged
from tdpmmu.machine.op import Add, Emit, Read, Write
from tdpmmu.mmu.ageing import Ageing
from tdpmmu.mmu.kvm import NO_RANGE


class Attributes(Ageing):
    """A huge page maps gfns of one kind only."""

    async def set_memory_attributes(self, start: int, end: int, private: bool) -> None:
        """``kvm_vm_set_mem_attributes``: zap, change, and say which huge pages are mixed now."""
        kvm = self.kvm
        await kvm.slots_lock.lock()
        await self.attributes_begin(start, end)
        old = await Read(kvm.private_gfns)
        gfns = frozenset(range(start, end))
        new = old | gfns if private else old - gfns
        await Write(kvm.private_gfns, new)
        await self.attributes_end(start, end)
        await Emit(AttributesChanged(tuple(sorted(new))))
        await kvm.slots_lock.unlock()

    async def attributes_begin(self, start: int, end: int) -> None:
        """``kvm_pre_set_memory_attributes``: no huge page at the range's ends until it is known
        whether they are mixed; then an invalidation of the range.
        """
        kvm = self.kvm
        await self.forbid_huge_pages(start, end)
        ranges = await self.gfn_ranges(start, end)
        await kvm.mmu_lock.write_lock()
        await Add(kvm.mmu_notifier_count, 1)
        if await self.unmap_ranges(ranges):
            await self.flush_remote_tlbs()
        await kvm.mmu_lock.write_unlock()

    async def forbid_huge_pages(self, start: int, end: int) -> None:
        """``kvm_arch_pre_set_memory_attributes`` (6.15)."""
        kvm = self.kvm
        await kvm.mmu_lock.write_lock()
        mixed = await Read(kvm.mixed_regions)
        pages = kvm.geometry.pages(2)
        regions = frozenset(gfn // pages for gfn in range(start, end))
        await Write(kvm.mixed_regions, mixed | regions)
        await kvm.mmu_lock.write_unlock()

    async def attributes_end(self, start: int, end: int) -> None:
        """``kvm_arch_post_set_memory_attributes``: under the lock, what is mixed and what not."""
        kvm = self.kvm
        pages = kvm.geometry.pages(2)
        await kvm.mmu_lock.write_lock()
        private = await Read(kvm.private_gfns)
        mixed = await Read(kvm.mixed_regions)
        for region in range(start // pages, (end + pages - 1) // pages):
            gfns = range(region * pages, (region + 1) * pages)
            kinds = [gfn in private for gfn in gfns]
            mixed = mixed | {region} if any(kinds) and not all(kinds) else mixed - {region}
        await Write(kvm.mixed_regions, mixed)
        await Add(kvm.mmu_notifier_seq, 1)
        await Add(kvm.mmu_notifier_count, -1)
        if not await Read(kvm.mmu_notifier_count):
            await Write(kvm.mmu_notifier_range, NO_RANGE)
        await kvm.mmu_lock.write_unlock()

    async def lpage_disallowed(self, as_id: int, gfn: int, level: int) -> bool:
        """``hugepage_test_mixed``: nor over gfns of different attributes."""
        if await super().lpage_disallowed(as_id, gfn, level):
            return True
        mixed = await Read(self.kvm.mixed_regions)
        return gfn // self.kvm.geometry.pages(2) in mixed
