"""Z2: a zap of several roots yields in one with a flush owed to another."""

from tdpmmu.mmu.tdp_mmu import TdpMmu
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class FreshFlushForEachRoot(TdpMmu):
    """Each root's walk starts with nothing owed."""

    async def tdp_mmu_zap_gfn_range(self, start: int, end: int, can_yield: bool = True) -> bool:
        flush = False
        root = await self.first_root()
        while root is not None:
            zapped = await self.zap_gfn_range(root, start, end, can_yield)
            flush = flush or zapped
            root = await self.next_root(root)
        return flush


ENTRY = Entry(
    id="z2",
    title="KVM: x86/mmu: Ensure TLBs are flushed when yielding during GFN range zap",
    commit="a835429cda91",
    fixed="5.12",
    kernel="5.12",
    scenario=Script(
        threads="vcpu0: r0; smm1: r0; mtrr: zap-range:0-3; host: unmap:0", setup="1:w0 0:w2"
    ),
    prop="stale-translation",
    mechanism=(
        "A zap walks one root, owes a flush, and goes on to the next root with a flag of its own "
        "that is false. It yields there without flushing, and whoever takes mmu_lock meanwhile "
        "finds nothing left to zap and nothing to flush."
    ),
    patch=FreshFlushForEachRoot,
)
