"""Paging geometry: how many levels, how many entries a table has.

Real x86 has 4 or 5 levels of 512 entries; exploration uses 2-4 levels of 2-4 entries.  Level 1 maps
4 KiB pages; gfns count them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """``levels`` of paging, ``fanout`` entries a table."""

    levels: int
    fanout: int

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 5:
            raise ValueError(f"levels must be 1 to 5, not {self.levels}")
        if not 2 <= self.fanout <= 512:
            raise ValueError(f"fanout must be 2 to 512, not {self.fanout}")

    def pages(self, level: int) -> int:
        """gfns that one entry of a table at ``level`` maps (``KVM_PAGES_PER_HPAGE``)."""
        return int(self.fanout ** (level - 1))

    @property
    def max_gfn(self) -> int:
        """One past the last gfn that the root can map."""
        return self.pages(self.levels + 1)

    def index(self, gfn: int, level: int) -> int:
        """Index of the entry for ``gfn`` in its table at ``level`` (``SPTE_INDEX``)."""
        return gfn // self.pages(level) % self.fanout

    def round(self, gfn: int, level: int) -> int:
        """First gfn of the entry that maps ``gfn`` at ``level`` (``gfn_round_for_level``)."""
        return gfn - gfn % self.pages(level)


X86_64 = Geometry(levels=4, fanout=512)
X86_64_LA57 = Geometry(levels=5, fanout=512)
