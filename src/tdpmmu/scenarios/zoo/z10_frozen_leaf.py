"""Z10: a fault maps over an entry that another thread has frozen."""

from tdpmmu.mmu.fault import Fault
from tdpmmu.mmu.tdp_iter import TdpIter
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_12 import Linux_6_12


class MapsFrozenLeaf(Linux_6_12):
    """The goal level is looked at before the entry is."""

    def leave_frozen(self, fault: Fault, it: TdpIter) -> bool:
        return it.level != fault.goal_level and super().leave_frozen(fault, it)


ENTRY = Entry(
    id="z10",
    title="KVM: x86/mmu: Don't attempt to map leaf if target TDP MMU SPTE is frozen",
    commit="f5d16bb9be68",
    fixed="6.2",
    kernel="6.18",
    scenario=Script(threads="vcpu0: x1; worker: recover", setup="x0"),
    prop="kernel-warning",
    mechanism=(
        "Recovery under the read lock freezes the entries of the table that it takes down. A "
        "fault that has reached its goal level does not look and tries to install its leaf over "
        "the frozen one."
    ),
    patch=MapsFrozenLeaf,
)
