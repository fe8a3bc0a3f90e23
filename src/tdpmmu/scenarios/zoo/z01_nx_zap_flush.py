"""Z1: recovery of NX huge pages ignores that the TDP zap owes a flush."""

from tdpmmu.mmu.nx_recovery import NxRecovery as Recovery
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.zoo.entry import Entry


class DropsTheFlush(Recovery):
    """What the zap returns is not looked at."""

    def recovery_flush(self, pending: bool, zapped: bool) -> bool:
        return False


ENTRY = Entry(
    id="z1",
    title="KVM: x86/mmu: Ensure TLBs are flushed for TDP MMU during NX zapping",
    commit="048f49809c52",
    fixed="5.12",
    kernel="5.12",
    scenario=NxRecovery(levels=2, roots=2, legacy=0),
    prop="flush-owed",
    mechanism=(
        "The worker zaps a page in every root but only the legacy pages it commits make it flush. "
        "With a second root that maps the range by a leaf, mmu_lock goes while a vCPU there may "
        "still use the old translation."
    ),
    patch=DropsTheFlush,
)
