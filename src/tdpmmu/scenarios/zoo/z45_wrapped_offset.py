"""Z45: an offset in a dirty ring wraps, and passes for one that lies in the slot."""

from tdpmmu.mmu.dirty_ring import DirtyRing
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.ring import U64
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class ChecksTheEndOnly(DirtyRing):
    """If the last gfn of a mask is in the slot, so is the first, is it not?"""

    def offsets_in_slot(self, slot: Memslot, offset: int, last: int) -> bool:
        return (offset + last) % U64 < slot.npages


ENTRY = Entry(
    id="z45",
    title="KVM: Reject wrapped offset in kvm_reset_dirty_gfn()",
    commit="577a8d3bae05",
    fixed="7.1",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: w2 w3; user: harvest forge:0[0]=-1 forge:0[1]=0 reset-rings",
        slots="0-1 2-3:log",
        tables="1: 0 -",
        options="dirty-ring",
    ),
    prop="out-of-bounds",
    mechanism=(
        "Userspace can write the dirty rings. Offsets -1 and 0 are near each other, so they become "
        "one mask from -1 on, whose end, 0, lies in the slot: the sum wraps. The reverse maps of "
        "the slot are then indexed with -1."
    ),
    patch=ChecksTheEndOnly,
    # Fixed in 6.1.192 and 6.12.117 as well; the rest follow that ring.
    kernels=("6.1", "6.18"),
)
