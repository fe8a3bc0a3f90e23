"""Z72: a lost cmpxchg is tried again on what is no leaf any more."""

from tdpmmu.mmu.log_protect import LogProtect
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class LooksForLeavesOnce(LogProtect):
    """The walk finds leaves only, so whatever is there at a retry is taken for one."""

    def is_leaf_to_clear(self, it: TdpIter, retried: bool) -> bool:
        present = self.kvm.format.is_shadow_present(it.old_spte)
        return super().is_leaf_to_clear(it, retried) or (retried and present)


ENTRY = Entry(
    id="z72",
    title="KVM: x86/mmu: Check for leaf SPTE when clearing dirty bit in the TDP MMU",
    commit="45a61ebb2211",
    fixed="6.8",
    kernel="6.12",
    scenario=Script(
        threads="l2-0: x0; user: log-on:0",
        setup="w0",
        slots="0-1 2-3",
        options="pml no-eager-page-split",
    ),
    prop="spte-transition",
    mechanism=(
        "While dirty logging is switched on under mmu_lock held for read, a fetch splits the huge "
        "page that is about to be write-protected. The cmpxchg is lost, and the next one takes the "
        "W bit of the new table."
    ),
    patch=LooksForLeavesOnce,
)
