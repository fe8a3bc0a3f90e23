"""What an action is, and the actions that every script has.

An action is ``NAME`` or ``NAME:ARGUMENTS`` in a thread's program.  Its function gets the context
and the arguments as text, checks them (``ValueError``, one line) and returns a function that makes
the coroutine to run.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.spte import Access
from tdpmmu.mmu.kvm import Kvm, Memslot
from tdpmmu.scenarios.script_limits import check_slots

Run = Callable[[], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Context:
    """Who runs an action: ``vcpu`` is the thread's vCPU if it is one; ``pool`` its page pool."""

    kvm: Kvm
    mmu: Any
    pool: int
    vcpu: VcpuCells | None = None
    as_id: int = 0

    def need_vcpu(self) -> VcpuCells:
        """The vCPU, or one line that says that this takes one."""
        if self.vcpu is None:
            raise ValueError("only a vCPU can do this")
        return self.vcpu

    def need_paging(self) -> VcpuCells:
        """The vCPU, if its page tables are the guest's own, which KVM shadows."""
        vcpu = self.need_vcpu()
        if vcpu.paging is None:
            raise ValueError("only a vCPU that pages (shadowN) can do this")
        return vcpu

    def gfn(self, text: str) -> int:
        """A gfn of this VM."""
        number = integer(text, "gfn")
        if not 0 <= number < self.kvm.geometry.max_gfn:
            raise ValueError(f"gfn {text}: there are {self.kvm.geometry.max_gfn} (from 0)")
        return number

    def gfns(self, text: str) -> tuple[int, ...]:
        """``2`` or ``0-3``."""
        first, dash, last = text.partition("-")
        start = self.gfn(first)
        end = self.gfn(last) if dash else start
        if end < start:
            raise ValueError(f"gfns {text}: the last comes before the first")
        return tuple(range(start, end + 1))


Action = Callable[[Context, str], Run]


def alone(action: Callable[[Context], Run]) -> Action:
    """An action that takes no arguments."""

    @wraps(action)
    def refuse_arguments(context: Context, text: str) -> Run:
        if text:
            raise ValueError("it takes no arguments")
        return action(context)

    return refuse_arguments


def integer(text: str, what: str) -> int:
    """A number, or one line that says what was expected."""
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{what} {text!r} is not a number") from None


# --- a vCPU ---------------------------------------------------------------------------------------

KINDS = {"r": Access.READ, "w": Access.WRITE, "x": Access.EXEC}


def access(context: Context, kinds: str, where: str) -> Run:
    """``w0``, ``x0-3``, ``wx0``: a guest access in any of these kinds to any of these gfns."""
    vcpu = context.need_vcpu()
    gfns = context.gfns(where)
    wanted = tuple(KINDS[kind] for kind in kinds)
    mmu, as_id, pool = context.mmu, context.as_id, context.pool
    return lambda: mmu.vcpu_access(vcpu, as_id, pool, gfns, wanted)


# --- the host and userspace -----------------------------------------------------------------------


def take_back(context: Context, text: str) -> Run:
    """``unmap:GFN``: the host takes the page behind a gfn away and gives it to somebody else."""
    gfn = context.gfn(text or "0")
    return lambda: context.mmu.host_takes_back(gfn)


@alone
def recover(context: Context) -> Run:
    """``recover``: one round of the NX recovery worker."""
    return lambda: context.mmu.recover_nx_lpages()


def slot_of(context: Context, text: str) -> tuple[int, int]:
    """``GFN`` or ``AS/GFN``."""
    space, slash, gfn = text.rpartition("/")
    as_id = integer(space, "address space") if slash else 0
    if as_id not in (0, 1):
        raise ValueError(f"address space {as_id}: 0 or 1 (SMM)")
    return as_id, context.gfn(gfn)


def slot_delete(context: Context, text: str) -> Run:
    """``slot-delete:GFN``: delete the memslot that has a gfn."""
    as_id, gfn = slot_of(context, text)
    return lambda: context.mmu.delete_memslot(as_id, gfn)


def slot_move(context: Context, text: str) -> Run:
    """``slot-move:GFN>TO``: move the memslot that has a gfn to start at another."""
    source, _, to = text.partition(">")
    as_id, gfn = slot_of(context, source)
    target = context.gfn(to)
    return lambda: context.mmu.move_memslot(as_id, gfn, target)


def slot_create(context: Context, text: str) -> Run:
    """``slot-create:AS/FIRST-LAST``: add a memslot; its host pages have the gfns' numbers."""
    slot = parse_slot(text)
    check_slots([slot], context.kvm.geometry.max_gfn)
    return lambda: context.mmu.create_memslot(slot)


@alone
def zap_all(context: Context) -> Run:
    """``zap-all-fast``: ``kvm_mmu_zap_all_fast``."""
    return lambda: context.mmu.zap_all_under_slots_lock()


def zap_range(context: Context, text: str) -> Run:
    """``zap-range:FIRST-LAST``: ``kvm_zap_gfn_range``."""
    gfns = context.gfns(text)
    return lambda: context.mmu.zap_gfn_range_all(gfns[0], gfns[-1] + 1)


@alone
def unload(context: Context) -> Run:
    """``unload``: the vCPU gives its root up for good (``kvm_mmu_unload``)."""
    vcpu = context.need_vcpu()
    return lambda: context.mmu.unload_root(vcpu)


def prefault(context: Context, text: str) -> Run:
    """``prefault:GFN``: ``KVM_PRE_FAULT_MEMORY`` of a gfn for reading."""
    vcpu = context.need_vcpu()
    if vcpu.paging is not None:
        raise ValueError("KVM prefaults with TDP only, not where it shadows page tables")
    gfn, as_id, pool = context.gfn(text), context.as_id, context.pool
    return lambda: context.mmu.pre_fault_memory(vcpu, gfn, as_id, pool)


def parse_slot(text: str) -> Memslot:
    """``[AS/]FIRST-LAST[@HVA][:log][:ro]``."""
    body, *flags = text.split(":")
    space, slash, body = body.rpartition("/")
    as_id = integer(space, "address space") if slash else 0
    body, at, hva = body.partition("@")
    first, dash, last = body.partition("-")
    start = integer(first, "gfn")
    end = integer(last, "gfn") if dash else start
    if end < start:
        raise ValueError(f"slot {text!r}: the last gfn comes before the first")
    if as_id not in (0, 1):
        raise ValueError(f"slot {text!r}: the address spaces are 0 and 1")
    slot = Memslot(start, end - start + 1, as_id, integer(hva, "host page") if at else start)
    for flag in flags:
        if flag not in ("log", "ro"):
            raise ValueError(f"slot {text!r}: the flags are log and ro")
        slot = replace(slot, log=True) if flag == "log" else replace(slot, readonly=True)
    return slot


ACTIONS: dict[str, Action] = {
    "unmap": take_back,
    "recover": recover,
    "slot-delete": slot_delete,
    "slot-move": slot_move,
    "slot-create": slot_create,
    "zap-all-fast": zap_all,
    "zap-range": zap_range,
    "unload": unload,
    "prefault": prefault,
}
