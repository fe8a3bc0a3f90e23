"""A scenario written as text: what each thread does, step by step.

``threads`` are separated by ``;``.  Each is ``NAME: STEP STEP ...``.  A thread called ``vcpuN`` is
a vCPU (``smmN`` one in SMM, address space 1; ``l2-N`` one that runs L2; ``shadowN`` one whose page
tables KVM shadows, those of L1 for L2): its steps are accesses
(``w0`` write gfn 0, ``r0-3`` read any of gfns 0 to 3, ``wx0`` write or fetch) and the actions that
take a vCPU.  Any other name is a thread of the host or of userspace; its steps are actions
(``unmap:0``, ``recover``, ``slot-delete:0``, ...; see :mod:`tdpmmu.scenarios.actions`).

``setup`` is a program like that of a vCPU, done before the threads start, by a vCPU of each address
space that is used (or by the one that ``0:`` or ``1:``, or a thread's name, names before a step).
Then every vCPU may hold all that its root maps.  At last the VM is destroyed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tdpmmu.arch.geometry import Geometry
from tdpmmu.arch.guest import GuestPaging
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.requests import Park
from tdpmmu.arch.spte import SpteFormat, spte_format
from tdpmmu.arch.table import PoolExhausted, SetPrivate, TablePage
from tdpmmu.events.records import (
    DirtyLogChanged,
    Event,
    GuestAccess,
    HostPageReused,
    MemslotGone,
    NxPageRecovered,
)
from tdpmmu.machine.op import FREE, Emit, Op, Read, Step, WaitUntil
from tdpmmu.machine.state import State
from tdpmmu.machine.thread import Machine, Thread
from tdpmmu.mmu.ageing import NO_AD_BITS
from tdpmmu.mmu.apic_page import APIC_ACCESS_PAGE
from tdpmmu.mmu.kvm import Config, Kvm, Memslot
from tdpmmu.mmu.log_protect import PML
from tdpmmu.mmu.roots import NO_TDP_MMU
from tdpmmu.scenarios.actions import table
from tdpmmu.scenarios.actions.base import Context, Run, access, parse_slot
from tdpmmu.scenarios.actions.dirty_log import SPLITS
from tdpmmu.scenarios.base import Built, MmuClass
from tdpmmu.scenarios.guest_tables import parse_root, parse_tables
from tdpmmu.scenarios.nx_recovery import ThreadEnds, WarmTlb
from tdpmmu.scenarios.script_limits import (
    check_sizes,
    check_slots,
    check_steps,
    check_tables,
    options,
)
from tdpmmu.worlds.sequential import Stuck, run

_ACCESS = re.compile(r"([rwx]+)(\d+(?:-\d+)?)$")
_VCPU = re.compile(r"(vcpu|smm|l2-|shadow)(\d+)$")


@dataclass(frozen=True, slots=True)
class Program:
    """A thread as written."""

    name: str
    steps: tuple[str, ...]
    vcpu: int = -1
    as_id: int = 0
    guest_mode: bool = False
    paging: bool = False

    @property
    def splits(self) -> bool:
        """Whether it may split huge pages, which takes page tables."""
        return any(text.split(":")[0] in SPLITS for text in self.steps)


def programs(text: str) -> tuple[Program, ...]:
    """The threads of a script; ``ValueError`` names the one that makes no sense."""
    found: list[Program] = []
    for part in text.replace("\n", ";").split(";"):
        if not part.strip():
            continue
        name, colon, steps = part.partition(":")
        name = name.strip()
        if not colon or not name or " " in name:
            raise ValueError(f"thread {part.strip()!r}: expected NAME: STEP STEP ...")
        if any(name == other.name for other in found):
            raise ValueError(f"two threads are called {name}")
        match = _VCPU.match(name)
        vcpu = sum(program.vcpu >= 0 for program in found) if match else -1
        kind = match[1] if match else ""
        l2 = kind in ("l2-", "shadow")
        as_id = 1 if kind == "smm" else 0
        found.append(Program(name, tuple(steps.split()), vcpu, as_id, l2, kind == "shadow"))
    if not found:
        raise ValueError("a script needs at least one thread, as in 'vcpu0: w0; host: unmap:0'")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Script:
    """The parameters; see the module's text.

    ``slots``: memslots, separated by spaces, as ``0-3``, ``1/0-3`` (address space 1), ``0-3@4``
    (host pages from 4 on), ``0-3:log``, ``0-3:ro``; empty: one for everything in each space.
    ``pages``: page table pages that each thread may take.  ``options``: switches of the VM.
    ``tables``: the guest's page tables, separated by ``;``, as ``2: 0 1r`` (gfn 2 maps gfn 0, and
    gfn 1 read-only; ``-`` not present, ``n`` not executable, ``L`` large).  ``cr3``: the root table
    of each ``shadowN``, with ``/LEVELS`` if it has other than ``levels``; by default the first.
    ``mmu_pages``: how many shadow pages the VM may have, 0 for no limit.
    """

    name: ClassVar[str] = "script"
    threads: str = "vcpu0: w0; host: unmap:0"
    setup: str = ""
    slots: str = ""
    levels: int = 2
    fanout: int = 2
    huge_level: int = 2
    pages: int = 6
    tables: str = ""
    cr3: str = ""
    mmu_pages: int = 0
    flush: str = "bare-metal"
    format: str = "npt"
    resched: str = "any"
    options: str = ""

    def build(self, mmu_class: MmuClass) -> Built:
        """The machine; its threads are those of the script, and ``teardown``."""
        return _Builder(self, mmu_class).build()


@dataclass(slots=True)
class _Builder:
    script: Script
    mmu_class: MmuClass
    kvm: Any = None
    mmu: Any = None
    prologue: list[Event] = field(default_factory=list)
    slots: tuple[Memslot, ...] = ()
    tables: dict[int, tuple[int, ...]] = field(default_factory=dict)
    paging: dict[int, GuestPaging] = field(default_factory=dict)

    def build(self) -> Built:
        script = self.script
        threads = programs(script.threads)
        check_sizes(script)
        spaces = sorted({p.as_id for p in threads if p.vcpu >= 0} | set(self.setup_spaces()))
        spaces = spaces or [0]
        vcpus = [p for p in threads if p.vcpu >= 0]
        parked = [s for s in spaces if not any(p.as_id == s for p in vcpus)]
        self.parse_tables(threads)
        self.slots = tuple(parse_slot(text) for text in script.slots.split())
        check_slots(self.slots, Geometry(script.levels, script.fanout).max_gfn)
        sizes = [script.pages if p.vcpu >= 0 or p.splits else 0 for p in threads]
        state = self.set_up(threads, spaces, parked, [*sizes, script.pages * 2])
        used = sum(state[p.state.chunk][p.state.offset] != FREE for p in self.kvm.pools[-1])
        state = self.set_up(threads, spaces, parked, [*sizes, used])
        kvm, mmu = self.kvm, self.mmu

        async def ends(bodies: tuple[Run, ...], vcpu: VcpuCells | None) -> None:
            if vcpu is not None:
                await kvm.srcu.read_lock()
            for body in bodies:
                await body()
            if vcpu is not None:
                await kvm.srcu.read_unlock()
                await Park(vcpu)
            await ThreadEnds(kvm)

        async def teardown() -> None:
            await WaitUntil(kvm.alive, 0)
            held: list[TablePage] = []
            for vcpu in tuple(kvm.vcpus):
                root = await RootOf(vcpu)
                if root >= 0:
                    held.append(kvm.hardware.page_by_number[root])
            await mmu.destroy(tuple(held))

        made: list[Thread] = []
        for number, program in enumerate(threads):
            vcpu = kvm.vcpus[program.vcpu] if program.vcpu >= 0 else None
            if vcpu is not None:
                vcpu.thread = vcpu.pool = number
            context = Context(kvm, mmu, number, vcpu, program.as_id)
            check_steps(program.name, program.steps)
            bodies = tuple(step(context, text) for text in program.steps)
            made.append(Thread(program.name, _start(ends, bodies, vcpu)))
        made.append(Thread("teardown", teardown, alone=True))
        last = Step(state, 0)
        last[kvm.alive] = (1 << len(threads)) - 1
        machine = Machine(
            kvm.layout,
            made,
            initial=last.state,
            sometimes=self.sometimes(threads),
            prologue=tuple(self.prologue),
        )
        return Built(machine, kvm, mmu)

    def parse_tables(self, threads: tuple[Program, ...]) -> None:
        """The guest's page tables, and which of them each vCPU that pages has for a root."""
        script = self.script
        self.tables = parse_tables(script.tables, script.fanout)
        check_tables(self.tables, Geometry(script.levels, script.fanout).max_gfn)
        paging = [p for p in threads if p.paging]
        if paging and not self.tables:
            raise ValueError(f"{paging[0].name} needs guest page tables, as in tables='2: 0 1'")
        if script.cr3 and not paging:
            raise ValueError(f"cr3 {script.cr3!r}: there is no shadowN thread")
        roots = script.cr3.split() or [str(next(iter(self.tables), 0))]
        for number, program in enumerate(paging):
            self.paging[program.vcpu] = parse_root(
                roots[min(number, len(roots) - 1)], self.tables, script.levels
            )

    def spte_format(self) -> SpteFormat:
        """The CPU's format; ``no-ad-bits`` takes accessed and dirty bits from it."""
        switches = options(self.script)
        ad_bits = NO_AD_BITS not in switches
        if not ad_bits and PML in switches:
            raise ValueError(f"options {PML} and {NO_AD_BITS} exclude each other")
        return spte_format(self.script.format, self.mmu_class.spte_kernel, ad_bits=ad_bits)

    def setup_spaces(self) -> list[int]:
        return [1 for text in self.script.setup.split() if text.startswith("1:")]

    def set_up(
        self, threads: tuple[Program, ...], spaces: list[int], parked: list[int], pools: list[int]
    ) -> State:
        script = self.script
        vcpus = [p for p in threads if p.vcpu >= 0]
        self.kvm = kvm = Kvm(
            Config(
                geometry=Geometry(script.levels, script.fanout),
                spte_format=self.spte_format(),
                threads=len(threads) + 2,
                vcpus=len(vcpus),
                parked=len(parked),
                pools=tuple(pools),
                huge_level=script.huge_level,
                ranged_flush=script.flush == "ranged",
                queued_locks=script.resched == "contended",
                lockless_nx_flag=self.mmu_class.lockless_nx_flag,
                slots=self.slots or None,
                options=options(self.script),
                shadow_pages=bool(self.tables) or NO_TDP_MMU in options(self.script),
                guest_tables=tuple(self.tables.items()),
                mmu_pages=script.mmu_pages,
            )
        )
        kvm.hardware.has_apic_page = APIC_ACCESS_PAGE in kvm.config.options
        self.mmu = self.mmu_class(kvm)
        where = [p.as_id for p in vcpus] + parked
        for vcpu, program in zip(kvm.vcpus, vcpus, strict=False):
            vcpu.guest_mode = program.guest_mode
            vcpu.paging = self.paging.get(program.vcpu)
        body = self.first_steps(kvm, self.mmu, len(threads), spaces, where)
        try:
            state, self.prologue = run(body, kvm.layout.initial(), len(threads) + 1)
        except PoolExhausted as error:
            raise ValueError(
                f"setup {script.setup!r}: it takes more than twice {script.pages} page table pages"
            ) from error
        except Stuck as error:
            raise ValueError(
                f"setup {script.setup!r}: it has to {error}, and nobody else runs yet; "
                "memslots change in threads only"
            ) from None
        return state

    async def first_steps(
        self, kvm: Kvm, mmu: Any, pool: int, spaces: list[int], where: list[int]
    ) -> None:
        """Roots, what ``setup`` says, and warm TLBs."""
        for vcpu, as_id in zip(kvm.vcpus, where, strict=True):
            vcpu.pool = pool
            await mmu.mmu_load(vcpu, as_id)
            if APIC_ACCESS_PAGE in kvm.config.options:
                await mmu.reload_apic_access_page(vcpu)
            if PML in kvm.config.options:
                await SetPrivate(vcpu.pml_on, not vcpu.guest_mode)
        for as_id in spaces:
            slots = await Read(kvm.memslots[as_id])
            for slot in slots.slots:
                if slot.log:
                    await mmu.alloc_dirty_bitmap(slot)
                    await Emit(DirtyLogChanged(as_id, slot.base_gfn, slot.npages, True))
        await kvm.srcu.read_lock()
        for text in self.script.setup.split():
            who, colon, rest = text.partition(":")
            match = _VCPU.match(who)
            if colon and match:
                chosen = [self.vcpu_called(who)]
            elif colon and who in ("0", "1"):
                chosen = [where.index(int(who))]
            else:
                chosen, rest = [where.index(as_id) for as_id in spaces], text
            for number in chosen:
                vcpu = kvm.vcpus[number]
                body = step(Context(kvm, mmu, pool, vcpu, where[number]), rest)
                # The vCPU that runs here, for those who ask.
                vcpu.thread = pool + 1
                await body()
                vcpu.thread = None
        await kvm.srcu.read_unlock()
        for vcpu in kvm.vcpus:
            await WarmTlb(kvm, vcpu)

    def vcpu_called(self, name: str) -> int:
        """The number of the vCPU of that thread."""
        for program in programs(self.script.threads):
            if program.name == name and program.vcpu >= 0:
                return program.vcpu
        raise ValueError(f"setup: no vCPU thread is called {name}")

    def sometimes(self, threads: tuple[Program, ...]) -> dict[str, Callable[[Event, Step], bool]]:
        wanted: dict[str, Callable[[Event, Step], bool]] = {}
        steps = [text for program in threads for text in program.steps]
        if any(_ACCESS.match(text) for text in steps):
            wanted["a guest access goes through"] = lambda event, step: (
                isinstance(event, GuestAccess) and not event.fault
            )
        for prefix, label, kind in (
            ("unmap", "the host reuses a page", HostPageReused),
            ("recover", "a page is recovered", NxPageRecovered),
            ("slot-delete", "a memslot is gone", MemslotGone),
        ):
            if any(text.split(":")[0] == prefix for text in steps):
                wanted[label] = _is(kind)
        return wanted


def _is(kind: type[Event]) -> Callable[[Event, Step], bool]:
    return lambda event, step: type(event) is kind


def _start(ends: Any, bodies: tuple[Run, ...], vcpu: VcpuCells | None) -> Any:
    return lambda: ends(bodies, vcpu)


def step(context: Context, text: str) -> Run:
    """What one step of a program means; ``ValueError`` names the step and the nearest action."""
    match = _ACCESS.match(text)
    try:
        if match:
            return access(context, match[1], match[2])
        name, _, arguments = text.partition(":")
        actions = table()
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(actions)}"
            raise ValueError(f"no such action; {hint}")
        return actions[name](context, arguments)
    except ValueError as error:
        raise ValueError(f"step {text!r}: {error}") from None


@dataclass(frozen=True, slots=True)
class RootOf(Op):
    """The root that a vCPU has loaded when all is over; -1 without one."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> int:
        loaded = step[self.vcpu.loaded]
        return int(loaded[0]) if loaded else -1
