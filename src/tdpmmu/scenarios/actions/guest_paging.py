"""Actions on the guest's own page tables and TLB."""

from __future__ import annotations

import re

from tdpmmu.arch.guest import parse_gpte
from tdpmmu.arch.spte import Access
from tdpmmu.scenarios.actions.base import Action, Context, Run, alone, integer

_STORE = re.compile(r"(\d+)\[(\d+)\]=(\S+)$")


def _store(context: Context, text: str) -> tuple[int, tuple[int, int]]:
    match = _STORE.match(text)
    if match is None:
        raise ValueError("expected WHERE[INDEX]=ENTRY, as in 1[0]=2r")
    index = integer(match[2], "index")
    if index >= context.kvm.geometry.fanout:
        raise ValueError(f"index {index}: a table has {context.kvm.geometry.fanout} entries")
    return context.gfn(match[1]), (index, parse_gpte(match[3]))


def set_entry(context: Context, text: str) -> Run:
    """``set:ADDRESS[INDEX]=ENTRY``: a guest write to the page table that it has at an address."""
    vcpu = context.need_vcpu()
    address, store = _store(context, text)
    mmu, as_id, pool = context.mmu, context.as_id, context.pool
    return lambda: mmu.vcpu_access(vcpu, as_id, pool, (address,), (Access.WRITE,), store)


def host_set(context: Context, text: str) -> Run:
    """``host-set:GFN[INDEX]=ENTRY``: userspace, or a device, writes a guest page table."""
    gfn, store = _store(context, text)
    return lambda: context.mmu.host_writes(gfn, store)


def invlpg(context: Context, text: str) -> Run:
    """``invlpg:ADDRESS``: the guest flushes one address from its TLB."""
    vcpu = context.need_paging()
    address = context.gfn(text)
    return lambda: context.mmu.invlpg(vcpu, address)


@alone
def cr3(context: Context) -> Run:
    """``cr3``: the guest loads CR3 with the value that it has: it flushes its TLB."""
    vcpu = context.need_paging()
    return lambda: context.mmu.load_cr3(vcpu)


ACTIONS: dict[str, Action] = {
    "set": set_entry,
    "host-set": host_set,
    "invlpg": invlpg,
    "cr3": cr3,
}
