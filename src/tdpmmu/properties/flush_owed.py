"""The discipline of flushes: none is owed when a lock, or RCU, is let go."""

from __future__ import annotations

from typing import Any, ClassVar

from tdpmmu.arch.backing import backed
from tdpmmu.arch.hardware import Entry
from tdpmmu.arch.spte import SpteFormat
from tdpmmu.events.records import (
    Event,
    FlushDeferred,
    FlushLost,
    FlushRequested,
    LockReleased,
    SpteChanged,
    VcpuFlushed,
)
from tdpmmu.machine.ghost import DISCIPLINE, HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property
from tdpmmu.properties.rules import FLUSH_OWED, takes_nothing
from tdpmmu.properties.view import by_address, tell

Debt = tuple[int, int, Entry]
"""The thread that zapped an entry, a vCPU that may still use it, and the entry."""


def _allowed(spte_format: SpteFormat, held: int, old: int) -> bool:
    """Whether an SPTE gave what is held; if it had lost that before, somebody else owes for it."""
    old = spte_format.granted(old)
    return spte_format.is_writable(held) <= spte_format.is_writable(
        old
    ) and spte_format.is_executable(held) <= spte_format.is_executable(old)


def _same_way(spte_format: SpteFormat, entry: Entry, event: SpteChanged) -> bool:
    """Whether a held entry leads where an SPTE of a shadow page led."""
    return (
        entry[2] == event.level
        and spte_format.pfn(entry[3]) == spte_format.pfn(event.old)
        and spte_format.is_last(entry[3], entry[2]) == spte_format.is_last(event.old, event.level)
        and _allowed(spte_format, entry[3], event.old)
    )


class _Owed(Property):
    """Keeps the debts: entries zapped by a thread that some vCPU may still hold.

    A debt is a fact about TLBs, not the value of the C variable ``flush``.  Roots that are being
    torn down owe nothing: nobody can load them again without a flush.
    """

    initial: ClassVar[object] = frozenset()

    def _owed_kind(self, level: int, spte: int) -> bool:
        """Whether entries of this kind count."""
        return True

    def _zapped(self, step: Step, event: SpteChanged) -> None:
        hardware = self.hardware
        spte_format = hardware.format
        if not spte_format.is_shadow_present(event.old):
            return
        root = hardware.page_by_number.get(event.root)
        if root is not None and step[root.invalid]:
            return
        leaf = spte_format.is_last(event.old, event.level)
        if not self._owed_kind(event.level, event.old):
            return
        if (
            leaf
            and spte_format.is_last(event.new, event.level)
            and takes_nothing(spte_format, event.old, event.new)
        ):
            return
        end = event.gfn + hardware.geometry.pages(event.level)
        debts: set[Debt] = set()
        for vcpu in hardware.vcpus:
            if not hardware.may_be_below(step, vcpu, event.root):
                continue
            for entry in hardware.usable(step, vcpu):
                if event.root < 0:
                    # Of a shadow page nobody knows all addresses: the entry has to look the same.
                    if _same_way(spte_format, entry, event):
                        debts.add((step.thread, vcpu.number, entry))
                    continue
                if entry[0] != event.root:
                    continue
                if not leaf:
                    if entry[1:] == (event.gfn, event.level, event.old):
                        debts.add((step.thread, vcpu.number, entry))
                elif (
                    spte_format.is_last(entry[3], entry[2])
                    and _allowed(spte_format, entry[3], event.old)
                    and entry[1] < end
                    and event.gfn < entry[1] + hardware.geometry.pages(entry[2])
                ):
                    debts.add((step.thread, vcpu.number, entry))
        # What the change itself keeps backed, as splitting a huge page does, owes nothing.
        owed = frozenset(debt for debt in debts if not self._backed(step, debt[2]))
        if owed:
            assert self.cell is not None
            step[self.cell] = step[self.cell] | owed

    def _backed(self, step: Step, entry: Entry) -> bool:
        return backed(self.hardware, step, entry, logged=True)

    def _flushed(self, step: Step, number: int) -> None:
        """A vCPU was asked to flush, or did: what it can no longer use is owed no more."""
        assert self.cell is not None
        debts: frozenset[Debt] = step[self.cell]
        if any(debt[1] == number for debt in debts):
            usable = set(self.hardware.usable(step, self.hardware.vcpus[number]))
            step[self.cell] = frozenset(d for d in debts if d[1] != number or d[2] in usable)

    def _due(self, step: Step) -> Entry | None:
        """A debt of the running thread that nothing backs and no flush has covered; all are
        dropped.
        """
        assert self.cell is not None
        debts: frozenset[Debt] = step[self.cell]
        mine = sorted(debt for debt in debts if debt[0] == step.thread)
        if not mine:
            return None
        step[self.cell] = debts.difference(mine)
        for _, number, entry in mine:
            usable = self.hardware.usable(step, self.hardware.vcpus[number])
            if entry in usable and not self._backed(step, entry):
                return entry
        return None


