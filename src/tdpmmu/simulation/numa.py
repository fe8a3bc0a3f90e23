"""What NUMA makes of a VM: page tables and guest memory that are far from who works on them.

A page table is on the node of the thread that allocated it (``mmu_memory_cache``), guest memory is
divided evenly among the nodes, in order, so that a vCPU's own part of it is on its own node.
Whoever marks a page dirty or holds a reference to it writes to the ``struct page`` of the folio's
head: that line goes from CPU to CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdpmmu.arch.table import (
    ClearSpteBits,
    CmpXchgSpte,
    ReadSpte,
    Spte,
    TablePage,
    WriteSpte,
    XchgSpte,
)
from tdpmmu.events.records import FaultFixed, PfnMarkedDirty
from tdpmmu.kernel.mm import GetUserPage
from tdpmmu.machine.op import Emit, Op
from tdpmmu.simulation.tables import ENTRIES
from tdpmmu.simulation.vcpu import StepGuest
from tdpmmu.worlds.simulate.nodes import Nodes
from tdpmmu.worlds.simulate.scan import LINE_SPTES, Scan
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.arch.hardware import VcpuCells
    from tdpmmu.simulation.machine import Simulation
    from tdpmmu.worlds.simulate.clock import Clock, Handler


FAR = (ReadSpte, WriteSpte, XchgSpte, CmpXchgSpte, ClearSpteBits)
"""Accesses to entries; a table that nobody else can see yet is in the cache."""


class Numa:
    """Where everything of one VM is.  Costs are added to those of the clock's own handlers."""

    def __init__(self, run: Simulation, clock: Clock) -> None:
        guest, knobs = run.guest, run.knobs
        cpus = knobs.host_cpus or guest.vcpus
        self.nodes = Nodes(knobs.nodes, cpus, run.costs, knobs.near_wait_ns, knobs.far_wait_ns)
        self.marks = run.mmu.pfn_dirty_at_zap
        self._pages = guest.pages
        self._run = run
        self._clock = clock
        self._tables: dict[int, int] = {}
        self._referenced: dict[int, int] = {}
        self.guests: list[NumaGuest] = []
        for kind in FAR:
            self._dearer(kind, self._spte)
        self._dearer(Emit, self._event)
        self._dearer(GetUserPage, self._takes_reference)

    def _dearer(self, kind: type[Op], more: Handler) -> None:
        """``more`` moves the thread's time on before the operation is done."""
        plain = self._clock.handlers.get(kind, self._clock.plain)

        def handler(thread: SimThread, op: Op) -> bool:
            more(thread, op)
            return plain(thread, op)

        self._clock.handlers[kind] = handler

    # --- where things are -----------------------------------------------------------------------

    def allocated(self, thread: SimThread, page: TablePage) -> None:
        """A page table has been made, where its thread runs."""
        self._tables[page.number] = self.nodes.of(thread)

    def memory_node(self, gfn: int) -> int:
        """Of a page of the guest."""
        return gfn * self.nodes.count // self._pages

    def table_node(self, page: TablePage) -> int:
        """Of a page table; those made before time began are where what they map is."""
        node = self._tables.get(page.number)
        if node is None:
            header = self._run.memory[page.header.chunk][page.header.offset]
            node = self.memory_node(min(header.gfn, self._pages - 1))
        return node

    def folio(self, gfn: int) -> int:
        """The huge page of the host that a page is part of, by its first page."""
        return gfn - gfn % self._run.kvm.memory.block

    def far_spte(self, thread: SimThread, page: TablePage) -> int:
        """What an entry of that table costs more: an eighth of a line from elsewhere."""
        return self.nodes.far(thread, self.table_node(page)) // LINE_SPTES

    def far_ahead(self, thread: SimThread, page: TablePage) -> int:
        """The same of an entry whose line was fetched ahead.

        So many lines are on their way at a time, so one takes longer in proportion (Little's law).
        """
        costs = self._run.costs
        return self.far_spte(thread, page) * costs.spte_ahead // costs.spte_read

    def far_entry(self, thread: SimThread, op: Spte, scan: Scan) -> int:
        """The same of the entry that an operation is about, for who has come to it like this."""
        page: TablePage = op.sptep.page
        far = self.far_ahead if scan.at(op.sptep) else self.far_spte
        return far(thread, page)

    def far_page(self, thread: SimThread, gfn: int) -> int:
        """What the ``struct page`` of a page costs more."""
        return self.nodes.far(thread, self.memory_node(gfn))

    def far_zaps(self, thread: SimThread, base: int, dirty: int, takes: int) -> int | None:
        """What marking so many pages of a last-level table dirty costs more, all at once.

        None: one by one, since they do not all cost the same, or a guest may want the folio's line
        within the time that it ``takes``.
        """
        each = self.far_mark(thread, base) if dirty else 0
        if each is None:
            return None
        until = thread.now + takes + dirty * each
        if dirty and self.marks and any(g.wants(self.folio(base), until) for g in self.guests):
            return None
        return dirty * each

    def far_mark(self, thread: SimThread, base: int) -> int | None:
        """What marking any page of a last-level table dirty costs more.

        None: they do not all cost the same, or the folio's line is somebody else's.
        """
        if not self.marks:
            return 0
        folio, last = self.folio(base), base + ENTRIES - 1
        if self.memory_node(base) != self.memory_node(last) or folio != self.folio(last):
            return None
        return self.far_page(thread, base) if self.nodes.owns(thread, folio) else None

    # --- operations -----------------------------------------------------------------------------

    def _spte(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Spte)
        thread.now += self.far_entry(thread, op, thread.scan)
        return True

    def _event(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, Emit)
        event = op.event
        if isinstance(event, PfnMarkedDirty) and self.marks:
            gfn = self._run.kvm.memory.gfn_of(event.pfn)
            thread.now += self.far_page(thread, gfn)
            thread.now += self.nodes.fetch(thread, self.folio(gfn))
        elif isinstance(event, FaultFixed) and thread.number in self._referenced:
            folio = self._referenced.pop(thread.number)
            thread.now += self.nodes.fetch(thread, folio)
        return True

    def _takes_reference(self, thread: SimThread, op: Op) -> bool:
        """``kvm_release_pfn_clean`` gives it back as the fault is over."""
        assert isinstance(op, GetUserPage)
        folio = self._referenced[thread.number] = self.folio(op.gfn)
        thread.now += self.nodes.fetch(thread, folio)
        return True


class NumaGuest(StepGuest):
    """A guest whose walks go to tables on other nodes."""

    def __init__(self, run: Simulation, vcpu: VcpuCells, thread: SimThread, numa: Numa) -> None:
        super().__init__(run.kvm, vcpu, thread, run.costs, run.ledger)
        self._numa = numa
        numa.guests.append(self)

    def refill(self, level: int) -> int:
        assert self.walked is not None
        return super().refill(level) + self._numa.far_spte(self.thread, self.walked)

    def wants(self, folio: int, until: int) -> bool:
        """Whether it may touch something in that folio by then."""
        at = self.at
        when = self.due if self.thread.guest else self.thread.now
        while when <= until:
            if at >= len(self.gfns):
                return bool(self.gfns)
            if self._numa.folio(self.gfns[at]) == folio:
                return True
            at += 1
            when += self.think[at] if at < len(self.gfns) else 0
        return False
