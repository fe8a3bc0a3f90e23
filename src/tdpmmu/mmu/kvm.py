"""``struct kvm``: the VM's locks, lists, page table pages and vCPUs.

This is the memory that MMU code of any version works on; it has no behaviour of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tdpmmu.arch.geometry import Geometry
from tdpmmu.arch.guest import GuestTables
from tdpmmu.arch.hardware import Hardware, VcpuCells
from tdpmmu.arch.spte import SpteFormat
from tdpmmu.arch.table import Pool, TablePage
from tdpmmu.kernel.locks import (
    RwLock,
    SpinLock,
    Unchanged,
    UnderEitherMode,
    UnderSpin,
    UnderSpinOrWrite,
    UnderWriteLock,
    Visitors,
)
from tdpmmu.kernel.mm import HostMemory
from tdpmmu.kernel.rcu import Rcu
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import Cell, Guard, Layout
from tdpmmu.mmu.ring import make_rings

NO_RANGE = (0, 0)


class ByGfn(Protocol):
    """Cells by gfn: a tuple, or made as they are asked for."""

    def __getitem__(self, gfn: int, /) -> Cell: ...


@dataclass(frozen=True, slots=True)
class Memslot:
    """``struct kvm_memory_slot``: gfns ``[base_gfn, base_gfn + npages)`` of one address space.

    ``hva`` is the host page behind ``base_gfn``; ``log`` says ``KVM_MEM_LOG_DIRTY_PAGES``.
    """

    base_gfn: int
    npages: int
    as_id: int = 0
    hva: int = 0
    log: bool = False
    readonly: bool = False
    invalid: bool = False

    def covers(self, gfn: int) -> bool:
        """Whether a gfn lies in it."""
        return self.base_gfn <= gfn < self.end

    @property
    def end(self) -> int:
        """One past the last gfn."""
        return self.base_gfn + self.npages


@dataclass(frozen=True, slots=True)
class Memslots:
    """``struct kvm_memslots`` of one address space.

    ``generation`` counts by two; an odd one is that of an update in progress.
    """

    generation: int
    slots: tuple[Memslot, ...]

    def find(self, gfn: int) -> Memslot | None:
        """``__gfn_to_memslot``."""
        return next((slot for slot in self.slots if slot.covers(gfn)), None)

    def overlap(self, new: Memslot, old: Memslot | None = None) -> bool:
        """``kvm_check_memslot_overlap``: ``new``, in the place of ``old``, meets another slot."""
        return any(
            slot.base_gfn < new.end and new.base_gfn < slot.end
            for slot in self.slots
            if slot != old
        )


@dataclass(frozen=True, slots=True)
class Config:
    """What a VM is made of.

    ``pools``: page table pages that each thread may allocate, the thread that builds the first
    state last.  ``huge_level``: the level of the host's mapping of guest memory (2: 2 MiB pages).
    ``ranged_flush``: TLB flushes of a range are honoured (Hyper-V) instead of flushing everything.
    ``slots``: the memslots of both address spaces; without any, one maps everything in each.
    ``options``: further properties of the VM, by the name under which a feature looks for them.
    ``lockless_nx_flag``: the kernel looks at ``nx_huge_page_disallowed`` without a lock (6.2 on).
    ``shadow_pages``: the VM can have shadow pages.  ``guest_tables``: the guest's page tables, each
    its gfn and its entries.  ``mmu_pages``: how many shadow pages it may have, 0 for no limit.
    """

    geometry: Geometry
    spte_format: SpteFormat
    threads: int
    vcpus: int
    parked: int
    pools: tuple[int, ...]
    huge_level: int = 2
    ranged_flush: bool = False
    nx_huge_pages: bool = True
    recovery_ratio: int = 1
    queued_locks: bool = False
    lockless_nx_flag: bool = False
    slots: tuple[Memslot, ...] | None = None
    options: frozenset[str] = frozenset()
    shadow_pages: bool = False
    guest_tables: tuple[tuple[int, tuple[int, ...]], ...] = ()
    mmu_pages: int = 0


class Kvm:
    """The shared state of one VM."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.geometry = config.geometry
        self.format = config.spte_format
        self.layout = layout = Layout()
        self.hardware = self.make_hardware()
        self.layout.assumptions.append(self.hardware.entry_protocol)

        # A chunk for each, so that a turn depends on no more than it looks at.
        self.mmu_lock = RwLock(
            layout, "mmu_lock", chunk=layout.chunk("mmu_lock"), queued=config.queued_locks
        )
        self.tdp_mmu_pages_lock = SpinLock(
            layout, "tdp_mmu_pages_lock", chunk=layout.chunk("tdp_mmu_pages_lock")
        )
        self.rcu = Rcu(layout, "rcu", config.threads, chunk=layout.chunk("rcu"))
        self.srcu = Rcu(layout, "srcu", config.threads, chunk=layout.chunk("srcu"), sleepable=True)

        self.alive = layout.cell("threads alive", 0)
        write = UnderWriteLock(self.mmu_lock)
        pages_lock = UnderSpinOrWrite(self.mmu_lock, self.tdp_mmu_pages_lock)
        self.tdp_mmu_roots = layout.cell(
            "tdp_mmu_roots",
            (),
            guard=UnderSpinOrWrite(
                self.mmu_lock, self.tdp_mmu_pages_lock, lockless_reads=True, alive=self.alive
            ),
        )
        self.tdp_mmu_pages = layout.cell("tdp_mmu_pages", frozenset(), guard=pages_lock)
        self.active_mmu_pages = layout.cell("active_mmu_pages", (), guard=write)
        self.lpage_disallowed_mmu_pages = layout.cell(
            "lpage_disallowed_mmu_pages", (), guard=pages_lock
        )
        nx_flag = UnderSpinOrWrite(
            self.mmu_lock, self.tdp_mmu_pages_lock, lockless_reads=config.lockless_nx_flag
        )
        self.possible_nx_tdp_pages = layout.cell(
            "possible_nx_huge_pages[TDP].list", (), guard=pages_lock
        )
        self.nr_possible_nx_tdp = layout.cell(
            "possible_nx_huge_pages[TDP].nr_pages",
            0,
            guard=UnderSpinOrWrite(self.mmu_lock, self.tdp_mmu_pages_lock, lockless_reads=True),
        )
        self.nx_lpage_splits = layout.cell("nx_lpage_splits", 0, guard=pages_lock)
        self.mmu_notifier_count = layout.cell("mmu_notifier_count", 0, guard=write)
        self.mmu_notifier_range = layout.cell("mmu_notifier_range", NO_RANGE, guard=write)
        self.mmu_notifier_seq = layout.cell(
            "mmu_notifier_seq",
            0,
            guard=UnderWriteLock(self.mmu_lock, lockless_reads=True),
        )
        self.memslots_change = Unchanged("memslots do not change")
        slots = config.slots
        if slots is None:
            slots = tuple(Memslot(0, config.geometry.max_gfn, as_id) for as_id in (0, 1))
        self.memslots = tuple(
            layout.cell(
                f"memslots[{as_id}]",
                Memslots(2, tuple(slot for slot in slots if slot.as_id == as_id)),
                guard=self.memslots_change,
            )
            for as_id in (0, 1)
        )
        self.dirty_bitmap = tuple(
            layout.cell(f"dirty_bitmap[{as_id}]", frozenset()) for as_id in (0, 1)
        )
        self.tracking_change: Guard = Unchanged("write tracking does not change")
        if config.shadow_pages:
            self.tracking_change = UnderWriteLock(self.mmu_lock, lockless_reads=True)
        self.write_tracked = tuple(
            layout.cell(f"gfn_write_track[{as_id}]", (), guard=self.tracking_change)
            for as_id in (0, 1)
        )
        self.attributes_change = Unchanged("memory attributes do not change")
        self.private_gfns = layout.cell("mem_attr_array", frozenset(), guard=self.attributes_change)
        self.mixed_regions = layout.cell(
            "lpage_info mixed", frozenset(), guard=self.attributes_change
        )
        worker = layout.chunk("nx recovery worker")
        self.nx_recovery_period = layout.cell("nx_huge_pages_recovery_period_ms", 0, chunk=worker)
        self.nx_worker_created = layout.cell("nx_huge_page_recovery_thread", False, chunk=worker)
        self.nx_worker_woken = layout.cell("worker woken", False, chunk=worker)
        self.slots_lock = SpinLock(layout, "slots_lock", chunk=layout.chunk("slots_lock"))
        self.mn_invalidate_lock = SpinLock(
            layout, "mn_invalidate_lock", chunk=layout.chunk("mn_invalidate_lock")
        )
        self.mn_active_invalidate_count = layout.cell(
            "mn_active_invalidate_count", 0, guard=UnderSpin(self.mn_invalidate_lock)
        )
        max_gfn = config.geometry.max_gfn
        self.rmap = self.make_lists("rmap", max_gfn, write)
        self.mmu_page_hash = self.make_lists(
            "mmu_page_hash", max_gfn if config.shadow_pages else 0, write
        )
        self.tlbs_dirty = layout.cell("tlbs_dirty", 0)
        self.n_used_mmu_pages = layout.cell("n_used_mmu_pages", 0, guard=write)
        self.mmu_unsync_pages_lock = SpinLock(
            layout, "mmu_unsync_pages_lock", chunk=layout.chunk("mmu_unsync_pages_lock")
        )
        unsync = UnderSpinOrWrite(self.mmu_lock, self.mmu_unsync_pages_lock, lockless_reads=True)
        self.guest = GuestTables(layout, config.geometry, dict(config.guest_tables))
        self.hardware.guest = self.guest

        self.memory = self.make_memory()
        self.hardware.frame_gfn = self.memory.gfn_of
        self.vcpus: list[VcpuCells] = [
            self.hardware.add_vcpu(layout, parked=n >= config.vcpus)
            for n in range(config.vcpus + config.parked)
        ]
        self.dirty_rings = make_rings(layout, self.vcpus, config.options)
        # The order is the world's; parked ones first leaves fewer moments to tell apart.
        self.vcpus_to_ask = (*self.vcpus[config.vcpus :], *self.vcpus[: config.vcpus])
        self.pages: list[TablePage] = []
        self.visitors: list[Visitors] = []
        self._page_guards: dict[str, Any] = {
            "flags": nx_flag,
            "refcount": UnderEitherMode(self.mmu_lock, Visitors("root counts", self.alive)),
            "invalid": UnderWriteLock(self.mmu_lock, lockless_reads=True),
            "parents": write,
            "unsync": unsync if config.shadow_pages else None,
        }
        self.pools = [self.make_pool(number, size) for number, size in enumerate(config.pools)]
        self.hardware.protects = self._pages_cannot_be_freed
        self.hardware.exclusive = self.mmu_lock.held_write
        self.rcu.nobody_calls = self.mmu_lock.held_write
        self.rcu.may_call = self.mmu_lock.held

    def make_hardware(self) -> Hardware:
        """The CPUs that run its vCPUs."""
        return Hardware(self.config.geometry, self.config.spte_format)

    def make_lists(self, name: str, gfns: int, guard: Guard) -> ByGfn:
        """A list for each gfn, all in one chunk."""
        chunk = self.layout.chunk(name)
        return tuple(
            self.layout.cell(f"{name}[{gfn:#x}]", (), chunk=chunk, guard=guard)
            for gfn in range(gfns)
        )

    def make_memory(self) -> HostMemory:
        """The host's memory behind all gfns."""
        geometry = self.geometry
        block = geometry.pages(self.config.huge_level)
        return HostMemory(self.layout, geometry.max_gfn, block, chunk=self.layout.chunk("host"))

    def make_pool(self, number: int, size: int) -> Pool:
        """The page table pages that thread ``number`` may allocate."""
        sptes = self.spte_guard(number)
        return tuple(self.new_page(sptes) for _ in range(size))

    def spte_guard(self, pool: int) -> Guard:
        """What guards the entries of a pool's pages."""
        visitors = Visitors(f"the pages of pool {pool}", self.alive)
        self.visitors.append(visitors)
        return UnderEitherMode(self.mmu_lock, visitors, self.rcu.reading)

    def new_page(self, sptes: Guard) -> TablePage:
        """A page table page, free."""
        page = TablePage(
            self.layout,
            self.hardware,
            len(self.pages),
            self.geometry.fanout,
            sptes=sptes,
            **self._page_guards,
        )
        self.hardware.page_by_number[page.number] = page
        self.pages.append(page)
        return page

    @property
    def locks(self) -> dict[str, RwLock | SpinLock | Rcu]:
        """The locks by name."""
        return {
            "mmu_lock": self.mmu_lock,
            "tdp_mmu_pages_lock": self.tdp_mmu_pages_lock,
            "rcu": self.rcu,
            "srcu": self.srcu,
            "mmu_unsync_pages_lock": self.mmu_unsync_pages_lock,
        }

    def _pages_cannot_be_freed(self, step: Step) -> bool:
        return (
            self.rcu.reading(step)
            or self.mmu_lock.held_write(step)
            or self.tdp_mmu_pages_lock.held_write(step)
        )

    def page_of(self, spte: int) -> TablePage:
        """The table that a present non-leaf SPTE points to (``spte_to_child_sp``)."""
        return self.hardware.page_by_pfn[self.format.pfn(spte)]

    def position_key(self) -> str:
        return "kvm"
