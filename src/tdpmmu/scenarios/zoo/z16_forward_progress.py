"""Z16: two walks that yield start again at the same entry for ever."""

from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.mmu.tdp_zap import TdpZap
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class YieldsWithoutProgress(TdpZap):
    """A walk may yield wherever it is."""

    def may_yield_here(self, it: TdpIter) -> bool:
        return True


ENTRY = Entry(
    id="z16",
    title="KVM: x86/mmu: Ensure forward progress when yielding in TDP MMU iter",
    commit="ed5e484b79e8",
    fixed="5.12",
    kernel="5.12",
    scenario=Script(threads="mtrr: zap-range:0-1; apicv: zap-range:0-1", setup="w0", levels=3),
    prop="no-progress",
    mechanism=(
        "A walk that yields starts again at the root. Without the rule that it has to get further "
        "first, two walkers contend for the lock, each yields at its first entry, and neither "
        "ever moves on."
    ),
    patch=YieldsWithoutProgress,
)
