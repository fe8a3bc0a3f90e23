"""What a script may ask for; all else is answered with a ValueError of one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tdpmmu.arch.geometry import Geometry
from tdpmmu.mmu.ageing import NO_AD_BITS
from tdpmmu.mmu.apic_page import APIC_ACCESS_PAGE
from tdpmmu.mmu.dirty_log import INITIALLY_SET, MANUAL_PROTECT
from tdpmmu.mmu.kvm import Memslot, Memslots
from tdpmmu.mmu.log_protect import PML
from tdpmmu.mmu.mmio import MMIO
from tdpmmu.mmu.page_split import NO_EAGER_PAGE_SPLIT
from tdpmmu.mmu.ring import DIRTY_RING
from tdpmmu.mmu.roots import NO_TDP_MMU
from tdpmmu.versions.linux_6_12 import NO_SLOT_ZAP_ALL

if TYPE_CHECKING:
    from tdpmmu.scenarios.script import Script

OPTIONS = (
    APIC_ACCESS_PAGE, DIRTY_RING, INITIALLY_SET, MANUAL_PROTECT, MMIO, NO_AD_BITS,
    NO_EAGER_PAGE_SPLIT, NO_SLOT_ZAP_ALL, NO_TDP_MMU, PML,
)  # fmt: skip
"""What ``options`` may hold; each is defined where the MMU asks for it."""


MOST_GFNS = 1 << 18
"""More take minutes, and gigabytes, before anything is explored."""


def check_sizes(script: Script) -> None:
    """Numbers and choices; the geometry checks its own."""
    gfns = Geometry(script.levels, script.fanout).max_gfn
    if gfns > MOST_GFNS:
        raise ValueError(
            f"levels {script.levels}, fanout {script.fanout}: {gfns:,} gfns; at most "
            f"{MOST_GFNS:,} can be explored"
        )
    for name, value, least, most in (
        ("huge_level", script.huge_level, 1, 5),
        ("pages", script.pages, 1, 1000),
        ("mmu_pages", script.mmu_pages, 0, 1000),
    ):
        if not least <= value <= most:
            raise ValueError(f"{name} must be {least} to {most}, not {value}")
    if script.flush not in ("bare-metal", "ranged"):
        raise ValueError(f"flush {script.flush}: bare-metal or ranged")
    if script.format not in ("npt", "ept"):
        raise ValueError(f"format {script.format}: npt or ept")
    if script.resched not in ("any", "contended"):
        raise ValueError(f"resched {script.resched}: any or contended")


def options(script: Script) -> frozenset[str]:
    """The switches of the VM; nothing in the MMU would ask for others."""
    names = script.options.split()
    for name in names:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=2)
            known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(OPTIONS)}"
            raise ValueError(f"options: no such option {name!r}; {known}")
    return frozenset(names)


def check_tables(tables: Mapping[int, object], max_gfn: int) -> None:
    """The guest's tables lie in its memory."""
    for gfn in tables:
        if gfn >= max_gfn:
            raise ValueError(f"guest table {gfn}: the last gfn is {max_gfn - 1}")


def check_steps(thread: str, steps: Sequence[str]) -> None:
    """A vCPU that has given its root up does nothing more."""
    if "unload" in steps[:-1]:
        raise ValueError(f"{thread}: nothing can come after 'unload'")


def check_slots(slots: Sequence[Memslot], max_gfn: int) -> None:
    """Slots lie in the VM's memory and beside each other; there are as many host pages as gfns."""
    for number, slot in enumerate(slots):
        what = f"slot {slot.base_gfn}-{slot.end - 1}"
        if slot.end > max_gfn:
            raise ValueError(f"{what}: the last gfn is {max_gfn - 1}")
        if slot.hva < 0 or slot.hva + slot.npages > max_gfn:
            raise ValueError(f"{what}: the host pages are 0 to {max_gfn - 1}")
        before = tuple(one for one in slots[:number] if one.as_id == slot.as_id)
        if Memslots(0, before).overlap(slot):
            raise ValueError(f"{what} overlaps another")
