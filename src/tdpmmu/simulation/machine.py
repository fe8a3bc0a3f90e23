"""One VM in virtual time: vCPUs, the recovery worker, the host."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tdpmmu.arch.geometry import X86_64
from tdpmmu.arch.spte import spte_format
from tdpmmu.arch.table import Allocate, FreeUnused
from tdpmmu.events.records import Event, PageFreed, PageLinked, SpteChanged
from tdpmmu.machine.op import Op
from tdpmmu.mmu.kvm import Config, Memslot
from tdpmmu.simulation.calls import host, recovery_worker
from tdpmmu.simulation.guest import LEVELS, Guest, Knobs, Workload
from tdpmmu.simulation.kernel import simulated
from tdpmmu.simulation.populate import at_once, map_all
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.tables import ArrayPage, SimKvm
from tdpmmu.simulation.vcpu import StepGuest, WhatFault, run_vcpu
from tdpmmu.versions.registry import named
from tdpmmu.worlds.simulate.clock import Clock
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.thread import SimThread

SAMPLES = 500
"""How many samples of coverage and memory a run takes."""

PAGE = 4096


class Simulation:
    """A guest on a kernel.  Build it, ``run`` it once."""

    def __init__(
        self,
        kernel: str,
        guest: Guest,
        knobs: Knobs,
        costs: Costs,
        workload: Workload,
        seed: int,
        *,
        bulk: bool = True,
    ) -> None:
        """``bulk``: what nobody can see inside of is done at once; the result is the same."""
        cls = named(kernel)
        self.kernel, self.guest, self.knobs, self.costs, self.seed = (
            kernel,
            guest,
            knobs,
            costs,
            seed,
        )
        self._workload = workload
        self.format = spte_format(guest.cpu, cls.spte_kernel)
        level = LEVELS[guest.backing]
        config = Config(
            geometry=X86_64,
            spte_format=self.format,
            threads=guest.vcpus + 2,
            vcpus=guest.vcpus,
            parked=0,
            pools=(0,),
            huge_level=level,
            nx_huge_pages=knobs.nx_huge_pages,
            recovery_ratio=knobs.ratio,
            queued_locks=True,
            slots=(Memslot(0, guest.pages),),
        )
        self.kvm = kvm = SimKvm(config, guest.pages)
        self.mmu = simulated(cls)(kvm)
        self.mmu.knobs = knobs
        self.mmu.small_regions = set()
        self._what = WhatFault(self.format)
        self._begin(level)

    def _begin(self, level: int) -> None:
        """What is there before time begins: roots, and memory if it is mapped."""
        kvm = self.kvm
        for vcpu in kvm.vcpus:
            vcpu.thread = vcpu.number
            at_once(self.mmu.mmu_load(vcpu, 0), kvm)
        memory = kvm.layout.memory()
        cell = kvm.vcpus[0].loaded
        root = kvm.hardware.page_by_number[memory[cell.chunk][cell.offset][0]]
        assert isinstance(root, ArrayPage)
        if self.guest.mapped:
            map_all(self.mmu, kvm, root, level)

    def run(self, until_ns: int, progress: Callable[[int], None] | None = None) -> Result:
        """Go on to that virtual time; ``progress`` is told the time now and then."""
        begun = time.perf_counter()
        self.ledger = ledger = Ledger(max(1, until_ns // SAMPLES))
        self._map_so_far()
        memory = self.kvm.layout.memory()
        clock = Clock(memory, self.costs, ledger, preemption=self.knobs.preemption, hear=self._hear)
        self._price_tables(clock)
        guests = []
        for vcpu in self.kvm.vcpus:
            thread = clock.thread("vcpu")
            guest = StepGuest(self.kvm, vcpu, thread, self.costs, ledger)
            guest.start(self._workload.touches(vcpu.number, self._rng(vcpu.number)))
            guests.append(guest)
        worker, other = clock.thread("recovery"), clock.thread("host")
        clock.on_flush = lambda thread: guests[thread.number].flushed()
        for guest in guests:
            clock.start(guest.thread, run_vcpu(self.mmu, guest, self._what))
        clock.start(worker, recovery_worker(self.mmu, self.knobs))
        events = self._workload.host_events(self._rng(len(guests)))
        clock.start(other, host(self.mmu, events, self.costs))
        for part in range(1, SAMPLES // 5 + 1):
            clock.run(until_ns * part // (SAMPLES // 5))
            if progress is not None:
                progress(until_ns * part // (SAMPLES // 5))
        for thread in clock.threads:
            if thread.body is not None:
                thread.body.close()
        return Result.of(self, ledger, until_ns, time.perf_counter() - begun)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])

    # --- bookkeeping ----------------------------------------------------------------------------

    def _map_so_far(self) -> None:
        """Count what is mapped already."""
        kvm, fmt = self.kvm, self.format
        self.ledger.tables = len(kvm.hardware.page_by_number)
        if self.guest.mapped:
            huge = self.guest.backing != "4K"
            block = kvm.geometry.pages(LEVELS[self.guest.backing])
            whole = self.guest.pages // block * block if huge else 0
            rest = (self.guest.pages - whole) * PAGE
            self.ledger.huge_bytes = whole * PAGE
            if self.guest.backing == "1G":
                self.ledger.huge_bytes += rest
            else:
                self.ledger.small_bytes = rest
        assert fmt is kvm.format

    def _price_tables(self, clock: Clock) -> None:
        """Page table memory is counted as it is taken and given back."""
        ledger = self.ledger

        def allocate(thread: SimThread, op: Op) -> bool:
            ledger.tables += 1
            clock.complete(thread, op.apply(thread.step, 0), self.costs.table_alloc)
            return True

        def free_unused(thread: SimThread, op: Op) -> bool:
            assert isinstance(op, FreeUnused)
            ledger.tables -= 1
            page = op.page
            assert isinstance(page, ArrayPage)
            page.give_back(thread.step)
            clock.complete(thread, None, self.costs.table_free)
            return True

        clock.handlers[Allocate] = allocate
        clock.handlers[FreeUnused] = free_unused

    def _hear(self, thread: SimThread, event: Event) -> None:
        """Every event of every thread."""
        ledger = self.ledger
        ledger.counts[event.__class__.__name__] += 1
        if isinstance(event, SpteChanged):
            self._changed(event)
        elif isinstance(event, PageLinked):
            if event.nx:
                self._what.linked(thread.number)
        elif isinstance(event, PageFreed):
            ledger.tables -= 1

    def _changed(self, event: SpteChanged) -> None:
        fmt, level = self.format, event.level
        was = fmt.is_shadow_present(event.old) and fmt.is_last(event.old, level)
        now = fmt.is_shadow_present(event.new) and fmt.is_last(event.new, level)
        if was != now:
            if was and fmt.is_shadow_present(event.new):
                self._linked(event.new, level - 1)
            size = self.kvm.geometry.pages(level) * PAGE
            change = size if now else -size
            if level == 1:
                self.ledger.small_bytes += change
            else:
                self.ledger.huge_bytes += change
        self._what.changed(event.gfn, level, event.old, event.new)

    def _linked(self, spte: int, level: int) -> None:
        """A table that maps something already has taken its place."""
        page = self.kvm.page_of(spte)
        assert isinstance(page, ArrayPage)
        leaves = int((page.row() != self.format.nonpresent).sum())
        if level == 1:
            self.ledger.small_bytes += leaves * PAGE
        else:
            self.ledger.huge_bytes += leaves * self.kvm.geometry.pages(level) * PAGE
