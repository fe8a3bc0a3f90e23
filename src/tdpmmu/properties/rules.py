"""Rules that model and real kernels share, with nothing of the model's machine.

Whoever reads a trace needs these and not what the model is made of, which takes longer to load than
a short trace to verify.
"""

from __future__ import annotations

from typing import NamedTuple

from tdpmmu.arch.spte import SpteFormat


class Rule(NamedTuple):
    """What a property is called, and what it means if it is violated."""

    name: str
    meaning: str


SPTE_TRANSITION = Rule("spte-transition", "an SPTE takes a value that it must not take directly")
FLUSH_OWED = Rule("flush-owed", "mmu_lock is released with a TLB flush owed")
FREED_TABLE = Rule("freed-table", "hardware reaches a freed page table")
LEFTOVER = Rule("leftover", "a memslot or range that was removed is still mapped")
LEAK = Rule("leak", "a page table or root is never freed")

HIGHEST_LEAF = 3
"""``KVM_MAX_HUGEPAGE_LEVEL``: 1 GiB."""


def illegal(spte_format: SpteFormat, level: int, old: int, new: int) -> str | None:
    """What is wrong with a change of an entry at ``level``, or None.

    The rules of ``handle_changed_spte`` and of freezing, which real kernels and the model share.
    """
    is_present = spte_format.is_shadow_present(new)
    is_leaf = is_present and spte_format.is_last(new, level)
    if is_leaf and level > HIGHEST_LEAF:
        return f"a leaf at level {level}"
    if spte_format.is_frozen(old):
        if new == spte_format.nonpresent:
            return None
        return "a frozen entry is changed by somebody else than its freezer, who clears it"
    if not spte_format.is_shadow_present(old):
        if (
            is_present
            or spte_format.is_frozen(new)
            or spte_format.is_mmio(old)
            or spte_format.is_mmio(new)
        ):
            return None
        return "a non-present value is replaced by another one"
    if not is_present or is_leaf != spte_format.is_last(old, level):
        return None
    if spte_format.pfn(old) != spte_format.pfn(new):
        if is_leaf:
            return "a present leaf is replaced by one for another pfn"
        return "a page table is replaced by another one"
    if not is_leaf and (old ^ new) & ~spte_format.accessed:
        return "an entry that points to a page table is changed in place"
    return None


def takes_nothing(spte_format: SpteFormat, old: int, new: int) -> bool:
    """Whether a leaf still allows all that it allowed."""
    # Write access that dirty logging takes is flushed before its ioctl returns, without the lock;
    # the SPTE stays MMU-writable and says so.  For access tracking nobody flushes.
    old, new = spte_format.granted(old), spte_format.granted(new)
    writable = spte_format.is_writable(new) or spte_format.is_mmu_writable(new)
    return (
        spte_format.is_shadow_present(new)
        and spte_format.pfn(old) == spte_format.pfn(new)
        and writable >= spte_format.is_writable(old)
        and spte_format.is_executable(new) >= spte_format.is_executable(old)
    )
