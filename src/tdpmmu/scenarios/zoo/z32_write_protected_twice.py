"""Z32: a page that dirty logging has write-protected is taken to be safe as a page table."""

from tdpmmu.mmu.write_track import WriteTrack
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class TrustsTheWBit(WriteTrack):
    """A clear W bit is taken for the whole truth."""

    def needs_write_protection(self, spte: int) -> bool:
        return self.kvm.format.is_writable(spte)


ENTRY = Entry(
    id="z32",
    title="KVM: x86/mmu: Fix write-protection of PTs mapped by the TDP MMU",
    commit="7c8a4742c4ab",
    fixed="5.17",
    kernel="6.12",
    scenario=Script(
        threads="vcpu0: w0; ioctl: get-log:0; shadow: track:0", setup="w0", slots="0-1:log 2-3"
    ),
    prop="tracked-write",
    mechanism=(
        "Dirty logging clears W, keeps MMU-writable and flushes after it has dropped mmu_lock. "
        "Write protection of the same gfn as a page table sees W clear, does nothing, and the "
        "guest writes through the old translation or gets W back from a fast page fault."
    ),
    patch=TrustsTheWBit,
)
