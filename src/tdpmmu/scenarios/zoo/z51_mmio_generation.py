"""Z51: an MMIO SPTE whose generation comes again is believed."""

from tdpmmu.mmu.kvm import Memslots
from tdpmmu.mmu.mmio import Mmio
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class MissesTheWrap(Mmio):
    """The wrap is looked for in a number that never shows it."""

    def wraps(self, slots: Memslots) -> bool:
        return False


ENTRY = Entry(
    id="z51",
    title="KVM: x86/mmu: Detect MMIO generation wrap in any address space",
    commit="",
    fixed="5.1",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: r2; ioctl: slot-create:4-5 slot-create:2-3",
        setup="r2",
        slots="0-1",
        levels=3,
        options="mmio",
    ),
    prop="stale-mmio",
    mechanism=(
        "MMIO SPTEs carry a few bits of the memslots' generation. If its wrap goes unnoticed, "
        "an SPTE from long ago matches again and hides the slot that is there now."
    ),
    patch=MissesTheWrap,
    # 5.13 has z7, which this scenario finds, too.
    kernels=("5.12", "6.1", "6.18"),
)
