"""Z68: ``KVM_CLEAR_DIRTY_LOG`` of more pages than the slot has."""

from tdpmmu.mmu.dirty_log import DirtyLog
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class TrustsTheRange(DirtyLog):
    """Userspace says what to clear."""

    def range_in_slot(self, slot: Memslot, gfns: tuple[int, ...]) -> bool:
        return True


ENTRY = Entry(
    id="z68",
    title="KVM: validate userspace input in kvm_clear_dirty_log_protect()",
    commit="98938aa8edd6",
    fixed="5.0",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: w0; user: clear-log:0-3", slots="0-1:log 2-3", options="manual-protect"
    ),
    prop="out-of-bounds",
    mechanism=(
        "The first page and the number of pages to clear come from userspace. Nobody compared them "
        "with the slot, so bits are cleared beyond the end of its dirty bitmap."
    ),
    patch=TrustsTheRange,
)
