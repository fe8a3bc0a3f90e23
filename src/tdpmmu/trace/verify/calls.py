"""What the function tracer's lines, and probes on functions and their returns, tell."""

from __future__ import annotations

from typing import Any

from tdpmmu.trace.fields import FunctionCall, Probe, ProbeReturn
from tdpmmu.trace.records import Record
from tdpmmu.trace.verify.coverage import FLUSH_ALL, FLUSH_RANGE, Facts
from tdpmmu.trace.verify.flushes import Flushes
from tdpmmu.trace.verify.pages import Pages
from tdpmmu.trace.verify.threads import CONTEXTS, UNKNOWN, Thread

_FREE = "tdp_mmu_free_sp_rcu_callback"
_INVALIDATE = frozenset({"kvm_tdp_mmu_invalidate_all_roots", "kvm_mmu_zap_all_fast"})

Arguments = dict[str, Any]


class Calls:
    """Hands on what functions of the kernel do.  ``kvms`` are the VMs whose pointers were seen."""

    def __init__(self, facts: Facts, flushes: Flushes, pages: Pages) -> None:
        self._facts = facts
        self._flushes = flushes
        self._pages = pages
        self.kvms: set[int] = set()

    def take(self, record: Record, thread: Thread, complete: bool) -> None:
        """A record that is no event of KVM's, or one that means nothing here.

        ``complete``: no thread's change is held back.
        """
        fields = record.fields
        if isinstance(fields, FunctionCall):
            self._called(record, thread, fields.function, {}, complete)
        elif isinstance(fields, Probe):
            self._facts.probed.add(fields.function)
            self._called(record, thread, fields.function, fields.arguments, complete)
        elif isinstance(fields, ProbeReturn):
            value = _number(fields.arguments, "ret")
            if value is None:
                pass
            elif fields.function == "tdp_mmu_zap_leafs":
                self._flushes.leafs_return(thread, value != 0)
                thread.context = UNKNOWN
            elif fields.function == "kvm_tdp_mmu_unmap_gfn_range" and complete:
                self._pages.unmapped(thread, record)

    def in_interrupt(self, record: Record, complete: bool) -> None:
        """An interrupt runs on top of any thread: frees after a grace period."""
        fields = record.fields
        if isinstance(fields, FunctionCall | Probe) and fields.function == _FREE:
            arguments = fields.arguments if isinstance(fields, Probe) else {}
            self._freed(record, arguments, complete)

    def _called(
        self, record: Record, thread: Thread, name: str, arguments: Arguments, complete: bool
    ) -> None:
        """``arguments`` are known from probes only."""
        name = name.partition(".")[0]  # gcc adds .isra.0 and the like
        facts = self._facts
        facts.called.add(name)
        context = CONTEXTS.get(name)
        kvm = _number(arguments, "kvm")
        if kvm is not None:
            self.kvms.add(kvm)
            if name not in FLUSH_ALL | FLUSH_RANGE:
                thread.kvm = kvm  # until it says otherwise: an mmu_notifier serves any VM
        if context is not None:
            thread.context = context
            sp = _number(arguments, "sp")
            if sp is not None:
                thread.zap_sp = sp
            elif name == "kvm_tdp_mmu_zap_all" and thread.torn is None:
                thread.torn = record
        elif name in FLUSH_ALL:
            if kvm is None and name in facts.probed:
                return  # the function tracer's line for the same call
            if thread.kvm is None and thread.unmap is None:
                thread.kvm = kvm
            self._flushes.flushed(thread, kvm)
        elif name in FLUSH_RANGE:
            self._flushed_range(thread, name, kvm, arguments)
        elif name == _FREE:
            self._freed(record, arguments, complete)
        elif name == "kvm_tdp_mmu_unmap_gfn_range":
            start, end = _number(arguments, "start"), _number(arguments, "end")
            if start is not None and end is not None:
                thread.unmap = record, start, end
        elif name in _INVALIDATE:
            self._flushes.invalidated = True

    def _flushed_range(
        self, thread: Thread, name: str, kvm: int | None, arguments: Arguments
    ) -> None:
        start, pages = _number(arguments, "gfn"), _number(arguments, "nr_pages", "pages")
        if start is not None and pages is not None:
            self._flushes.flushed(thread, kvm, start, start + pages)
        elif name not in self._facts.probed:
            self._flushes.flushed(thread, kvm)

    def _freed(self, record: Record, arguments: Arguments, complete: bool) -> None:
        head = _number(arguments, "head")
        self._pages.freed(record, head, complete)
        if head is not None:
            self._flushes.freed(head, record)


def _number(arguments: Arguments, *names: str) -> int | None:
    """The first of these arguments that is a number."""
    for name in names:
        value = arguments.get(name)
        if isinstance(value, int):
            return value
    return None
