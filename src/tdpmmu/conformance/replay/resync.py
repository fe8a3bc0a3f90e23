"""After a divergence the model's entries are made to be the kernel's, so that the rest can agree.

Entries only: lists and logs of the model stay as they are, so one mistake may show again.
"""

from __future__ import annotations

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.arch.table import Header, TablePage
from tdpmmu.conformance.replay.names import Names
from tdpmmu.conformance.replay.order import Order
from tdpmmu.kernel.locks import Release, RwLock, SpinRelease
from tdpmmu.kernel.rcu import ReadUnlock
from tdpmmu.machine.op import USED, Step
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.kvm import Kvm
from tdpmmu.trace.fields import SpteChange


def let_go_of_locks(kvm: Kvm, step: Step) -> None:
    """Whatever the thread of this step holds is given back."""
    for lock in kvm.layout.locks:
        if isinstance(lock, RwLock):
            if lock.held_write(step):
                Release(lock, "write").apply(step, 0)
            if lock.held_read(step):
                Release(lock, "read").apply(step, 0)
        elif lock.held_write(step):
            SpinRelease(lock).apply(step, 0)
    for rcu in (kvm.rcu, kvm.srcu):
        while rcu.reading(step):
            ReadUnlock(rcu).apply(step, 0)


class Resync:
    """Writes what a call of the kernel did whose counterpart was given up."""

    def __init__(self, kvm: Kvm, fmt: SpteFormat, names: Names, order: Order) -> None:
        self._kvm = kvm
        self._format = fmt
        self._names = names
        self._order = order
        self._memory = kvm.layout.memory()

    def impose(self, change: SpteChange) -> None:
        """One change; nothing, if the model has no table there."""
        fmt = self._format
        cells = list(self._order.cells(change.as_id, change.gfn, change.level))
        cell = next(
            (one for one in cells if self._order.holds(one, change.old, change.level)), None
        )
        if cell is None:
            if not cells:
                return
            cell = cells[0]
        new = change.new
        if fmt.is_shadow_present(new) and not fmt.is_last(new, change.level):
            known = self._names.translate(new, change.level)
            if known is None:
                page = self._table(change, cell)
                known = fmt.nonleaf(page.pfn)
                self._names.same(new, known, change.level, bind=True)
            new = known
        elif fmt.is_shadow_present(change.old) and not fmt.is_last(change.old, change.level):
            self._names.unlinked(change.old, change.level)
        self._memory[cell.chunk][cell.offset] = new

    def _table(self, change: SpteChange, parent: Cell) -> TablePage:
        """A table where the kernel has linked one; that of a split has its children."""
        kvm, fmt = self._kvm, self._format
        above: Header = self._value(parent.page.header)
        page = next(iter(kvm.pools[0]))
        level = change.level - 1
        header = Header(
            change.gfn, level, level, change.as_id, above.root, True, parent, above.guest_mode
        )
        self._memory[page.state.chunk][page.state.offset] = USED
        self._memory[page.header.chunk][page.header.offset] = header
        if fmt.is_shadow_present(change.old):
            for index, cell in enumerate(page.entries):
                offset = index * kvm.geometry.pages(level)
                child = fmt.split_child(change.old, level, offset)
                self._memory[cell.chunk][cell.offset] = child
        return page

    def _value(self, cell: Cell) -> Header:
        found: Header = self._memory[cell.chunk][cell.offset]
        return found