class FlushOwed(_Owed):
    """``mmu_lock`` is not released while the thread owes a flush for what it zapped."""

    name: ClassVar[str] = FLUSH_OWED.name
    kind: ClassVar[str] = DISCIPLINE
    meaning: ClassVar[str] = FLUSH_OWED.meaning
    hears: ClassVar[tuple[type[Event], ...]] = (
        SpteChanged,
        LockReleased,
        FlushDeferred,
        FlushRequested,
        VcpuFlushed,
    )

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, SpteChanged):
            self._zapped(step, event)
        elif isinstance(event, FlushDeferred):
            self._deferred(step)
        elif isinstance(event, LockReleased):
            if event.lock == "mmu_lock":
                entry = self._due(step)
                if entry is not None:
                    step.violate(
                        self,
                        f"mmu_lock is released while a vCPU may still use "
                        f"{tell(self.hardware, entry)}, which nothing backs any more",
                    )
        elif isinstance(event, (FlushRequested, VcpuFlushed)):
            self._flushed(step, event.vcpu)

    def _deferred(self, step: Step) -> None:
        """What the thread owes for a shadow page others will see to."""
        assert self.cell is not None
        step[self.cell] = frozenset(
            debt
            for debt in step[self.cell]
            if debt[0] != step.thread or not by_address(self.hardware, step, debt[2][0])
        )


class FlushBeforeRcuUnlock(_Owed):
    """From 5.18 removed tables are flushed before the RCU section that protects them ends."""

    name: ClassVar[str] = "flush-before-rcu-unlock"
    kind: ClassVar[str] = DISCIPLINE
    meaning: ClassVar[str] = "rcu_read_unlock with the flush for a removed page table owed"
    hears: ClassVar[tuple[type[Event], ...]] = (
        SpteChanged,
        LockReleased,
        FlushRequested,
        VcpuFlushed,
    )

    def _owed_kind(self, level: int, spte: int) -> bool:
        return not self.hardware.format.is_last(spte, level)

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, SpteChanged):
            self._zapped(step, event)
        elif isinstance(event, LockReleased):
            rcu: Any = self.locks["rcu"]
            if event.lock == "rcu" and step[rcu.nesting][step.thread] == 1:
                entry = self._due(step)
                if entry is not None:
                    step.violate(
                        self,
                        f"rcu_read_unlock while a vCPU may still walk {tell(self.hardware, entry)}",
                    )
        elif isinstance(event, (FlushRequested, VcpuFlushed)):
            self._flushed(step, event.vcpu)


class FlushRequestLost(Property):
    """A vCPU that was asked to flush while outside the guest does so before it enters."""

    name: ClassVar[str] = "flush-request-lost"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a vCPU enters the guest without the flush it was asked for"
    hears: ClassVar[tuple[type[Event], ...]] = (FlushLost,)

    def observe(self, step: Step, event: Event) -> None:
        if isinstance(event, FlushLost):
            step.violate(
                self, f"vCPU{event.vcpu} enters the guest without a flush it was asked for"
            )
