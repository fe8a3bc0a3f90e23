"""Z41: an emulated atomic instruction writes guest memory and does not log it."""

from tdpmmu.mmu.dirty_log import DirtyLog
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class ForgetsToMark(DirtyLog):
    """The exchange through the user's mapping is all there is."""

    async def mark_emulated_write(self, as_id: int, gfn: int) -> None:
        return


ENTRY = Entry(
    id="z41",
    title="KVM: x86: Mark target gfn of emulated atomic instruction as dirty",
    commit="910c57dfa4d1",
    fixed="6.9",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: emulate:0 r1; ioctl: get-log:0", setup="r0", slots="0-1:log 2-3"
    ),
    prop="dirty-log",
    mechanism=(
        "KVM emulates an atomic instruction by an exchange on the user's mapping of guest memory. "
        "No SPTE is involved, and nobody marked the page dirty."
    ),
    patch=ForgetsToMark,
)
