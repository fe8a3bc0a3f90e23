"""Actions of dirty logging, write tracking and ageing."""

from __future__ import annotations

import re
from typing import Any

from tdpmmu.mmu.ring import DIRTY_RING, SIZE
from tdpmmu.scenarios.actions.base import Action, Context, Run, alone, slot_of

SPLITS = ("log-on", "clear-log", "reset-rings")
"""Actions that may split huge pages."""


def log_on(context: Context, text: str) -> Run:
    """``log-on:[AS/]GFN``: switch dirty logging on for the memslot that has a gfn."""
    as_id, gfn = slot_of(context, text)
    return lambda: context.mmu.set_dirty_logging(as_id, gfn, True, context.pool)


def log_off(context: Context, text: str) -> Run:
    """``log-off:[AS/]GFN``: and off."""
    as_id, gfn = slot_of(context, text)
    return lambda: context.mmu.set_dirty_logging(as_id, gfn, False, context.pool)


def get_log(context: Context, text: str) -> Run:
    """``get-log:[AS/]GFN``: ``KVM_GET_DIRTY_LOG`` of the memslot that has a gfn."""
    as_id, gfn = slot_of(context, text)
    return lambda: context.mmu.get_dirty_log(as_id, gfn, context.pool)


def clear_log(context: Context, text: str) -> Run:
    """``clear-log:[AS/]FIRST-LAST``: ``KVM_CLEAR_DIRTY_LOG`` of gfns of one memslot."""
    space, slash, gfns_text = text.rpartition("/")
    as_id, _ = slot_of(context, f"{space}{slash}{gfns_text.partition('-')[0]}")
    gfns = context.gfns(gfns_text)
    return lambda: context.mmu.clear_dirty_log(as_id, gfns, context.pool)


@alone
def harvest(context: Context) -> Run:
    """``harvest``: userspace takes what the vCPUs' dirty rings have."""
    mmu = need_rings(context)
    return lambda: mmu.harvest_all()


@alone
def reset_rings(context: Context) -> Run:
    """``reset-rings``: ``KVM_RESET_DIRTY_RINGS``."""
    mmu = need_rings(context)
    return lambda: mmu.reset_dirty_rings(context.pool)


def forge(context: Context, text: str) -> Run:
    """``forge:VCPU[I]=OFFSET``: userspace writes another offset into entry I of a dirty ring."""
    match = re.fullmatch(r"(\d+)\[(\d+)\]=(-?\d+)", text)
    if match is None:
        raise ValueError(f"{text!r}: expected VCPU[I]=OFFSET")
    number, index, offset = (int(part) for part in match.groups())
    mmu = need_rings(context)
    if number >= len(context.kvm.dirty_rings) or index >= SIZE:
        raise ValueError(f"vCPU{number} entry {index}: there is no such entry")
    return lambda: mmu.forge_entry(number, index, offset)


def need_rings(context: Context) -> Any:
    """The MMU of a VM with dirty rings, or one line that says how to get one."""
    if not context.kvm.dirty_rings:
        raise ValueError(f"the VM has no dirty rings: it takes the option {DIRTY_RING}")
    return context.mmu


def track(context: Context, text: str) -> Run:
    """``track:[AS/]GFN``: a gfn turns out to hold a guest page table that KVM shadows."""
    as_id, gfn = slot_of(context, text)
    return lambda: context.mmu.track_gfn(as_id, gfn)


def age(context: Context, text: str) -> Run:
    """``age:FIRST-LAST``: the host's ``clear_young`` of these host pages."""
    gfns = context.gfns(text)
    return lambda: context.mmu.age_hva_range(gfns[0], gfns[-1] + 1)


def emulate(context: Context, text: str) -> Run:
    """``emulate:GFN``: an atomic instruction of the guest that KVM emulates."""
    vcpu = context.need_vcpu()
    gfn, as_id = context.gfn(text), context.as_id
    return lambda: context.mmu.emulate_atomic(vcpu, as_id, gfn)


def make_private(context: Context, text: str) -> Run:
    """``private:FIRST-LAST``: ``KVM_SET_MEMORY_ATTRIBUTES``, private."""
    gfns = context.gfns(text)
    return lambda: context.mmu.set_memory_attributes(gfns[0], gfns[-1] + 1, True)


def make_shared(context: Context, text: str) -> Run:
    """``shared:FIRST-LAST``: and shared again."""
    gfns = context.gfns(text)
    return lambda: context.mmu.set_memory_attributes(gfns[0], gfns[-1] + 1, False)


ACTIONS: dict[str, Action] = {
    "log-on": log_on,
    "log-off": log_off,
    "get-log": get_log,
    "clear-log": clear_log,
    "harvest": harvest,
    "reset-rings": reset_rings,
    "forge": forge,
    "track": track,
    "age": age,
    "emulate": emulate,
    "private": make_private,
    "shared": make_shared,
}
