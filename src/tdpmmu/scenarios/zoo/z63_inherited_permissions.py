"""Z63: every shadow page on the way gets the permissions of the last table."""

from tdpmmu.arch.table import Header
from tdpmmu.mmu.guest_walk import GuestWalker
from tdpmmu.mmu.shadow_fault import ShadowFault
from tdpmmu.mmu.shadow_pages import Role
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class PermissionsOfTheLastTable(ShadowFault):
    """And, as in kernels of that time, what is linked is not looked at again."""

    def table_access(self, walker: GuestWalker, level: int) -> int:
        return walker.pt_access[-1]

    def child_fits(self, child: Header, gfn: int, role: Role) -> bool:
        return True


ENTRY = Entry(
    id="z63",
    title="KVM: X86: MMU: Use the correct inherited permissions to get shadow page",
    commit="b1bd5cba3306",
    fixed="5.13",
    kernel="6.12",
    scenario=Script(
        threads="shadow0: r0 r4 w2 r6",
        levels=3,
        pages=12,
        huge_level=1,
        tables="7: 6 6r; 6: 5r 4; 5: 0 -; 4: 1 -",
    ),
    prop="guest-translation",
    mechanism=(
        "One middle table hangs below a writable and a read-only entry. Its shadow pages are told "
        "apart by the access on the way, but get that of the last table: the one made through a "
        "read-only leaf table serves both, and the guest writes where it may only read."
    ),
    patch=PermissionsOfTheLastTable,
)
