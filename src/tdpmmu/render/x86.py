"""A small model's page tables as part of real x86 ones, for readers that know no other geometry.

A table of the model has a few entries; here it is the start of a table with 512.  So each index of
a gfn takes the 9 bits that it has on x86, and host frames are numbered alike, which keeps huge
pages aligned.  Whatever lies between the entries that the model has is never spoken of.
"""

from __future__ import annotations

from tdpmmu.arch.hardware import Hardware
from tdpmmu.arch.spte import BASE_ADDR_MASK, MMIO_RESERVED_BIT, PAGE_SHIFT
from tdpmmu.kernel.mm import FIRST_PFN

INDEX_BITS = 9
LEVELS = 4
"""x86's paging levels, if the model has not more."""

PADDING_PFN = 0x8000
"""Frames of tables above the model's root are counted from here."""


class X86:
    """Translates the numbers of one machine."""

    def __init__(self, hardware: Hardware) -> None:
        self.levels = max(LEVELS, hardware.geometry.levels)
        self._fanout = hardware.geometry.fanout
        self._top = hardware.geometry.levels
        self._format = hardware.format

    def gfn(self, gfn: int) -> int:
        """A gfn, or the number of a page in general."""
        spread = 0
        for level in range(self._top):
            gfn, index = divmod(gfn, self._fanout)
            spread |= index << INDEX_BITS * level
        return spread | gfn << INDEX_BITS * self._top

    def pages(self, first: int, pages: int) -> int:
        """How many pages ``pages`` from ``first`` on are, up to where the next one begins."""
        return self.gfn(first + pages) - self.gfn(first)

    def pfn(self, pfn: int) -> int:
        """A host frame; those of page tables stay what they are."""
        return FIRST_PFN + self.gfn(pfn - FIRST_PFN) if pfn >= FIRST_PFN else pfn

    def spte(self, spte: int, level: int) -> int:
        """An SPTE with the frame, or the gfn of MMIO, that it has here."""
        fmt = self._format
        if fmt.is_mmio(spte):
            address = BASE_ADDR_MASK & ~MMIO_RESERVED_BIT
            number = self.gfn((spte & address) >> PAGE_SHIFT)
        elif fmt.is_shadow_present(spte) and fmt.is_last(spte, level):
            address = BASE_ADDR_MASK
            number = self.pfn(fmt.pfn(spte))
        else:
            return spte
        return spte & ~address | number << PAGE_SHIFT
