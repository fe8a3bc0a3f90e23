"""Page table pages in memory, and the operations on their entries.

Entries are real 64-bit SPTEs.  Whatever changes one tells the hardware, which may fill its TLBs
from the new value, and emits ``SpteChanged``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

from tdpmmu.events.records import PageFreed, SpteChanged
from tdpmmu.machine.op import (
    BOTH,
    FREE,
    FREED,
    LEFT,
    NEITHER,
    QUEUED,
    RIGHT,
    USED,
    Op,
    Step,
    reading,
    writing,
)
from tdpmmu.machine.state import Cell, Guard, Layout

if TYPE_CHECKING:
    from tdpmmu.arch.hardware import Hardware

TABLE_PFN = 0x1000


@dataclass(frozen=True, slots=True)
class Header:
    """What ``struct kvm_mmu_page`` says of a page and never changes while it is in use.

    ``level`` is the level of the *entries* in the table; ``role_level`` is the kernel's
    ``role.level``, which up to 5.13 was the parent's level for a TDP MMU child.
    ``parent`` is ``sp->ptep``, the entry that points here (from 5.18).  ``guest_mode``: it maps L2.
    A shadow page (not ``tdp``) may hang below several roots, and then has ``root`` -1.  One that is
    not ``direct`` shadows the guest's table in ``gfn``; ``access`` is what the way to it allows.
    """

    gfn: int
    level: int
    role_level: int
    as_id: int
    root: int
    tdp: bool
    parent: Cell | None = None
    guest_mode: bool = False
    direct: bool = True
    access: int = 7


class TablePage:
    """A page table page with its ``struct kvm_mmu_page``: ``spt``, state and header in one.

    Only VMs that can have shadow pages (``unsync`` given) have the fields that those alone need.
    """

    __slots__ = (
        "entries",
        "hardware",
        "header",
        "invalid",
        "name",
        "number",
        "nx_huge_page_disallowed",
        "parent_ptes",
        "pfn",
        "root_count",
        "shadowed",
        "state",
        "unsync",
        "unsync_child_bitmap",
        "unsync_children",
    )

    def __init__(
        self,
        layout: Layout,
        hardware: Hardware,
        number: int,
        entries: int,
        *,
        sptes: Guard,
        flags: Guard,
        refcount: Guard,
        invalid: Guard,
        parents: Guard,
        unsync: Guard | None = None,
    ) -> None:
        self.number = number
        self.name = f"SP{number}"
        self.pfn = TABLE_PFN + number
        self.hardware = hardware
        chunk = layout.chunk(self.name)
        empty = hardware.format.nonpresent
        self.state = layout.cell(f"{self.name}.state", FREE, chunk=chunk)
        self.header = layout.cell(f"{self.name}.header", None, chunk=chunk)
        self.nx_huge_page_disallowed = layout.cell(
            f"{self.name}.nx_huge_page_disallowed", False, chunk=chunk, guard=flags, page=self
        )
        self.root_count = layout.cell(
            f"{self.name}.root_count", 0, chunk=chunk, guard=refcount, page=self
        )
        self.invalid = layout.cell(
            f"{self.name}.role.invalid", False, chunk=chunk, guard=invalid, page=self
        )
        if unsync is not None:
            self.parent_ptes = layout.cell(
                f"{self.name}.parent_ptes", (), chunk=chunk, guard=parents, page=self
            )
            self.shadowed = layout.cell(
                f"{self.name}.shadowed_translation",
                ((0, 0),) * entries,
                chunk=chunk,
                guard=parents,
                page=self,
            )
            self.unsync = layout.cell(
                f"{self.name}.unsync", False, chunk=chunk, guard=unsync, page=self
            )
            self.unsync_children = layout.cell(
                f"{self.name}.unsync_children", 0, chunk=chunk, guard=unsync, page=self
            )
            self.unsync_child_bitmap = layout.cell(
                f"{self.name}.unsync_child_bitmap",
                frozenset(),
                chunk=chunk,
                guard=unsync,
                page=self,
            )
        self.entries = tuple(
            layout.cell(f"{self.name}[{i}]", empty, chunk=chunk, guard=sptes, page=self)
            for i in range(entries)
        )
        hardware.page_by_pfn[self.pfn] = self
        for i, cell in enumerate(self.entries):
            hardware.entry_index[cell.key] = i

    def position_key(self) -> Hashable:
        """Pages are told apart by number."""
        return self.number

    def __repr__(self) -> str:
        return self.name

    def grace_period_starts(self, step: Step) -> None:
        """``call_rcu(&sp->rcu_head, ...)``."""
        step[self.state] = QUEUED

    def grace_period_over(self, step: Step) -> None:
        """``tdp_mmu_free_sp_rcu_callback``."""
        self.free(step)

    def free(self, step: Step) -> None:
        """The memory goes back to the allocator; what was in it is gone."""
        header: Header | None = step[self.header]
        root = header.root if header else self.number
        step[self.state] = FREED
        step.emit(PageFreed(self.name, self.pfn, root))
        step[self.header] = None
        step[self.nx_huge_page_disallowed] = False
        step[self.invalid] = False
        for cell in self.entries:
            step[cell] = self.hardware.format.nonpresent


class Spte(Op):
    """Base of the operations on one entry of a table."""

    __slots__ = ()
    sptep: Cell


def _changed(step: Step, sptep: Cell, old: int, new: int) -> None:
    page: TablePage = sptep.page
    header: Header | None = step[page.header]
    hardware = page.hardware
    if header is not None and step[page.state] in (USED, QUEUED):
        index = hardware.entry_index[sptep.key]
        gfn = header.gfn + index * hardware.geometry.pages(header.level)
        if not header.direct:
            gfn = _shadowed_gfn(hardware, header, old, new)
        if old != new:
            step.emit(
                SpteChanged(
                    page.name, index, header.root, header.as_id, gfn, header.level, old, new
                )
            )
        hardware.entry_written(step, page, header, gfn, new)


def _shadowed_gfn(hardware: Hardware, header: Header, old: int, new: int) -> int:
    """The gfn that an entry of a guest's table maps, or that table's where it maps none."""
    spte = new if hardware.format.is_shadow_present(new) else old
    if hardware.format.is_shadow_present(spte) and hardware.format.is_last(spte, header.level):
        return hardware.frame_gfn(hardware.format.pfn(spte))
    return header.gfn


def _assisted(step: Step, sptep: Cell) -> bool:
    """Whether hardware may write this entry itself: a writable leaf without its dirty bit."""
    page: TablePage = sptep.page
    header: Header | None = step[page.header]
    spte_format = page.hardware.format
    spte = step[sptep]
    if header is None or not spte_format.is_last(spte, header.level):
        return False
    if not spte_format.is_writable(spte) or spte_format.is_dirty(spte):
        return False
    return spte_format.is_shadow_present(spte) and page.hardware.may_walk(step, page)


def _mover(step: Step, sptep: Cell) -> str:
    """How a write under a lock commutes: software is shut out, hardware is not.

    The later an entry goes away, the longer hardware may pick it up.
    """
    mover = writing(sptep, step)
    if mover == BOTH and _assisted(step, sptep):
        return NEITHER
    if mover == BOTH:
        hardware = sptep.page.hardware
        if hardware.format.is_shadow_present(step[sptep]) and hardware.may_walk(step, sptep.page):
            return RIGHT
    return mover


@dataclass(frozen=True, slots=True)
class ReadSpte(Spte):
    """``READ_ONCE(*sptep)``."""

    sptep: Cell

    def apply(self, step: Step, alternative: int) -> int:
        step.touch(self.sptep, write=False)
        return int(step[self.sptep])

    def mover(self, step: Step) -> str:
        mover = reading(self.sptep, step)
        return NEITHER if mover == BOTH and _assisted(step, self.sptep) else mover

    def describe(self) -> str:
        return f"read {self.sptep.name}"


@dataclass(frozen=True, slots=True)
class WriteSpte(Spte):
    """``WRITE_ONCE(*sptep, new)``."""

    sptep: Cell
    new: int

    def apply(self, step: Step, alternative: int) -> None:
        step.touch(self.sptep, write=True)
        old = step[self.sptep]
        step[self.sptep] = self.new
        _changed(step, self.sptep, old, self.new)

    def mover(self, step: Step) -> str:
        return _mover(step, self.sptep)

    def describe(self) -> str:
        return f"write {self.sptep.name}"


@dataclass(frozen=True, slots=True)
class XchgSpte(Spte):
    """``xchg(sptep, new)``: the old value."""

    sptep: Cell
    new: int

    def apply(self, step: Step, alternative: int) -> int:
        step.touch(self.sptep, write=True)
        old = int(step[self.sptep])
        step[self.sptep] = self.new
        _changed(step, self.sptep, old, self.new)
        return old

    def mover(self, step: Step) -> str:
        return _mover(step, self.sptep)

    def describe(self) -> str:
        return f"xchg {self.sptep.name}"


@dataclass(frozen=True, slots=True)
class CmpXchgSpte(Spte):
    """``try_cmpxchg64(sptep, &old, new)``."""

    sptep: Cell
    old: int
    new: int

    def apply(self, step: Step, alternative: int) -> bool:
        step.touch(self.sptep, write=True)
        if step[self.sptep] != self.old:
            return False
        step[self.sptep] = self.new
        _changed(step, self.sptep, self.old, self.new)
        return True

    def mover(self, step: Step) -> str:
        return _mover(step, self.sptep)

    def describe(self) -> str:
        return f"cmpxchg {self.sptep.name}"


@dataclass(frozen=True, slots=True)
class ClearSpteBits(Spte):
    """``atomic64_fetch_and(~mask, sptep)``: the old value."""

    sptep: Cell
    mask: int

    def apply(self, step: Step, alternative: int) -> int:
        step.touch(self.sptep, write=True)
        old = int(step[self.sptep])
        new = old & ~self.mask
        step[self.sptep] = new
        _changed(step, self.sptep, old, new)
        return old

    def mover(self, step: Step) -> str:
        return NEITHER

    def describe(self) -> str:
        return f"atomic and {self.sptep.name}"


@dataclass(frozen=True, slots=True)
class ReadHeader(Op):
    """Look at ``sp->gfn`` and ``sp->role``.

    They never change while the page is in use, so only its lifetime can race: inside a read-side
    section of ``rcu``, or with rivals shut out, nobody can free it.
    """

    page: TablePage

    def apply(self, step: Step, alternative: int) -> Header | None:
        page = self.page
        step.touch(page.entries[0], write=False) if step[page.state] == FREED else None
        header: Header | None = step[page.header]
        return header

    def mover(self, step: Step) -> str:
        page = self.page
        if step[page.state] != USED:
            return NEITHER
        if page.hardware.protects(step):
            return BOTH
        return NEITHER

    def describe(self) -> str:
        return f"read {self.page.name}->gfn, role"


Pool = Sequence[TablePage]
"""Pages to allocate from."""


class FreshPages(Sequence[TablePage]):
    """A pool that never runs dry: whoever looks through it for a free page gets a new one."""

    def __init__(self, make: Callable[[], TablePage]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[TablePage]:
        while True:
            yield self._make()

    def __len__(self) -> int:
        return 0

    @overload
    def __getitem__(self, at: int) -> TablePage: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[TablePage]: ...
    def __getitem__(self, at: int | slice) -> TablePage | Sequence[TablePage]:
        raise IndexError("pages without end have no numbers")


@dataclass(frozen=True, slots=True)
class Allocate(Op):
    """Take a page from ``pool``, zeroed, with this header; nobody else sees it yet.

    ``empty`` is what every entry starts with.  The result is the page, ``None`` if the pool is dry.
    """

    pool: Pool
    header: Header
    root: bool = False

    def apply(self, step: Step, alternative: int) -> TablePage | None:
        for page in self.pool:
            if step[page.state] == FREE:
                header = self.header
                if self.root:
                    header = replace(header, root=page.number)
                step[page.state] = USED
                step[page.header] = header
                return page
        raise PoolExhausted(
            f"all {len(self.pool)} page table pages of this thread's pool are used up"
        )

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return f"allocate a page table for gfn {self.header.gfn:#x}"


class PoolExhausted(Exception):
    """A scenario needs more page table pages than it was built with: its pools are too small."""


@dataclass(frozen=True, slots=True)
class FreeUnused(Op):
    """Give a page back that was never linked (``tdp_mmu_free_sp`` of a loser)."""

    page: TablePage

    def apply(self, step: Step, alternative: int) -> None:
        page = self.page
        step[page.state] = FREE
        step[page.header] = None
        step[page.nx_huge_page_disallowed] = False
        for cell in page.entries:
            step[cell] = page.hardware.format.nonpresent

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return f"free the unused {self.page.name}"


@dataclass(frozen=True, slots=True)
class FreeNow(Op):
    """``free_page`` without a grace period."""

    page: TablePage

    def apply(self, step: Step, alternative: int) -> None:
        self.page.free(step)

    def mover(self, step: Step) -> str:
        return LEFT

    def describe(self) -> str:
        return f"free {self.page.name}"


@dataclass(frozen=True, slots=True)
class SetPrivate(Op):
    """Write a field of a page that nobody else can see yet."""

    cell: Cell
    value: Hashable

    def apply(self, step: Step, alternative: int) -> None:
        step[self.cell] = self.value

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return f"{self.cell.name} = {self.value}"
