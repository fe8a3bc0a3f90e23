"""Up to 5.14 syncing a shadow page left its flush to others, who were told by a counter."""

from __future__ import annotations

from tdpmmu.events.records import FlushDeferred
from tdpmmu.machine.op import Add, CmpXchg, Emit, Read
from tdpmmu.mmu.lifetime import Lifetime
from tdpmmu.mmu.notifier import GfnRange


class TlbsDirty(Lifetime):
    """``kvm->tlbs_dirty``: leaves dropped by a sync that no remote flush has covered yet."""

    async def dropped_in_sync(self) -> bool:
        """``sync_page`` of v5.12: the guest flushes for itself, the notifier looks at the count."""
        await Add(self.kvm.tlbs_dirty, 1)
        await Emit(FlushDeferred())
        return False

    async def tlbs_are_dirty(self) -> bool:
        """``kvm->tlbs_dirty``, as the notifier sees it."""
        count = await Read(self.kvm.tlbs_dirty)
        return bool(count)

    async def unmap_ranges(self, ranges: tuple[GfnRange, ...]) -> bool:
        """``kvm_mmu_notifier_invalidate_range_start`` of v5.12: also for what a sync dropped."""
        flush = await super().unmap_ranges(ranges)
        if not flush and self.kvm.guest.entries:
            flush = await self.tlbs_are_dirty()
        return flush

    async def flush_remote_tlbs(self) -> None:
        """``kvm_flush_remote_tlbs`` of v5.12: what was counted before it began is covered."""
        if not self.kvm.guest.entries:
            await super().flush_remote_tlbs()
            return
        count = await Read(self.kvm.tlbs_dirty)
        await super().flush_remote_tlbs()
        await CmpXchg(self.kvm.tlbs_dirty, count, 0)
