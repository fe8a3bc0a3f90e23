"""Z36: a fault maps into a range while kvm_zap_gfn_range is still at it."""

from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class LetsFaultsThrough(Linux_6_1):
    """The range is not announced as being invalidated."""

    async def zap_range_begins(self, start: int, end: int) -> None:
        return

    async def zap_range_ends(self) -> None:
        return


ENTRY = Entry(
    id="z36",
    title="KVM: x86/mmu: Block all page faults during kvm_zap_gfn_range()",
    commit="6d3085e4d89a",
    fixed="6.1",
    kernel="6.1",
    scenario=Script(threads="vcpu0: w0; apicv: zap-range:0-3", setup="w0 w2"),
    prop="leftover",
    mechanism=(
        "The zap of a range gives mmu_lock away in between. A fault that gets in maps a gfn that "
        "was zapped already, and the range is not empty when the zap returns."
    ),
    patch=LetsFaultsThrough,
)
