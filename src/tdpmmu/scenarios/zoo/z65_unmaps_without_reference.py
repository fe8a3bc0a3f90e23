"""Z65: an invalidation yields in a root that it holds no reference to."""

from tdpmmu.machine.op import Read
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class WalksWithoutReference(Linux_6_1):
    """``for_each_tdp_mmu_root``, which is not made for walks that yield."""

    async def tdp_mmu_unmap(self, as_id: int, start: int, end: int, flush: bool = False) -> bool:
        for root in await Read(self.kvm.tdp_mmu_roots):
            if await self.page_as_id(root) == as_id:
                flush = await self.zap_leafs(root, start, end, True, flush)
        return flush


ENTRY = Entry(
    id="z65",
    title="KVM: x86/mmu: Use yield-safe TDP MMU root iter in MMU notifier unmapping",
    commit="7533377215b6",
    fixed="5.16",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: r2; host: unmap:0; ioctl: zap-all-fast", setup="x0", slots="0-1 2-3"
    ),
    prop="use-after-free",
    mechanism=(
        "The walk of an invalidation was allowed to yield, but not given a reference to the root. "
        "A memslot update invalidates the root meanwhile, its last user lets it go, and the walk "
        "starts again in freed memory."
    ),
    patch=WalksWithoutReference,
)
