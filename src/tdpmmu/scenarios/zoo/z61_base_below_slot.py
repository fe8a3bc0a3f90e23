"""Z61: a shadow page that begins below the slot is looked up in the slot's ``lpage_info``."""

from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.shadow_log import ShadowLog
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class AsksForAnyBase(ShadowLog):
    """A direct page is taken to lie in the slot that its leaf lies in."""

    def base_in_slot(self, slot: Memslot, gfn: int) -> bool:
        return True


ENTRY = Entry(
    id="z61",
    title="KVM: x86/mmu: Ensure hugepage is in by slot before checking max mapping level",
    commit="ef057cbf825e",
    fixed="7.2",
    kernel="6.12",
    scenario=Script(
        threads="shadow0: r2; user: log-on:2 log-off:2",
        setup="r2",
        slots="0-1 2-7",
        levels=3,
        pages=12,
        tables="7: 0L -",
        options="no-eager-page-split",
    ),
    prop="out-of-bounds",
    mechanism=(
        "The guest maps a huge page that begins below a slot, so KVM maps the slot's part of it "
        "smaller, in a direct shadow page whose first gfn is not in the slot. As dirty logging "
        "ends, that gfn indexes the slot's lpage_info, before its beginning."
    ),
    patch=AsksForAnyBase,
    # Fixed in 6.1.192 and 6.12.117 as well; the rest follow that shadow MMU.
    kernels=("6.1", "6.18"),
)
