"""Z49: a prefault waits for a memslot to go that waits for the prefault."""

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.mmu.vcpu import Vcpu
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_18 import Linux_6_18


class RetriesForEver(Linux_6_18):
    """A retry is a retry, whatever its reason."""

    async def pre_fault_gives_up(self, vcpu: VcpuCells, gfn: int, as_id: int) -> bool:
        return await Vcpu.pre_fault_gives_up(self, vcpu, gfn, as_id)


ENTRY = Entry(
    id="z49",
    title="KVM: x86/mmu: Return -EAGAIN if userspace deletes/moves memslot during prefault",
    commit="3ccbf6f47098",
    fixed="6.18",
    kernel="6.18",
    scenario=Script(
        threads="vcpu0: prefault:0; ioctl: slot-delete:0",
        slots="0-1 2-3",
        options="no-slot-zap-all",
    ),
    prop="no-progress",
    mechanism=(
        "A prefault runs inside an SRCU section and retries as long as the slot is invalid. The "
        "slot stays invalid until its removal has waited for that very section."
    ),
    patch=RetriesForEver,
)
