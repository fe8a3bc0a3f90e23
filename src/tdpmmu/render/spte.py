"""SPTEs in a few words: what an entry points to, and what may be done through it."""

from __future__ import annotations

from collections.abc import Iterable

from tdpmmu.arch.guest import ACC_EXEC, ACC_WRITE, LARGE, PRESENT, gpte_access, gpte_gfn
from tdpmmu.arch.hardware import Entry, Hardware
from tdpmmu.arch.spte import SpteFormat
from tdpmmu.events.records import SpteChanged

SIZES = {1: "4K", 2: "2M", 3: "1G", 4: "512G"}
_REMOVED_UNTIL = ("5.12-rc4", "5.12", "5.13", "6.1")
"""Kernels that say ``REMOVED_SPTE`` where later ones say ``FROZEN_SPTE``."""


def size(level: int) -> str:
    """What one entry at ``level`` maps."""
    return SIZES.get(level, f"level {level}")


def permissions(fmt: SpteFormat, spte: int) -> str:
    """``rwx`` as the hardware sees it."""
    return "".join(
        letter if allowed else "-"
        for letter, allowed in (
            ("r", fmt.is_readable(spte)),
            ("w", fmt.is_writable(spte)),
            ("x", fmt.is_executable(spte)),
        )
    )


def value(hardware: Hardware, spte: int, level: int) -> str:
    """One SPTE: ``none``, ``table SP3``, ``pfn 0x100 rw-``, ``REMOVED_SPTE``, ``MMIO``."""
    fmt = hardware.format
    if fmt.is_frozen(spte):
        return "REMOVED_SPTE" if fmt.kernel in _REMOVED_UNTIL else "FROZEN_SPTE"
    if not fmt.is_shadow_present(spte):
        if spte in (0, fmt.nonpresent):
            return "none"
        return "MMIO" if fmt.is_mmio(spte) else f"{spte:#x}"
    if fmt.is_last(spte, level):
        return f"pfn {fmt.pfn(spte):#x} {permissions(fmt, spte)}"
    page = hardware.page_by_pfn.get(fmt.pfn(spte))
    return f"table {page.name}" if page else f"table at pfn {fmt.pfn(spte):#x}"


def guest(gpte: int) -> str:
    """A PTE of the guest: ``none``, ``gfn 0x2 rw-``, with ``large`` if it maps more than a page."""
    if not gpte & PRESENT:
        return "none"
    access = gpte_access(gpte)
    letters = f"r{'w' if access & ACC_WRITE else '-'}{'x' if access & ACC_EXEC else '-'}"
    return f"gfn {gpte_gfn(gpte):#x} {letters}{' large' if gpte & LARGE else ''}"


def change(hardware: Hardware, event: SpteChanged) -> str:
    """``gfn 0x0 2M: table SP8 -> none (SP7[0])``."""
    old = value(hardware, event.old, event.level)
    new = value(hardware, event.new, event.level)
    what = f"{old} -> {new}"
    if old == new:
        what = f"{old}, {_flags(hardware.format, event.old, event.new)}"
    return f"gfn {event.gfn:#x} {size(event.level)}: {what} ({event.table}[{event.index}])"


def _flags(fmt: SpteFormat, old: int, new: int) -> str:
    """What else differs in two SPTEs that point to the same page with the same permissions."""
    tests = (
        ("accessed", fmt.is_accessed),
        ("dirty", fmt.is_dirty),
        ("MMU-writable", fmt.is_mmu_writable),
        ("host-writable", fmt.is_host_writable),
    )
    differing = [
        name if test(new) else f"no longer {name}" for name, test in tests if test(old) != test(new)
    ]
    return ", ".join(differing) or f"{old:#x} -> {new:#x}"


def held(hardware: Hardware, entry: Entry) -> str:
    """A translation as a TLB may hold it: ``gfn 0x0 2M -> pfn 0x100000 rw-``."""
    _, gfn, level, spte = entry
    return f"gfn {gfn:#x} {size(level)} -> {value(hardware, spte, level)}"


def mappings(hardware: Hardware, entries: Iterable[Entry]) -> list[str]:
    """All leaves in words, neighbours of the same kind together: ``gfns 0x0-0x1 4K -> pfn ...``."""
    fmt = hardware.format
    runs: list[list[Entry]] = []
    for entry in sorted(one for one in entries if fmt.is_last(one[3], one[2])):
        if runs and _next_to(hardware, runs[-1][-1], entry):
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return [_mapping(hardware, run) for run in runs]


def _next_to(hardware: Hardware, first: Entry, second: Entry) -> bool:
    fmt = hardware.format
    pages = hardware.geometry.pages(first[2])
    return (
        (first[0], first[2], first[1] + pages) == (second[0], second[2], second[1])
        and fmt.pfn(first[3]) + pages == fmt.pfn(second[3])
        and permissions(fmt, first[3]) == permissions(fmt, second[3])
    )


def _mapping(hardware: Hardware, run: list[Entry]) -> str:
    if len(run) == 1:
        return held(hardware, run[0])
    fmt = hardware.format
    _, gfn, level, spte = run[0]
    pfns = f"pfn {fmt.pfn(spte):#x}-{fmt.pfn(run[-1][3]):#x}"
    return f"gfn {gfn:#x}-{run[-1][1]:#x} {size(level)} -> {pfns} {permissions(fmt, spte)}"
