"""Z26: roots of the other address space survive a memslot update."""

from tdpmmu.arch.table import ReadHeader, TablePage
from tdpmmu.machine.op import Read, Write
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.zoo.entry import Entry
from tdpmmu.versions.linux_6_1 import Linux_6_1


class SkipsSmmRoots(Linux_6_1):
    """Only roots of address space 0 are invalidated."""

    async def invalidate_all_roots(self) -> tuple[TablePage, ...]:
        invalidated: list[TablePage] = []
        for root in await Read(self.kvm.tdp_mmu_roots):
            header = await ReadHeader(root)
            if header.as_id == 0 and not await Read(root.invalid):
                await Write(root.invalid, True)
                invalidated.append(root)
        return tuple(invalidated)


ENTRY = Entry(
    id="z26",
    title="KVM: x86/mmu: Do not filter address spaces in for_each_tdp_mmu_root_yield_safe",
    commit="441a5dfcd968",
    fixed="6.6",
    kernel="6.12",
    scenario=Script(threads="smm0: r2; ioctl: slot-delete:1/0", setup="w0", slots="1/0-1 1/2-3"),
    prop="leftover",
    mechanism=(
        "The loops over the roots met those of address space 0 only. A slot of SMM's address "
        "space is deleted and its pages stay mapped in SMM's root."
    ),
    patch=SkipsSmmRoots,
)
