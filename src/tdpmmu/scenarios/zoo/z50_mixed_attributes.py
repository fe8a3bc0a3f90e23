"""Z50: a huge page is mapped over a range whose attributes are about to be mixed."""

from tdpmmu.mmu.attributes import Attributes
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class MixedIsSetLate(Attributes):
    """Nothing keeps huge pages out before the new attributes are known."""

    async def forbid_huge_pages(self, start: int, end: int) -> None:
        return


ENTRY = Entry(
    id="z50",
    title="KVM: x86/mmu: Prevent installing hugepages when mem attributes are changing",
    commit="9129633d568e",
    fixed="6.15",
    kernel="6.18",
    scenario=Script(threads="vcpu0: w1; ioctl: private:0"),
    prop="mixed-huge-page",
    mechanism=(
        "Only the gfns whose attributes change are invalidated. A fault on another gfn of the "
        "same huge page is let through, finds the page not marked as mixed yet, and maps all of it."
    ),
    patch=MixedIsSetLate,
)
