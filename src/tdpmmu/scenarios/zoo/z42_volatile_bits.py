"""Z42: a plain write of an SPTE loses a bit that hardware has set since it was read."""

from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class WritesPlainly(Linux_6_1):
    """No SPTE is thought to change while mmu_lock is held for write."""

    def has_volatile_bits(self, spte: int, level: int) -> bool:
        return False


ENTRY = Entry(
    id="z42",
    title="KVM: x86/mmu: Use atomic XCHG to write TDP MMU SPTEs with volatile bits",
    commit="ba3a6120a4e7",
    fixed="5.18",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: w0; ioctl: get-log:0; host: unmap:0",
        setup="w0",
        slots="0-1:log 2-3",
        options="pml",
    ),
    prop="lost-dirty-bit",
    mechanism=(
        "A zap under the write lock reads an SPTE without a dirty bit and overwrites it. The CPU "
        "sets the bit in between, so the host never hears that the page was written and drops it "
        "as clean."
    ),
    patch=WritesPlainly,
)
