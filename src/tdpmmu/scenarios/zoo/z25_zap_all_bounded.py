"""Z25: "zap all" stops at a gfn beyond which there are SPTEs."""

from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class StopsAtTheHostsBound(Linux_6_1):
    """The host's MAXPHYADDR, here half of what the guest can map."""

    def max_gfn_to_zap(self) -> int:
        return self.kvm.geometry.max_gfn // 2


ENTRY = Entry(
    id="z25",
    title="KVM: x86/mmu: Don't leak non-leaf SPTEs when zapping all SPTEs",
    commit="524a1e4e381f",
    fixed="5.14",
    kernel="6.12",
    scenario=Script(threads="vcpu0: x2; ioctl: slot-delete:0", slots="0-1 2-3"),
    prop="leak",
    mechanism=(
        "A walk that zaps everything is bounded by the host's highest gfn. With a guest that may "
        "use higher ones, tables above the bound are never freed."
    ),
    patch=StopsAtTheHostsBound,
)
