"""Z62: a gfn that is write-tracked in one address space is mapped writable in the other."""

from tdpmmu.machine.op import Read
from tdpmmu.mmu.write_track import WriteTrack
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry


class ChecksAllAddressSpaces(WriteTrack):
    """The fix: tracked anywhere is tracked."""

    async def gfn_is_write_tracked(self, as_id: int, gfn: int) -> bool:
        for tracked_in in self.kvm.write_tracked:
            tracked = await Read(tracked_in)
            if gfn in tracked:
                return True
        return False


ENTRY = Entry(
    id="z62",
    title="KVM: x86/mmu: Check write tracking in all address spaces",
    commit="0f38453cdb2e",
    fixed="2026",
    kernel="6.18",
    scenario=Script(threads="smm0: w0 r0; shadow: track:0", slots="0-1 2-3 1/0-3"),
    prop="tracked-write",
    mechanism=(
        "Shadow pages are shared between SMM and the rest, but a fault looks for write tracking in "
        "its own address space only. A vCPU in SMM gets the guest's page table mapped writable "
        "and changes it unseen."
    ),
    fix=ChecksAllAddressSpaces,
)
