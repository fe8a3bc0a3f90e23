"""Z46: the APIC access page is looked up again before the host has unmapped it, or never."""

from tdpmmu.mmu.apic_page import ApicPage
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1

UNMAP = Script(threads="vcpu0: r0; host: unmap:3", setup="r0", options="apic-access-page")


class NeverAsked(Linux_6_1):
    """Only an invalidation of one page made KVM look again, and there is none any more."""

    async def invalidate_range(self, start: int, end: int) -> None:
        return


class AskedAtTheStart(Linux_6_1):
    """vCPUs are asked in ``invalidate_range_start``."""

    async def invalidate_range_start(self, start: int, end: int) -> None:
        await super().invalidate_range_start(start, end)
        await ApicPage.invalidate_range(self, start, end)

    async def invalidate_range(self, start: int, end: int) -> None:
        return


ENTRIES = (
    Entry(
        id="z46-range",
        title="KVM: x86: fix APIC page invalidation",
        commit="b1394e745b94",
        fixed="4.15",
        kernel="6.1",
        scenario=UNMAP,
        prop="stale-apic-page",
        mechanism=(
            "The page behind the address in the VMCS is not pinned. When invalidations of single "
            "pages went away, nobody told the vCPUs any more that it had moved."
        ),
        patch=NeverAsked,
    ),
    Entry(
        id="z46",
        title="KVM: x86: Fix APIC page invalidation race",
        commit="e649b3f0188f",
        fixed="5.8",
        kernel="6.1",
        scenario=UNMAP,
        prop="stale-apic-page",
        mechanism=(
            "vCPUs were asked to look the page up again in range_start, when the host still maps "
            "it. One that is quick finds the old page, and nobody asks it again."
        ),
        patch=AskedAtTheStart,
        fix_of="z46-range",
    ),
)
