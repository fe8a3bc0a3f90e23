"""NX recovery against page faults, an unmap and a lock that may be broken at any time.

The guest has executed from ``nx_pages`` huge pages in the address space of root 0, so each is
split into 4 KiB pages and on the list of pages to recover.  With two roots, the second (SMM) maps
the same ranges with huge pages that are not executable.  ``legacy`` shadow pages, as a nested
guest needs them, stand on the list before the TDP MMU's.  Then run, in every order: one round of
recovery, ``faults`` accesses by each vCPU to any of ``gfns`` 4 KiB pages (writes or fetches),
and, unless told not to, the host taking back the first huge page of the TDP MMU (``victim``
``tdp``) or of the legacy MMU.  At last the VM is destroyed.

vCPU 0 runs in the last root, vCPU 1 in the one before.  Roots that no vCPU runs in, and the
legacy root, are held by parked vCPUs: they are outside the guest, never come back, but keep their
TLB.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar

from tdpmmu.arch.geometry import Geometry
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import LoadRoot
from tdpmmu.arch.spte import Access, spte_format
from tdpmmu.arch.table import Allocate, Header, TablePage, WriteSpte
from tdpmmu.events.records import (
    Event,
    FaultFixed,
    GuestAccess,
    HostPageReused,
    NxPageRecovered,
    Yielded,
)
from tdpmmu.machine.op import BOTH, FREE, LEFT, Add, ListAdd, Op, Step, WaitUntil
from tdpmmu.machine.state import State
from tdpmmu.machine.thread import Machine, Thread
from tdpmmu.mmu.fault import RET_PF_RETRY
from tdpmmu.mmu.kvm import Config, Kvm
from tdpmmu.scenarios.base import Built, MmuClass
from tdpmmu.worlds.sequential import run

KINDS = (Access.WRITE, Access.EXEC)


@dataclass(frozen=True, slots=True)
class WarmTlb(Op):
    """The vCPU has run for a while: it may hold everything that its roots reach."""

    kvm: Kvm
    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        held: set[Any] = set()
        for root in step[self.vcpu.loaded]:
            held |= self.kvm.hardware.reachable(step, root)
        step[self.vcpu.held] = frozenset(held)

    def mover(self, step: Step) -> str:
        return BOTH


@dataclass(frozen=True, slots=True)
class ThreadEnds(Op):
    """One thread less."""

    kvm: Kvm

    def apply(self, step: Step, alternative: int) -> None:
        step[self.kvm.alive] = step[self.kvm.alive] & ~(1 << step.thread)

    def mover(self, step: Step) -> str:
        return LEFT

    def describe(self) -> str:
        return "thread ends"


@dataclass(frozen=True, slots=True)
class NxRecovery:
    """The scenario's parameters; see the module's text.  ``format`` is ``npt`` or ``ept``."""

    name: ClassVar[str] = "nx-recovery"
    levels: int = 3
    fanout: int = 2
    vcpus: int = 1
    roots: int = 2
    nx_pages: int = 1
    legacy: int = 1
    gfns: int = 2
    faults: int = 1
    unmap: bool = True
    flush: str = "bare-metal"
    format: str = "npt"
    resched: str = "any"
    victim: str = "tdp"

    def check(self) -> None:
        """Refuse what cannot be, with the reason."""
        if self.levels < 2 or self.levels > 5:
            raise ValueError(f"--levels {self.levels}: a huge page needs 2 to 5 levels")
        if not 2 <= self.fanout <= 8:
            raise ValueError(f"--fanout {self.fanout}: 2 to 8 entries a table can be explored")
        regions = self.fanout ** (self.levels - 1)
        for option, value, least in (
            ("vcpus", self.vcpus, 0),
            ("nx-pages", self.nx_pages, 0),
            ("legacy", self.legacy, 0),
            ("gfns", self.gfns, 1),
            ("faults", self.faults, 0),
        ):
            if value < least:
                raise ValueError(f"--{option} {value}: at least {least}")
        if self.roots not in (1, 2):
            raise ValueError(f"--roots {self.roots}: 1 or 2 (address spaces 0 and SMM's 1)")
        for option, value, most in (
            ("vcpus", self.vcpus, 4),
            ("gfns", self.gfns, 64),
            ("faults", self.faults, 100),
        ):
            if value > most:
                raise ValueError(f"--{option} {value}: at most {most}")
        for option, value in (("nx-pages", self.nx_pages), ("legacy", self.legacy)):
            if value > regions:
                raise ValueError(
                    f"--{option} {value}: {self.levels} levels of {self.fanout} entries hold only "
                    f"{regions} huge pages"
                )
        if self.gfns > regions * self.fanout:
            raise ValueError(
                f"--gfns {self.gfns}: {self.levels} levels of {self.fanout} entries map only "
                f"{regions * self.fanout} gfns"
            )
        if self.flush not in ("bare-metal", "ranged"):
            raise ValueError(f"--flush {self.flush}: bare-metal or ranged")
        if self.format not in ("npt", "ept"):
            raise ValueError(f"--format {self.format}: npt or ept")
        if self.nx_pages + self.legacy > regions:
            raise ValueError(
                f"--nx-pages {self.nx_pages} and --legacy {self.legacy}: {self.levels} levels of "
                f"{self.fanout} entries hold only {regions} huge pages"
            )
        if self.victim not in ("tdp", "legacy"):
            raise ValueError(f"--victim {self.victim}: tdp or legacy")
        if self.victim == "legacy" and not self.legacy:
            raise ValueError("--victim legacy: there is no legacy page (--legacy 0)")
        if self.resched not in ("any", "contended"):
            raise ValueError(f"--resched {self.resched}: any or contended")

    def build(self, mmu_class: MmuClass) -> Built:
        """The machine: threads ``nx recovery``, ``host`` (to unmap), ``vCPUn``, ``teardown``."""
        self.check()
        names = ["nx recovery", *(["host"] if self.unmap else [])]
        names += [f"vCPU{n}" for n in range(self.vcpus)]
        uncovered = max(0, self.roots - self.vcpus)
        parked = uncovered + (1 if self.legacy else 0)
        tables = self.levels - 1
        # Each access may lose its tables to recovery, once for each page on the list and for each
        # it has put there itself, and to the unmap.
        retries = 3 + (1 if self.unmap else 0)
        per_vcpu = tables * self.faults * retries * (2 if self.vcpus > self.roots else 1)
        regions = self.fanout ** (self.levels - 1)
        per_root = 1 + regions * tables
        first_vcpu = len(names) - self.vcpus
        pools = [0] * first_vcpu + [per_vcpu] * self.vcpus + [per_root] * (self.roots + 1)
        kvm, mmu, state = self._set_up(mmu_class, pools, len(names), parked)
        # Pages that the first state does not use would only make states longer.
        pools[len(names) :] = [
            sum(state[page.state.chunk][page.state.offset] != FREE for page in pool)
            for pool in kvm.pools[len(names) :]
        ]
        kvm, mmu, state = self._set_up(mmu_class, pools, len(names), parked)
        for as_id in range(self.roots):
            inside = [n for n in range(self.vcpus) if self.as_id(n) == as_id]
            mask = sum(1 << first_vcpu + n for n in inside)
            for pool in (len(names) + as_id, *(first_vcpu + n for n in inside)):
                kvm.visitors[pool].mask = mask
                kvm.visitors[pool].name = (
                    f"page tables of root {as_id} are touched by its own vCPUs alone "
                    "under the read lock"
                )
        kvm.visitors[-1].mask = 0
        for n in range(self.vcpus):
            kvm.vcpus[n].thread = kvm.vcpus[n].pool = first_vcpu + n
        roots = {
            state[p.header.chunk][p.header.offset].as_id: p
            for p in state[kvm.tdp_mmu_roots.chunk][kvm.tdp_mmu_roots.offset]
        }
        held = tuple(roots[self.as_id(n)] for n in range(self.vcpus))
        held += tuple(roots[self.as_id(self.vcpus + n)] for n in range(uncovered))

        async def ends(body: Coroutine[Any, Any, Any]) -> None:
            await body
            await ThreadEnds(kvm)

        async def teardown() -> None:
            await WaitUntil(kvm.alive, 0)
            await mmu.destroy(held)

        threads = [Thread("nx recovery", lambda: ends(mmu.recover_nx_lpages()))]
        if self.unmap:
            victim = self.nx_pages if self.victim == "legacy" else 0
            gfn = victim * kvm.memory.block
            threads.append(Thread("host", lambda: ends(mmu.host_takes_back(gfn))))
        for n in range(self.vcpus):
            threads.append(Thread(f"vCPU{n}", _vcpu_body(self, kvm, mmu, n, ends)))
        threads.append(Thread("teardown", teardown, alone=True))
        state = _with(state, kvm.alive, (1 << len(threads) - 1) - 1)
        machine = Machine(kvm.layout, threads, initial=state, sometimes=self.sometimes())
        return Built(machine, kvm, mmu)

    def _set_up(
        self, mmu_class: MmuClass, pools: list[int], threads: int, parked: int
    ) -> tuple[Kvm, Any, State]:
        """The VM with these pools, and the first state."""
        kvm = Kvm(
            Config(
                geometry=Geometry(self.levels, self.fanout),
                spte_format=spte_format(self.format, mmu_class.spte_kernel),
                threads=threads + 2,
                vcpus=self.vcpus,
                parked=parked,
                pools=tuple(pools),
                ranged_flush=self.flush == "ranged",
                queued_locks=self.resched == "contended",
                lockless_nx_flag=mmu_class.lockless_nx_flag,
                shadow_pages=bool(self.legacy),
            )
        )
        mmu = mmu_class(kvm)
        body = _setup(self, kvm, mmu, threads)
        state, _ = run(body, kvm.layout.initial(), threads + 1)
        return kvm, mmu, state

    def sometimes(self) -> dict[str, Callable[[Event, Step], bool]]:
        """What some run must show, or a verdict says nothing; so not where nobody runs a guest."""
        wanted: dict[str, Callable[[Event, Step], bool]] = {
            "a page is recovered": lambda event, step: type(event) is NxPageRecovered,
            "a guest access goes through": lambda event, step: (
                isinstance(event, GuestAccess) and not event.fault
            ),
        }
        if self.nx_pages or self.legacy:
            wanted["a lock is broken"] = lambda event, step: type(event) is Yielded
        if self.unmap:
            wanted["the host reuses a page"] = lambda event, step: type(event) is HostPageReused
        if self.vcpus and self.faults:
            wanted["a guest access faults"] = lambda event, step: (
                isinstance(event, GuestAccess) and event.fault
            )
            if self.unmap and self.victim == "tdp":
                wanted["a fault is retried"] = lambda event, step: (
                    isinstance(event, FaultFixed) and event.result == RET_PF_RETRY
                )
        return wanted

    def as_id(self, vcpu: int) -> int:
        """The address space that a vCPU, or the parked one of that number, runs in."""
        return (self.roots - 1 - vcpu) % self.roots


def _with(state: Any, cell: Any, value: Any) -> Any:
    step = Step(state, 0)
    step[cell] = value
    return step.state


def _vcpu_body(scenario: NxRecovery, kvm: Kvm, mmu: Any, n: int, ends: Any) -> Any:
    pool = 1 + int(scenario.unmap) + n
    gfns = tuple(range(scenario.gfns))
    as_id = scenario.as_id(n)
    return lambda: ends(mmu.run_vcpu(kvm.vcpus[n], as_id, pool, gfns, KINDS, scenario.faults))


async def _setup(scenario: NxRecovery, kvm: Kvm, mmu: Any, pool: int) -> None:
    """Build the first state with the MMU's own code."""
    size = kvm.geometry.pages(kvm.config.huge_level)
    # The last root is made first: new roots go to the head, and recovery meets root 0 before it.
    roots = {}
    for as_id in reversed(range(scenario.roots)):
        roots[as_id] = await mmu.get_vcpu_root(pool + as_id, as_id)
    if scenario.legacy:
        regions = range(scenario.nx_pages, scenario.nx_pages + scenario.legacy)
        await _legacy_pages(kvm, mmu, pool + scenario.roots, regions)
    for as_id, root in roots.items():
        kind = Access.EXEC if as_id == 0 else Access.WRITE
        gfns = [n * size + i for n in range(scenario.nx_pages) for i in range(size)]
        await LoadRoot(kvm.vcpus[0], (root.number,))
        for gfn in gfns:
            while (
                await mmu.direct_page_fault(kvm.vcpus[0], gfn, kind, as_id, pool + as_id)
                == RET_PF_RETRY
            ):
                pass
    await LoadRoot(kvm.vcpus[0], ())
    uncovered = max(0, scenario.roots - scenario.vcpus)
    for n in range(scenario.vcpus + uncovered):
        root = roots[scenario.as_id(n)]
        await mmu.load_root(kvm.vcpus[n], root)
        if n >= scenario.roots:
            await mmu.get_root(root)
        await WarmTlb(kvm, kvm.vcpus[n])
    if scenario.legacy:
        vcpu = kvm.vcpus[-1]
        legacy_root = kvm.pools[pool + scenario.roots][0].number
        await LoadRoot(vcpu, (legacy_root,))
        await WarmTlb(kvm, vcpu)


