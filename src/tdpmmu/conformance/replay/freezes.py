"""How long entries stay frozen, as far as the trace of the freezer tells.

``tdp_mmu_zap_spte_atomic`` up to 6.9 traces present to frozen, flushes, and then writes the
non-present value without a trace: at some time before its thread does something else.  From 6.10 on
it freezes without a trace, flushes, and traces present to non-present.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.trace.fields import FunctionCall, Probe, SpteChange
from tdpmmu.trace.records import Record

_FLUSHES = ("kvm_flush_remote_tlbs", "kvm_arch_flush_remote_tlbs")


@dataclass(slots=True)
class Freeze:
    """An entry is frozen by a thread from line ``start`` on, and may be so until line ``end``."""

    pid: int
    gfn: int
    level: int
    start: int
    end: float = float("inf")
    flushed: bool = False

    def covers(self, gfn: int, line: int) -> bool:
        """Whether who looks for ``gfn`` at this line may find it frozen."""
        size = 9 * (self.level - 1)
        return self.start < line < self.end and self.gfn >> size == gfn >> size


class Freezes:
    """Hears all records of a trace; ``found`` are the freezes of entries that were present."""

    def __init__(self, fmt: SpteFormat) -> None:
        self.found: list[Freeze] = []
        self._format = fmt
        self._flushes_first = fmt.nonpresent != 0
        self._open: dict[int, Freeze] = {}
        self._last: dict[int, int] = {}
        self._flushes: set[int] = set()

    def hear(self, record: Record) -> None:
        """The next record: after its flush a thread has nothing to do with an entry but thaw it."""
        pid, fields = record.pid, record.fields
        if isinstance(fields, SpteChange):
            self._changed(record, fields)
        freeze = self._open.get(pid)
        if isinstance(fields, FunctionCall | Probe) and fields.function.startswith(_FLUSHES):
            self._flushes.add(pid)
            if freeze is not None:
                freeze.flushed = True
            return
        self._flushes.discard(pid)
        self._last[pid] = record.line
        if freeze is not None and freeze.flushed:
            freeze.end = record.line
            del self._open[pid]

    def _changed(self, record: Record, change: SpteChange) -> None:
        """A change; the entries of a removed table are not thawed."""
        fmt, pid = self._format, record.pid
        if not fmt.is_shadow_present(change.old):
            return
        freeze = Freeze(pid, change.gfn, change.level, record.line)
        if self._flushes_first:
            if pid in self._flushes and change.new == fmt.nonpresent:
                freeze.start, freeze.end = self._last.get(pid, 0), record.line
                self.found.append(freeze)
        elif fmt.is_frozen(change.new) and pid not in self._open:
            self._open[pid] = freeze
            self.found.append(freeze)
