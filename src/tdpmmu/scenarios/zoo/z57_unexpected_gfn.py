"""Z57 and Z58: a direct shadow page that stays linked although the guest's entry has changed."""

from tdpmmu.arch.table import Header
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.shadow_fault import ShadowFault
from tdpmmu.mmu.shadow_pages import Role
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class AnyChildWillDo(ShadowFault):
    """What is linked is used.  The BUG in the rmap is left out, so as to see what follows."""

    def child_fits(self, child: Header, gfn: int, role: Role) -> bool:
        return True

    async def rmap_is_corrupt(self, sptep: Cell, gfn: int) -> None:
        return


class ChildOfThatGfn(AnyChildWillDo):
    """The first fix: the gfn has to be right."""

    def child_fits(self, child: Header, gfn: int, role: Role) -> bool:
        return child.gfn == gfn


ENTRIES = (
    Entry(
        id="z57",
        title="KVM: x86: Fix shadow paging use-after-free due to unexpected GFN",
        commit="0cb2af2ea66a",
        fixed="7.1",
        kernel="6.12",
        scenario=Script(
            threads="shadow0: r1; ioctl: host-set:6[0]=2L slot-delete:4 unmap:3",
            setup="r0",
            slots="0-3 4-5 6-7",
            levels=3,
            pages=12,
            huge_level=1,
            tables="7: 6 -; 6: 0L -",
        ),
        prop="use-after-free",
        mechanism=(
            "A large guest page is mapped by a direct shadow page. The guest's entry changes from "
            "outside, unseen, and the page is used for the new gfns: rmaps are filed under these, "
            "but taken out under the old ones. The host then walks an rmap into a freed page."
        ),
        patch=AnyChildWillDo,
    ),
    Entry(
        id="z58",
        title="KVM: x86: Fix shadow paging use-after-free due to unexpected role",
        commit="81ccda30b4e8",
        fixed="7.2",
        kernel="6.12",
        scenario=Script(
            threads="shadow0: r1; ioctl: host-set:6[0]=0 slot-delete:4 unmap:3",
            setup="r0",
            slots="0-3 4-5 6-7",
            levels=3,
            pages=12,
            huge_level=1,
            tables="7: 6 -; 6: 0L -; 0: - 3",
        ),
        prop="use-after-free",
        mechanism=(
            "The fix for the unexpected gfn compares nothing else. An entry that maps a large page "
            "is made to point to a table of the same gfn: the direct page is taken for the shadow "
            "of that table, with the same end."
        ),
        patch=ChildOfThatGfn,
        fix_of="z57",
    ),
)
