"""What a change of an SPTE is, by the rules that the model has, too.

Everything that a change means depends on few bits of the two values and on whether their frames are
the same, so it is worked out once for each combination.
"""

from __future__ import annotations

from typing import NamedTuple

from tdpmmu.arch.spte import BASE_ADDR_MASK, SpteFormat
from tdpmmu.properties.rules import illegal, takes_nothing

_MOST = 1 << 16


class Kind(NamedTuple):
    """``wrong``: the rule that it breaks.  ``leaves``: by how much there are more of them.

    ``links`` and ``unlinks`` tell of tables, ``takes`` that a vCPU may hold something which the
    new value does not give, ``huge`` that a huge leaf is installed, and if it is executable.
    """

    wrong: str | None
    was_present: bool
    was_leaf: bool
    leaves: int
    links: bool
    unlinks: bool
    takes: bool
    huge: bool | None


class Kinds:
    """The kinds of changes in one format."""

    def __init__(self, fmt: SpteFormat) -> None:
        self._fmt = fmt
        self._present = fmt.mmu_present
        # Beside the frame number; what is not present may have any bits anywhere.
        self._flags = ~BASE_ADDR_MASK
        self._known: dict[tuple[int, int, int, bool], Kind] = {}

    def of(self, level: int, old: int, new: int) -> Kind:
        """The kind of a change of an entry at ``level``."""
        present, flags = self._present, self._flags
        key = (
            level,
            old & flags if old & present else old,
            new & flags if new & present else new,
            not (old ^ new) & BASE_ADDR_MASK,
        )
        kind = self._known.get(key)
        if kind is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            kind = self._known[key] = self._work_out(level, old, new)
        return kind

    def _work_out(self, level: int, old: int, new: int) -> Kind:
        fmt = self._fmt
        was_present = fmt.is_shadow_present(old)
        is_present = fmt.is_shadow_present(new)
        was_leaf = was_present and fmt.is_last(old, level)
        is_leaf = is_present and fmt.is_last(new, level)
        was_table, is_table = was_present and not was_leaf, is_present and not is_leaf
        stays = was_table and is_table and fmt.pfn(old) == fmt.pfn(new)
        # A huge page that is split is backed by the small ones.
        takes = was_present and not is_table
        if was_leaf and is_leaf:
            takes = not takes_nothing(fmt, old, new)
        return Kind(
            wrong=illegal(fmt, level, old, new),
            was_present=was_present,
            was_leaf=was_leaf,
            leaves=is_leaf - was_leaf,
            links=is_table and not stays,
            unlinks=was_table and not stays,
            takes=takes or (was_table and is_table and not stays),
            huge=fmt.is_executable(new) if is_leaf and level > 1 and not was_present else None,
        )
