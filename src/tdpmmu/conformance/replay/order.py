"""Events follow their writes: whose write comes first is seen by chaining old values to new.

A thread may be interrupted between its write of an entry and the tracepoint.  If another thread's
event then says that it has found what the first one wrote, the first one's write goes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.conformance.replay.calls import Armed, Call, Kind, Seen
from tdpmmu.conformance.replay.names import Names
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.kvm import Kvm
from tdpmmu.trace.fields import FastPageFault, SpteChange


class Order:
    """The calls that have begun in the kernel and are not over, and what each has yet to trace.

    ``go_on`` takes a call to its next tracepoint, and says if it was not there already.
    """

    def __init__(
        self, kvm: Kvm, fmt: SpteFormat, names: Names, go_on: Callable[[Call], bool]
    ) -> None:
        self.chained = 0
        self.by_hardware = 0
        self._kvm = kvm
        self._memory = kvm.layout.memory()
        self._format = fmt
        self._names = names
        self._go_on = go_on
        self._begun: dict[Call, int] = {}

    def begins(self, call: Call) -> None:
        """The kernel's call has begun."""
        self._begun[call] = 0

    def ends(self, call: Call) -> None:
        """It is over."""
        self._begun.pop(call, None)

    def compared(self, call: Call) -> None:
        """Its next event has had its turn."""
        if call in self._begun:
            self._begun[call] += 1

    def before(self, call: Call, seen: Seen) -> None:
        """Let the writes go first that ``seen`` shows."""
        if isinstance(seen, SpteChange):
            self._find(call, seen.as_id, seen.gfn, seen.level, seen.old)
        elif isinstance(seen, FastPageFault):
            self._find(call, call.as_id, seen.address >> 12, 1, seen.old)
        elif isinstance(seen, Armed):
            self.marked(call, seen)

    def before_all(self, call: Call) -> None:
        """The same for a call that reads the dirty log at once."""
        if call.kind in (Kind.GET_LOG, Kind.CLEAR_LOG):
            for _, seen in call.seen:
                if isinstance(seen, Armed):
                    self.marked(call, seen)

    def marked(self, call: Call, seen: Armed) -> None:
        """Bits of the dirty log are set by faults, after their write and before they trace it."""
        marked = self._value(self._kvm.dirty_bitmap[0])
        for gfn in seen.gfns:
            if gfn not in marked:
                for other in self._others(call):
                    pending = self._next(other)
                    fixes = isinstance(pending, FastPageFault) and pending.address >> 12 == gfn
                    maps = isinstance(pending, SpteChange) and pending.gfn == gfn
                    if fixes or maps:
                        self._let_go(other)

    def _find(self, call: Call, as_id: int, gfn: int, level: int, old: int) -> None:
        """Somebody else must have written ``old`` if the entry does not hold it."""
        cells = list(self.cells(as_id, gfn, level))
        if len(cells) == 1:
            self._set_by_hardware(cells[0], old, level)
        if not cells or any(self.holds(cell, old, level) for cell in cells):
            return
        for other in self._others(call):
            seen = self._next(other)
            if isinstance(seen, FastPageFault):
                same = level == 1 and seen.address >> 12 == gfn
                new = seen.old | self._format.writable
            elif isinstance(seen, SpteChange):
                same = (seen.as_id, seen.gfn, seen.level) == (as_id, gfn, level)
                new = seen.new
            else:
                continue
            found = any(self.holds(cell, seen.old, level) for cell in cells)
            if same and found and self._differ(new, old) == 0:
                self._let_go(other)
                return

    def _set_by_hardware(self, cell: Cell, old: int, level: int) -> None:
        """Accessed and dirty bits are there before anybody finds them."""
        now = self._value(cell)
        difference = self._names.same(old, now, level, bind=False)
        bits = self._format.accessed | self._format.dirty
        present = self._format.is_shadow_present(now)
        if present and difference and not difference & ~bits and not difference & now:
            self._memory[cell.chunk][cell.offset] = now | difference
            self.by_hardware += 1

    def _let_go(self, call: Call) -> None:
        self.chained += self._go_on(call)

    def _others(self, call: Call) -> list[Call]:
        return [other for other in self._begun if other is not call]

    def _next(self, call: Call) -> Seen | None:
        at = self._begun[call]
        return call.seen[at][1] if at < len(call.seen) else None

    def _differ(self, one: int, other: int) -> int:
        return (one ^ other) & ~(self._format.accessed | self._format.dirty)

    def holds(self, cell: Cell, old: int, level: int) -> bool:
        """Whether an entry has this value of the kernel's, but for accessed and dirty bits."""
        difference = self._names.same(old, self._value(cell), level, bind=False)
        return difference is not None and self._differ(difference, 0) == 0

    def cells(self, as_id: int, gfn: int, level: int) -> Iterator[Cell]:
        """The entries for a gfn at a level, in every root of an address space."""
        kvm, fmt = self._kvm, self._format
        for root in self._value(kvm.tdp_mmu_roots):
            if self._value(root.header).as_id != as_id:
                continue
            page, at = root, kvm.geometry.levels
            while at > level:
                spte = self._value(page.entries[kvm.geometry.index(gfn, at)])
                if not fmt.is_shadow_present(spte) or fmt.is_last(spte, at):
                    break
                page, at = kvm.page_of(spte), at - 1
            else:
                yield page.entries[kvm.geometry.index(gfn, level)]

    def _value(self, cell: Cell) -> Any:
        return self._memory[cell.chunk][cell.offset]
