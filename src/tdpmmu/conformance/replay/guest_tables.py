"""The guest's page tables are inputs: entries as KVM has found them, bits as it has set them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tdpmmu.arch.guest import ACCESSED, DIRTY, gpte_gfn
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.conformance.replay.result import Result, count
from tdpmmu.mmu.kvm import Kvm
from tdpmmu.trace.records import Record, Trace

_WALK = re.compile(r"addr ([0-9a-f]+) ")
_ELEMENT = re.compile(r"pte ([0-9a-f]+) level (\d)")
_GPA = re.compile(r"gpa ([0-9a-f]+)")
_BITS = {"kvm_mmu_set_accessed_bit": ACCESSED, "kvm_mmu_set_dirty_bit": DIRTY}

EVENTS = frozenset({"kvm_mmu_pagetable_walk", "kvm_mmu_paging_element", *_BITS})


@dataclass(frozen=True, slots=True)
class Walked:
    """``kvm_mmu_paging_element``: what a thread found on its way to ``address``, in 4 KiB pages."""

    line: int
    pid: int
    address: int
    level: int
    gpte: int


@dataclass(frozen=True, slots=True)
class BitSet:
    """``kvm_mmu_set_accessed_bit`` or ``kvm_mmu_set_dirty_bit`` of the entry at ``gpa``."""

    line: int
    gpa: int
    bit: int


class Walks:
    """Collects ``found`` from the records of a trace."""

    def __init__(self, reader: Trace) -> None:
        self.found: list[Walked | BitSet] = []
        self._reader = reader
        self._address: dict[int, int] = {}

    def hear(self, record: Record) -> None:
        """One of the :data:`EVENTS`; TraceError if it lacks its fields."""
        if record.event in _BITS:
            gpa = int(self._match(record, _GPA, "gpa G")[1], 16)
            self.found.append(BitSet(record.line, gpa, _BITS[record.event]))
        elif record.event == "kvm_mmu_pagetable_walk":
            address = int(self._match(record, _WALK, "addr A pferr E")[1], 16)
            self._address[record.pid] = address >> 12
        else:
            match = self._match(record, _ELEMENT, "pte P level L")
            address = self._address.get(record.pid, -1)
            if address >= 0:
                level, gpte = int(match[2]), int(match[1], 16)
                self.found.append(Walked(record.line, record.pid, address, level, gpte))

    def _match(self, record: Record, pattern: re.Pattern[str], expected: str) -> re.Match[str]:
        match = pattern.match(record.text)
        if match is None:
            self._reader.fail(f'{record.event}: expected "{expected}"', record.line)
        return match


class GuestMemory:
    """Writes to the model's guest what the kernel has found, in the order of the trace.

    ``vcpus`` are the model's, by the kernel's threads.
    """

    def __init__(
        self, kvm: Kvm, found: list[Walked | BitSet], vcpus: dict[int, VcpuCells], result: Result
    ) -> None:
        self._kvm = kvm
        self._memory = kvm.layout.memory()
        self._found = found
        self._vcpus = vcpus
        self._result = result
        self._next = 0
        self._table: dict[int, int] = {}

    def until(self, line: int) -> None:
        """All that is seen up to this line of the trace."""
        while self._next < len(self._found) and self._found[self._next].line <= line:
            found = self._found[self._next]
            self._next += 1
            if isinstance(found, BitSet):
                self._set_bit(found)
            else:
                self._write(found)

    def _write(self, walked: Walked) -> None:
        vcpu = self._vcpus.get(walked.pid)
        if vcpu is None or vcpu.paging is None:
            return
        if walked.level == vcpu.paging.levels:
            self._table[walked.pid] = vcpu.paging.root_gfn
        table = self._table.get(walked.pid)
        if table is None:
            return
        self._put(table, self._kvm.geometry.index(walked.address, walked.level), walked.gpte)
        self._table[walked.pid] = gpte_gfn(walked.gpte)

    def _set_bit(self, found: BitSet) -> None:
        table, index = found.gpa >> 12, (found.gpa & 0xFFF) // 8
        if table in self._kvm.guest.entries:
            count(self._result.inputs, "accessed or dirty bits set in the guest's entries")
            cell = self._kvm.guest.entries[table][index]
            gpte = self._memory[cell.chunk][cell.offset]
            self._memory[cell.chunk][cell.offset] = gpte | found.bit

    def _put(self, table: int, index: int, gpte: int) -> None:
        kvm = self._kvm
        if table not in kvm.guest.entries:
            chunk = kvm.layout.chunk(f"guest table {table:#x}")
            kvm.guest.entries[table] = tuple(
                kvm.layout.cell(f"gpte {table:#x}[{number}]", 0, chunk=chunk)
                for number in range(kvm.geometry.fanout)
            )
        cell = kvm.guest.entries[table][index]
        self._memory[cell.chunk][cell.offset] = gpte
