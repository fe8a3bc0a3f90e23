"""Which changes an entry of a TDP page table may make."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.events.records import Event, SpteChanged
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property

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


class SpteTransition(Property):
    """A present leaf takes another pfn, and a table another place, by way of non-present only.

    An entry that points to a table is never changed in place.  What is frozen is cleared by its
    freezer before anybody else changes it.
    """

    name: ClassVar[str] = "spte-transition"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "an SPTE takes a value that it must not take directly"
    hears: ClassVar[tuple[type[Event], ...]] = (SpteChanged,)

    def observe(self, step: Step, event: Event) -> None:
        # Entries of shadow pages may be overwritten: the caller flushes.
        if not isinstance(event, SpteChanged) or event.root < 0:
            return
        wrong = illegal(self.hardware.format, event.level, event.old, event.new)
        if wrong is not None:
            step.violate(
                self,
                f"{wrong}: {event.table}[{event.index}], level {event.level}, gfn {event.gfn:#x}, "
                f"{event.old:#x} to {event.new:#x}",
            )
