"""One VM in virtual time: vCPUs, the recovery worker, the host."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tdpmmu.arch.geometry import X86_64
from tdpmmu.arch.spte import spte_format
from tdpmmu.arch.table import Allocate, FreeUnused
from tdpmmu.events.records import Event, PageFreed, PageLinked, PfnMarkedDirty, SpteChanged
from tdpmmu.kernel.mm import GetUserPage, TakeBack
from tdpmmu.machine.op import Op
from tdpmmu.mmu.kvm import Config, Memslot
from tdpmmu.simulation.bulk import BulkOps, bulk_layers
from tdpmmu.simulation.calls import host, recovery_worker
from tdpmmu.simulation.dirty import DirtyBits
from tdpmmu.simulation.guest import LEVELS, Guest, Knobs, Migrate, Workload
from tdpmmu.simulation.herd.herd import Herd
from tdpmmu.simulation.hostpages import HostPages
from tdpmmu.simulation.jiffies import HZ, Jiffies
from tdpmmu.simulation.kernel import HostChange, simulated
from tdpmmu.simulation.memory_caches import MemoryCaches
from tdpmmu.simulation.migration import Migration
from tdpmmu.simulation.numa import Numa, NumaGuest
from tdpmmu.simulation.populate import at_once, map_all
from tdpmmu.simulation.regions import SMALL_HOST, Regions
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.splits import SplitOps
from tdpmmu.simulation.tables import ArrayPage, SimKvm
from tdpmmu.simulation.vcpu import StepGuest, WhatFault, run_vcpu
from tdpmmu.simulation.words import WordOps
from tdpmmu.versions.registry import named
from tdpmmu.worlds.simulate.clock import Clock
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.herding import Herding
from tdpmmu.worlds.simulate.ledger import Ledger
from tdpmmu.worlds.simulate.noise import SECOND, Noise
from tdpmmu.worlds.simulate.thread import SimThread

SAMPLES = 500
"""How many samples of coverage and memory a run takes."""

PAGE = 4096

JIFFIES = 1 << 34
"""The stream of random numbers for the age of the host's clock."""


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
        self.workload = workload
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
        self.kvm = kvm = SimKvm(config, guest.pages, guest.host_present)
        self.memory = kvm.layout.memory()
        self._bulk = bulk
        self.mmu = simulated(cls, *bulk_layers(bulk))(kvm)
        self._free_events = frozenset(() if cls.pfn_dirty_at_zap else (PfnMarkedDirty,))
        self.mmu.knobs = knobs
        self.regions = Regions(guest.pages)
        self.host_pages = HostPages(self.regions, kvm.blocks, kvm.memory.block, level)
        self.mmu.host_pages = self.host_pages
        self.mmu.collapse_ns = costs.host_fault(2)
        self.migration: Migration | None = None
        self.numa: Numa | None = None
        self.hits_until: Callable[[int], int] = lambda end: end
        self.what = WhatFault(self.format, self.regions)
        self.regions.set_all(SMALL_HOST, guest.main_pages, guest.pages - guest.main_pages)
        self._begin(level)

    def _begin(self, level: int) -> None:
        """What is there before time begins: roots, and memory if it is mapped."""
        kvm = self.kvm
        for vcpu in kvm.vcpus:
            vcpu.thread = vcpu.number
            at_once(self.mmu.mmu_load(vcpu, 0), kvm)
            self.memory[vcpu.pml_on.chunk][vcpu.pml_on.offset] = self.knobs.pml
        cell = kvm.vcpus[0].loaded
        root = kvm.hardware.page_by_number[self.memory[cell.chunk][cell.offset][0]]
        assert isinstance(root, ArrayPage)
        if self.guest.mapped:
            map_all(self.mmu, kvm, root, level)

    def run(self, until_ns: int, progress: Callable[[int], None] | None = None) -> Result:
        """Go on to that virtual time; ``progress`` is told the time now and then."""
        begun = time.perf_counter()
        self.ledger = ledger = Ledger(max(1, until_ns // SAMPLES))
        self._map_so_far()
        clock = Clock(
            self.memory,
            self.costs,
            ledger,
            preemption=self.knobs.preemption,
            hear=self._hear,
            free_events=self._free_events,
            host_cpus=self.knobs.host_cpus,
        )
        self._price_memory(clock)
        guests, settle = self._guests(clock)
        worker, other = clock.thread("recovery"), clock.thread("host")
        clock.on_flush = lambda thread: guests[thread.number].flushed()
        Noise(clock, self.costs, self.seed, tick_hz=self.knobs.tick_hz, rare=self.knobs.noise)
        for guest in guests:
            clock.start(guest.thread, run_vcpu(self.mmu, guest, self.what))
        clock.start(worker, recovery_worker(self.mmu, self.knobs, self._jiffies()))
        events = self.workload.host_events(self._rng(len(guests)))
        clock.start(other, host(self.mmu, events, self.costs, self._migrate))
        for part in range(1, SAMPLES // 5 + 1):
            clock.run(until_ns * part // (SAMPLES // 5))
            if clock.stopped:
                break
            if progress is not None:
                progress(until_ns * part // (SAMPLES // 5))
        settle()
        for thread in clock.threads:
            if thread.body is not None:
                thread.body.close()
        return Result.of(self, ledger, clock.until, time.perf_counter() - begun)

    def _guests(self, clock: Clock) -> tuple[list[StepGuest], Callable[[], None]]:
        """The vCPUs' guests, and what has to be counted at the end."""
        kvm, costs, ledger = self.kvm, self.costs, self.ledger
        self.numa = Numa(self, clock) if self.knobs.nodes else None
        BulkOps(self, clock)
        WordOps(self, clock)
        SplitOps(self, clock)
        self.dirty = DirtyBits(clock, self.guest.pages)
        # With NUMA each walk and each fault has a price of its own.
        herd = Herd(self, clock) if self._bulk and self.numa is None else None
        if herd is not None:
            self.hits_until = herd.hits_until
            clock.herding = Herding(clock, herd)
        guests: list[StepGuest] = []
        for vcpu in kvm.vcpus:
            thread = clock.thread("vcpu")
            if self.numa is not None:
                guests.append(NumaGuest(self, vcpu, thread, self.numa))
            elif herd is not None:
                guests.append(herd.guest(vcpu.number, thread))
            else:
                guests.append(StepGuest(kvm, vcpu, thread, costs, ledger))
            guests[-1].start(self.workload.touches(vcpu.number, self._rng(vcpu.number)))
        return guests, herd.settle if herd is not None else lambda: None

    async def _migrate(self, plan: Migrate) -> None:
        migration = self.migration = Migration(plan)
        ioctl = self.costs.ioctl
        await migration.run(self.mmu, self.guest.pages, lambda: self.dirty.taken, ioctl)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])

    def _jiffies(self) -> Jiffies:
        """Nobody knows where the timer wheel is when a VM starts."""
        hz = self.knobs.tick_hz or HZ
        return Jiffies(hz, int(self._rng(JIFFIES).integers(3600 * SECOND)))

    # --- host memory ----------------------------------------------------------------------------

    def pfn(self, gfn: int) -> int:
        """The frame behind a gfn now."""
        return self.kvm.memory.pfn(gfn, self.kvm.blocks.generation(gfn))

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

    def _price_memory(self, clock: Clock) -> None:
        """Page table memory is counted as it is taken and given back."""
        ledger, blocks = self.ledger, self.kvm.blocks
        self.caches = MemoryCaches(clock, self.costs, self.guest.vcpus, self.seed)

        def allocate(thread: SimThread, op: Op) -> bool:
            ledger.tables += 1
            page = op.apply(thread.step, 0)
            if self.numa is not None:
                self.numa.allocated(thread, page)
            clock.complete(thread, page, self.caches.take(thread))
            return True

        def free_unused(thread: SimThread, op: Op) -> bool:
            assert isinstance(op, FreeUnused)
            ledger.tables -= 1
            page = op.page
            assert isinstance(page, ArrayPage)
            page.give_back(thread.step)
            clock.complete(thread, None, self.costs.table_free)
            return True

        def get_user_page(thread: SimThread, op: Op) -> bool:
            assert isinstance(op, GetUserPage)
            price = self.costs.get_user_page
            if made := self.host_pages.fault_in(op.gfn):
                price += self.costs.host_fault(made)
            clock.complete(thread, op.apply(thread.step, 0), price)
            return True

        def take_back(thread: SimThread, op: Op) -> bool:
            assert isinstance(op, TakeBack)
            blocks.set_absent(op.gfn, True)
            op.apply(thread.step, 0)
            clock.complete(thread, None, 0)
            return True

        def host_change(thread: SimThread, op: Op) -> bool:
            op.apply(thread.step, 0)
            clock.complete(thread, None, 0)
            return True

        clock.handlers[GetUserPage] = get_user_page
        clock.handlers[HostChange] = host_change
        clock.handlers[TakeBack] = take_back
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
                self.what.linked(thread.number)
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
        self.what.changed(event.gfn, level, event.old, event.new)

    def _linked(self, spte: int, level: int) -> None:
        """A table that maps something already has taken its place."""
        page = self.kvm.page_of(spte)
        assert isinstance(page, ArrayPage)
        leaves = int((page.row() != self.format.nonpresent).sum())
        if level == 1:
            self.ledger.small_bytes += leaves * PAGE
        else:
            self.ledger.huge_bytes += leaves * self.kvm.geometry.pages(level) * PAGE
