"""Z71: of the gfns that are cleared, the last one's huge page is not split."""

from tdpmmu.mmu.dirty_log import DirtyLog
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class EndsBeforeTheLast(DirtyLog):
    """The last gfn is taken for the end of the range."""

    def split_end(self, last: int) -> int:
        return last


ENTRY = Entry(
    id="z71",
    title="KVM: x86/mmu: Fix off-by-1 when splitting huge pages during CLEAR",
    commit="1aa4bb916808",
    fixed="6.8",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: w2; user: log-on:1 clear-log:1-2",
        setup="w2",
        slots="0-0 1-3",
        options="initially-set",
    ),
    prop="dirty-log",
    mechanism=(
        "The last gfn of a word to clear is the first of a huge page. The range to split ends "
        "before it, and write protection, which rounds up, takes it to be in the huge page before; "
        "so its own stays whole and writable."
    ),
    patch=EndsBeforeTheLast,
)
