"""vCPUs of one state: where they are, what they were asked for, what their TLBs may hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tdpmmu.arch.backing import backed
from tdpmmu.arch.hardware import Entry, Hardware, VcpuCells
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import State
from tdpmmu.render import spte
from tdpmmu.render.report.rows import BUSY, IDLE, LEAF, OLD, PLAIN, ROOT, STALE, TABLE, Row


@dataclass(frozen=True, slots=True)
class Held:
    """A translation that a vCPU's CPU may hold.

    ``live``: the page tables have just this entry; ``backed``: they allow all that it allows.
    ``usable``: the vCPU can use it without a flush before.
    """

    vcpu: VcpuCells
    entry: Entry
    live: bool
    backed: bool
    usable: bool

    @property
    def stale(self) -> bool:
        """Whether it may do harm."""
        return self.usable and not self.backed


def held(hardware: Hardware, state: State) -> Iterator[Held]:
    """All that may be held, by vCPU; leaves first."""
    step = Step(state, 0)
    fmt = hardware.format
    for vcpu in hardware.vcpus:
        usable = set(hardware.usable(step, vcpu))
        entries = sorted(step[vcpu.held], key=lambda one: (not fmt.is_last(one[3], one[2]), one))
        live = {root: hardware.reachable(step, root) for root in {entry[0] for entry in entries}}
        for entry in entries:
            there = entry in live[entry[0]]
            yield Held(vcpu, entry, there, there or backed(hardware, step, entry), entry in usable)


def rows(hardware: Hardware, state: State) -> Iterator[Row]:
    """Each vCPU with its requests and its may-hold set."""
    step = Step(state, 0)
    all_held = list(held(hardware, state))
    for vcpu in hardware.vcpus:
        name = f"vCPU{vcpu.number}"
        parked = bool(step[vcpu.parked])
        mode = "parked: its TLB is kept" if parked else _mode(step, vcpu)
        roots = [hardware.page_by_number[number].name for number in step[vcpu.loaded]]
        note = f"root {', '.join(roots)}" if roots else "no root"
        yield Row(name, 0, name, mode, ROOT, note)
        for cell, text in (
            (vcpu.request, "KVM_REQ_TLB_FLUSH: flushes before it enters"),
            (vcpu.reload, "KVM_REQ_MMU_FREE_OBSOLETE_ROOTS"),
            (vcpu.ipi, "IPI on its way"),
        ):
            if step[cell]:
                yield Row(cell.name, 1, "pending", text, BUSY)
        if step[vcpu.pml]:
            gfns = ", ".join(f"{gfn:#x}" for gfn in sorted(step[vcpu.pml]))
            yield Row(vcpu.pml.name, 1, "PML", f"gfns {gfns}", PLAIN)
        mine = [one for one in all_held if one.vcpu is vcpu]
        for one in mine:
            yield _held_row(hardware, name, one)
        if not mine:
            yield Row(f"{name} holds", 1, "may hold", "nothing", IDLE)


def _mode(step: Step, vcpu: VcpuCells) -> str:
    mode = str(step[vcpu.mode])
    if step[vcpu.in_guest]:
        return "runs guest code" if mode == "in guest" else f"runs guest code; mode: {mode}"
    return "outside the guest" if mode == "outside" else f"outside the guest; mode: {mode}"


def _held_row(hardware: Hardware, name: str, one: Held) -> Row:
    root, gfn, level, value = one.entry
    leaf = hardware.format.is_last(value, level)
    kind, note = LEAF if leaf else TABLE, ""
    if not one.backed:
        kind, note = (STALE, "STALE") if one.usable else (OLD, "stale, but cannot be used")
    elif not one.live:
        kind, note = OLD, "split since; the tables still allow it"
    of = hardware.page_by_number[root].name
    key = f"{name} {root} {gfn:#x} {level} {value:#x}"
    detail = f"SPTE {value:#x}, tagged with root {of}"
    return Row(key, 1, "may hold", spte.held(hardware, one.entry), kind, note, detail)
