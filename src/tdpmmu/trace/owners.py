"""Whose VM each record of a trace is about.  KVM's own events name none.

What tells, from the surest on:

- A probe with the pointer ``kvm`` says it of itself, and of what the same call traces after it.
- Threads that run vCPUs, recover NX huge pages, or change memslots do it for a VM of their own.  An
  unmap is for whoever maps the range: an mmu_notifier serves any VM, in any thread.
- Threads of one process (``record-tgid``) have the same VM, unless probes say otherwise.

Two threads that run vCPUs of the same id at the same time are two VMs.  A pointer that is used
again after ``kvm_arch_flush_shadow_all`` is another VM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tdpmmu.trace.fields import PageFault, Probe, ProbeReturn
from tdpmmu.trace.records import Lost, Record

UNMAP = "kvm_tdp_mmu_unmap_gfn_range"
RELEASE = "kvm_arch_flush_shadow_all"
COMMIT = "kvm_arch_commit_memory_region"
FOR_THEIR_OWN = frozenset(
    {
        "kvm_tdp_page_fault",
        "kvm_mmu_load",
        "kvm_nx_huge_page_recovery_worker",
        "kvm_nx_lpage_recovery_worker",
        "kvm_tdp_mmu_zap_sp",
        "kvm_arch_mmu_enable_log_dirty_pt_masked",
        COMMIT,
    }
)
"""Functions that threads call for a VM of their own."""

_TOLD_BY = {
    "kvm_unmap_hva_range": frozenset({UNMAP}),
    "kvm_mmu_zap_all_fast": frozenset(
        {"kvm_tdp_mmu_invalidate_all_roots", "kvm_zap_obsolete_pages"}
    ),
}
"""Events that begin what a thread may do for any VM, and the probes after them that tell."""

_ALIVE = frozenset({"kvm_tdp_page_fault", "kvm_mmu_load"})
_BEGINS = frozenset({"kvm_page_fault", "kvm_unmap_hva_range", "tracing_mark_write"})
"""A thread does something else from here on."""
_CHANGES = frozenset({"kvm_tdp_mmu_spte_changed", "kvm_mmu_set_spte"})


class Vm(NamedTuple):
    """``kvm`` is its pointer, or if ``process`` a tgid; ``life`` counts VMs with that pointer."""

    kvm: int
    life: int = 0
    process: bool = False

    def __str__(self) -> str:
        if self.process:
            return f"VM of process {self.kvm}"
        return f"VM {self.kvm:#x}" + (f" (number {self.life + 1} there)" if self.life else "")


@dataclass(slots=True)
class Owned:
    """``vms``: the records of each, markers and what was lost in all of them.

    ``ambiguous``: lines of SPTE changes of which the trace does not say whose they are.  ``mixed``:
    (vCPU, two threads) that show that there are several VMs, while nothing tells them apart.
    """

    vms: dict[Vm, list[Record | Lost]] = field(default_factory=dict)
    ambiguous: list[int] = field(default_factory=list)
    mixed: tuple[int, Record, Record] | None = None


def find_owners(records: Sequence[Record | Lost]) -> Owned:
    """Tell the VMs of a trace apart; ``vms`` is empty if there is no sign of more than one."""
    threads = _Threads()
    for record in records:
        if isinstance(record, Record):
            threads.hear(record)
    own = threads.own()
    if not threads.pointers and not own:
        return Owned(mixed=threads.at_the_same_time())
    walk = _Walk(own)
    whose = walk.whose(records)
    found: dict[Vm, list[Record | Lost]] = {vm: [] for vm in whose if vm is not None}
    if len(found) < 2:
        return Owned()
    owned = Owned(found)
    for record, vm in zip(records, whose, strict=True):
        if isinstance(record, Lost) or record.event == "tracing_mark_write":
            for rest in found.values():
                rest.append(record)
        elif vm is not None:
            found[vm].append(record)
        elif record.event in _CHANGES:
            owned.ambiguous.append(record.line)
    return owned


class _Threads:
    """What the records of each thread say of its VM, by pid."""

    def __init__(self) -> None:
        self.pointers: set[int] = set()
        self._sure: dict[int, set[int]] = {}
        self._likely: dict[int, set[int]] = {}
        self._process: dict[int, int] = {}
        self._serving: set[int] = set()
        self._faults: dict[tuple[int, int], tuple[Record, Record]] = {}

    def hear(self, record: Record) -> None:
        """The next record."""
        pid, fields = record.pid, record.fields
        if pid not in self._process and (tgid := record.tgid) is not None:
            self._process[pid] = tgid
        if record.event in _BEGINS:
            self._serving.discard(pid)
            if record.event == "kvm_unmap_hva_range":
                self._serving.add(pid)
            elif isinstance(fields, PageFault) and (vcpu := _vcpu(record)) is not None:
                first, _ = self._faults.get((vcpu, pid), (record, record))
                self._faults[vcpu, pid] = first, record
        elif (kvm := _pointer(record)) is not None:
            self.pointers.add(kvm)
            if fields.function in FOR_THEIR_OWN:
                self._sure.setdefault(pid, set()).add(kvm)
            elif fields.function not in (UNMAP, RELEASE) and pid not in self._serving:
                self._likely.setdefault(pid, set()).add(kvm)

    def own(self) -> dict[int, Vm]:
        """The VM of each thread that has one."""
        found: dict[int, Vm] = {}
        for known in (self._likely, self._sure):
            for pid, kvms in known.items():
                if len(kvms) == 1:
                    found[pid] = Vm(next(iter(kvms)))
        by_process: dict[int, set[Vm]] = {}
        for pid, process in self._process.items():
            if pid in found:
                by_process.setdefault(process, set()).add(found[pid])
        if not self.pointers:
            runs = {self._process[pid] for _, pid in self._faults if pid in self._process}
            by_process = {process: {Vm(process, process=True)} for process in runs}
        for pid, process in self._process.items():
            vms = by_process.get(process, ())
            if pid not in found and len(vms) == 1 and pid not in self._sure:
                (found[pid],) = vms
        return found

    def at_the_same_time(self) -> tuple[int, Record, Record] | None:
        """A vCPU, and faults of two threads that run one of that id."""
        seen: dict[int, list[tuple[Record, Record]]] = {}
        for (vcpu, _), (first, last) in self._faults.items():
            for other_first, other_last in seen.get(vcpu, ()):
                if first.line < other_last.line and other_first.line < last.line:
                    return vcpu, other_first, first
            seen.setdefault(vcpu, []).append((first, last))
        return None


class _Walk:
    """Goes through the records in their order.  ``own``: each thread's VM, of the first life."""

    def __init__(self, own: dict[int, Vm]) -> None:
        self._own = own
        self._life: dict[int, int] = {}
        self._ended: set[int] = set()
        self._away: dict[int, Vm] = {}
        self._untold: dict[int, tuple[int, frozenset[str]]] = {}
        self._called: dict[int, tuple[int, str]] = {}

    def whose(self, records: Iterable[Record | Lost]) -> list[Vm | None]:
        """The VM of each record."""
        found: list[Vm | None] = []
        for number, record in enumerate(records):
            if isinstance(record, Lost):
                found.append(None)
                continue
            pid = record.pid
            called = self._called.pop(pid, None)
            kvm = _pointer(record)
            if kvm is None:
                found.append(self._without_pointer(record, number))
                continue
            vm = self._of_pointer(kvm, record)
            found.append(vm)
            function = record.fields.function
            if pid in self._untold and function in self._untold[pid][1]:
                found[self._untold.pop(pid)[0]] = vm
            if called is not None and called[1] == function:
                found[called[0]] = vm
            if vm == self._now(self._own.get(pid)):
                self._away.pop(pid, None)
            else:
                self._away[pid] = vm
        return found

    def _without_pointer(self, record: Record, number: int) -> Vm | None:
        pid = record.pid
        if record.event in _BEGINS:
            self._away.pop(pid, None)
            self._untold.pop(pid, None)
        if record.event in _TOLD_BY:
            self._untold[pid] = number, _TOLD_BY[record.event]
        elif record.function:
            self._called[pid] = number, record.function
        vm = self._away.get(pid) or self._now(self._own.get(pid))
        if isinstance(record.fields, ProbeReturn) and record.fields.function == UNMAP:
            self._away.pop(pid, None)
        return vm

    def _of_pointer(self, kvm: int, record: Record) -> Vm:
        function, arguments = record.fields.function, record.fields.arguments
        made = function == COMMIT and arguments.get("change") == 0
        if kvm in self._ended and (made or function in _ALIVE):
            self._ended.remove(kvm)
            self._life[kvm] = self._life.get(kvm, 0) + 1
        if function == RELEASE:
            self._ended.add(kvm)
        return Vm(kvm, self._life.get(kvm, 0))

    def _now(self, vm: Vm | None) -> Vm | None:
        """The VM that lives at this pointer."""
        return vm if vm is None or vm.process else Vm(vm.kvm, self._life.get(vm.kvm, 0))


def _pointer(record: Record) -> int | None:
    """The VM that a probe names."""
    if not isinstance(record.fields, Probe):
        return None
    kvm = record.fields.arguments.get("kvm")
    return kvm if isinstance(kvm, int) else None


def _vcpu(record: Record) -> int | None:
    """The vCPU that faults; before 5.19 the event does not say."""
    head, _, rest = record.text.partition("vcpu ")
    number = rest.partition(" ")[0]
    return int(number) if not head and number.isdigit() else None
