"""Typed fields straight from a binary event, without formatting and parsing text.

What is not here, or lacks a field in some kernel, takes the way round by its text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from tdpmmu.trace.dat.values import EventValues
from tdpmmu.trace.fields import (
    PageFault,
    PageInfo,
    SetSpte,
    SplitHugePage,
    SpteChange,
    SpteRequested,
)

_new = tuple.__new__

ACCESS = ("---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux")
"""What ``access`` of ``union kvm_mmu_page_role`` prints as."""


def _page_info(values: tuple[int, ...]) -> PageInfo:
    """``level:4, has_4_byte_gpte:1, quadrant:2, direct:1, access:3``: the same from 5.12 to 6.18.

    No format says so: ``print fmt`` of the page events is beyond what their readers can do.
    """
    gfn, role = values
    return PageInfo(gfn, role & 15, bool(role >> 7 & 1), ACCESS[role >> 8 & 7])


def page_text(values: EventValues) -> str:
    """What ``KVM_MMU_PAGE_PRINTK`` prints, and after it, for a page that was got, if it is new."""
    role, fields = values.number("role"), values.format.fields
    text = (
        f"sp gen {values.number('mmu_valid_gen') if 'mmu_valid_gen' in fields else 0} "
        f"gfn {values.number('gfn'):x} l{role & 15} {4 if role & 16 else 8}-byte q{role >> 5 & 3}"
        f"{' direct' if role >> 7 & 1 else ''} {ACCESS[role >> 8 & 7]}"
        f"{' invalid' if role >> 11 & 1 else ''} {'' if role >> 12 & 1 else '!'}nxe "
        f"{'!' if role >> 16 & 1 else ''}ad"
    )
    if "root_count" in fields:
        text += f" root {values.number('root_count')}"
    if "unsync" in fields:
        text += " unsync" if values.number("unsync") else " sync"
    if "created" in fields:
        text += " new" if values.number("created") else " existing"
    return text


def _set_spte(values: tuple[int, ...]) -> SetSpte:
    gfn, spte, r, x, u, level, sptep = values
    user = "" if u == -1 else "u" if u else "-"
    reading = ("r" if r else "-") + ("w" if spte & 2 else "-") + ("x" if x else "-") + user
    return SetSpte(gfn, spte, reading, level, sptep)


class Binding(NamedTuple):
    """``make`` makes an event's typed fields of these ``fields`` of its format.

    ``limits`` are the least and the greatest value of some of them: others are damage.
    """

    fields: tuple[str, ...]
    make: Callable[[tuple[Any, ...]], Any]
    limits: dict[str, tuple[int, int]] = {}  # noqa: RUF012 - nobody changes it


_LEVEL = {"level": (0, 9)}

BINDINGS = {
    "kvm_tdp_mmu_spte_changed": Binding(
        ("as_id", "gfn", "level", "old_spte", "new_spte"),
        partial(_new, SpteChange),
        {"as_id": (0, 1), "level": (1, 5)},
    ),
    "kvm_mmu_get_page": Binding(("gfn", "role"), _page_info),
    "kvm_mmu_prepare_zap_page": Binding(("gfn", "role"), _page_info),
    "kvm_page_fault": Binding(("fault_address", "error_code"), partial(_new, PageFault)),
    "kvm_mmu_spte_requested": Binding(
        ("gfn", "pfn", "level"), partial(_new, SpteRequested), _LEVEL
    ),
    "kvm_mmu_set_spte": Binding(
        ("gfn", "spte", "r", "x", "u", "level", "sptep"), _set_spte, _LEVEL
    ),
    "kvm_mmu_split_huge_page": Binding(
        ("gfn", "spte", "level", "errno"),
        partial(_new, SplitHugePage),
        {**_LEVEL, "errno": (-4095, 4095)},
    ),
}
"""By event."""
