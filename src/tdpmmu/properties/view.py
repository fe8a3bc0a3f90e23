"""What properties may look at beside events: page tables, TLBs and locks, never MMU code."""

from __future__ import annotations

from collections.abc import Iterator

from tdpmmu.arch.hardware import Entry, Hardware, VcpuCells
from tdpmmu.arch.table import Header
from tdpmmu.machine.op import Step


def usable_leaves(hardware: Hardware, step: Step) -> Iterator[tuple[VcpuCells, Entry]]:
    """Every leaf translation that some vCPU can still use."""
    for vcpu in hardware.vcpus:
        for entry in hardware.usable(step, vcpu):
            if hardware.format.is_last(entry[3], entry[2]):
                yield vcpu, entry


def maps(hardware: Hardware, entry: Entry, pfn: int, pages: int) -> bool:
    """Whether a leaf reaches any frame of ``[pfn, pfn + pages)``."""
    first = hardware.format.pfn(entry[3])
    return first < pfn + pages and pfn < first + hardware.geometry.pages(entry[2])


def by_address(hardware: Hardware, step: Step, root: int) -> bool:
    """Whether entries of a root translate addresses of the guest's paging, and not gfns."""
    header: Header | None = step[hardware.page_by_number[root].header]
    return header is not None and header.root < 0


def first_gfn(hardware: Hardware, step: Step, entry: Entry) -> int:
    """The first gfn that a held leaf maps."""
    if by_address(hardware, step, entry[0]):
        return hardware.frame_gfn(hardware.format.pfn(entry[3]))
    return entry[1]


def tell(hardware: Hardware, entry: Entry) -> str:
    """A held entry in words."""
    root, gfn, level, spte = entry
    size = {1: "4K", 2: "2M", 3: "1G", 4: "512G"}.get(level, f"level {level}")
    of = f"root SP{root}, " if root >= 0 else ""
    if not hardware.format.is_last(spte, level):
        return f"the {size} table entry for gfn {gfn:#x} ({of}SPTE {spte:#x})"
    return f"the {size} translation of gfn {gfn:#x} ({of}SPTE {spte:#x})"
