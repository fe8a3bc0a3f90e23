"""Whether the page tables still say what a CPU may hold."""

from __future__ import annotations

from tdpmmu.arch.hardware import Entry, Hardware
from tdpmmu.machine.op import Step


def backed(hardware: Hardware, step: Step, entry: Entry, *, logged: bool = False) -> bool:
    """Whether the page tables still allow all that a held entry allows.

    ``logged``: write access that dirty logging has taken counts as allowed.  The SPTE is
    MMU-writable still, and the ioctl flushes before it returns.
    """
    root, gfn, level, spte = entry
    spte_format = hardware.format
    if step[hardware.page_by_number[root].header] is None:
        return False
    if not spte_format.is_last(spte, level):
        # The accessed bit of such an entry says nothing.
        return any(
            spte_format.pfn(live[3]) == spte_format.pfn(spte)
            and not spte_format.is_last(live[3], level)
            for live in hardware.reachable(step, root)
            if live[1:3] == (gfn, level)
        )
    for offset in range(hardware.geometry.pages(level)):
        found = hardware.walk(step, root, gfn + offset)
        if found is None:
            return False
        _, live_level, live = found
        live = spte_format.granted(live)
        live_pfn = spte_format.pfn(live) + (gfn + offset) % hardware.geometry.pages(live_level)
        if live_pfn != spte_format.pfn(spte) + offset:
            return False
        writable = spte_format.is_writable(live) or (logged and spte_format.is_mmu_writable(live))
        if spte_format.is_writable(spte) and not writable:
            return False
        if spte_format.is_executable(spte) and not spte_format.is_executable(live):
            return False
    return True