async def _legacy_pages(kvm: Kvm, mmu: Any, pool: int, regions: range) -> None:
    """A legacy root with a direct 4 KiB table for each region, each on the list to recover."""
    await kvm.mmu_lock.write_lock()
    tables: dict[tuple[int, int], TablePage] = {}
    root: TablePage = await Allocate(
        kvm.pools[pool], Header(0, kvm.geometry.levels, kvm.geometry.levels, 0, 0, False), root=True
    )
    tables[kvm.geometry.levels, 0] = root
    await ListAdd(kvm.active_mmu_pages, root)
    await Add(kvm.n_used_mmu_pages, 1)
    for n in regions:
        gfn = n * kvm.geometry.pages(2)
        for level in range(kvm.geometry.levels - 1, 0, -1):
            base = kvm.geometry.round(gfn, level + 1)
            if (level, base) in tables:
                continue
            above = tables[level + 1, kvm.geometry.round(gfn, level + 2)]
            parent = above.entries[kvm.geometry.index(gfn, level + 1)]
            sp: TablePage = await Allocate(
                kvm.pools[pool], Header(base, level, level, 0, root.number, False)
            )
            tables[level, base] = sp
            await WriteSpte(parent, kvm.format.nonleaf(sp.pfn))
            await ListAdd(sp.parent_ptes, parent)
            await ListAdd(kvm.active_mmu_pages, sp)
            await Add(kvm.n_used_mmu_pages, 1)
        sp = tables[1, gfn]
        for i in range(kvm.geometry.fanout):
            pfn = await kvm.memory.get_user_page(gfn + i)
            spte = kvm.format.leaf(pfn, 1, write=True, execute=True)
            await mmu.map_leaf(sp, i, spte, gfn + i)
        await mmu.account_huge_nx_page(sp)
    await kvm.mmu_lock.write_unlock()
