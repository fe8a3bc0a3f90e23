"""Z12: recovery looks for the slot of an SMM page in the other address space."""

from dataclasses import replace

from tdpmmu.arch.table import Header
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_12 import Linux_6_12


class LooksInAddressSpaceZero(Linux_6_12):
    """``__kvm_memslots(kvm, 0)``, whoever's the page is."""

    async def slot_is_logged(self, header: Header) -> bool:
        return await super().slot_is_logged(replace(header, as_id=0))


ENTRY = Entry(
    id="z12",
    title="KVM: x86/mmu: Grab memslot for correct address space in NX recovery worker",
    commit="817fa998362d",
    fixed="6.4",
    kernel="6.12",
    scenario=Script(threads="smm0: w1; worker: recover", setup="x0", slots="2-3 1/0-1"),
    prop="kernel-warning",
    mechanism=(
        "The worker leaves pages of logged slots alone, and looks for the slot in address space 0 "
        "even for a page of SMM's root. It finds another slot there, or none at all."
    ),
    patch=LooksInAddressSpaceZero,
    fix_of="z23",
)
