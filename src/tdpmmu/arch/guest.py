"""Page tables that the guest keeps in its own memory, and what the guest does to them.

They translate what a guest uses as an address into gfns: virtual addresses where the guest pages
itself and KVM has no nested paging, L2's physical addresses where L1 runs L2 under nested page
tables.  Either way KVM *shadows* them.  Entries are x86 PTEs of 64 bits; the accessed and dirty
bits are taken to be set.  Units: addresses count 4 KiB pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tdpmmu.arch.geometry import Geometry
from tdpmmu.events.records import GuestFlushed, GuestPteWritten
from tdpmmu.machine.op import Op, Step
from tdpmmu.machine.state import Cell, Layout

PRESENT, WRITABLE, LARGE, NO_EXECUTE = 1 << 0, 1 << 1, 1 << 7, 1 << 63
ACCESSED, DIRTY = 1 << 5, 1 << 6
GFN_SHIFT = 12
_GFN_MASK = ((1 << 52) - 1) & ~((1 << GFN_SHIFT) - 1)

ACC_EXEC, ACC_WRITE, ACC_USER = 1, 2, 4
ACC_ALL = ACC_EXEC | ACC_WRITE | ACC_USER
"""``ACC_*_MASK``: what a guest's entry, or all of them on the way to it, allow."""

FIXED_BITS = 0x64
"""User, accessed and dirty: every guest PTE here has them."""

Held = tuple[int, int, int, int]
"""What a guest may take its TLB to hold: address, level, PTE, access granted on the way."""


def gpte_gfn(gpte: int) -> int:
    """The gfn that a guest PTE points to."""
    return (gpte & _GFN_MASK) >> GFN_SHIFT


def gpte_access(gpte: int) -> int:
    """``gpte_access``: its permissions as ``ACC_*`` bits."""
    access = ACC_USER
    if gpte & WRITABLE:
        access |= ACC_WRITE
    if not gpte & NO_EXECUTE:
        access |= ACC_EXEC
    return access


def is_accessed_gpte(gpte: int) -> bool:
    """Not ``prefetch_invalid_gpte``: present, and the guest has used it."""
    return bool(gpte & PRESENT and gpte & ACCESSED)


def is_last_gpte(gpte: int, level: int) -> bool:
    """Whether it maps memory rather than a table."""
    return level == 1 or bool(gpte & LARGE)


def parse_gpte(text: str) -> int:
    """``-``, or ``GFN`` with ``r`` (read-only), ``n`` (not executable), ``L`` (large)."""
    if text == "-":
        return 0
    body = text.rstrip("rnL")
    flags = text[len(body) :]
    if not body.isdigit():
        raise ValueError(f"guest PTE {text!r}: expected - or GFN with any of r, n, L")
    gpte = int(body) << GFN_SHIFT | PRESENT | WRITABLE | FIXED_BITS
    if "r" in flags:
        gpte &= ~WRITABLE
    if "n" in flags:
        gpte |= NO_EXECUTE
    if "L" in flags:
        gpte |= LARGE
    return gpte


@dataclass(frozen=True, slots=True)
class GuestPaging:
    """A vCPU's paging: the gfn of its root table (CR3, or L1's nested CR3) and its levels."""

    root_gfn: int
    levels: int


class GuestTables:
    """The guest's tables by gfn; each entry is a cell."""

    def __init__(
        self, layout: Layout, geometry: Geometry, tables: Mapping[int, tuple[int, ...]]
    ) -> None:
        self.geometry = geometry
        self.entries: dict[int, tuple[Cell, ...]] = {}
        for gfn, gptes in tables.items():
            chunk = layout.chunk(f"guest table {gfn:#x}")
            self.entries[gfn] = tuple(
                layout.cell(f"gpte {gfn:#x}[{i}]", gpte, chunk=chunk)
                for i, gpte in enumerate(gptes)
            )

    def position_key(self) -> str:
        return "guest tables"

    def gpte(self, step: Step, gfn: int, index: int) -> int:
        """An entry as it is now; memory that is no table reads as not present."""
        cells = self.entries.get(gfn)
        return int(step[cells[index]]) if cells is not None else 0

    def write(self, step: Step, gfn: int, index: int, value: int) -> None:
        """Whoever it is changes guest memory; only what lies in a table matters here."""
        cells = self.entries.get(gfn)
        if cells is None:
            return
        old = step[cells[index]]
        step[cells[index]] = value
        step.emit(GuestPteWritten(gfn, index, old, value))

    def walk_from(
        self, step: Step, table: int, level: int, address: int, access: int
    ) -> Iterator[Held]:
        """Everything that a walk below a table finds, with the access that the way grants."""
        for index in range(self.geometry.fanout):
            gpte = self.gpte(step, table, index)
            if not gpte & PRESENT:
                continue
            here = address + index * self.geometry.pages(level)
            granted = access & gpte_access(gpte)
            yield here, level, gpte, granted
            if not is_last_gpte(gpte, level):
                yield from self.walk_from(step, gpte_gfn(gpte), level - 1, here, granted)


@dataclass(frozen=True, slots=True)
class ReadGpte(Op):
    """``kvm_vcpu_read_guest_atomic``: one entry of a guest table."""

    tables: GuestTables
    gfn: int
    index: int

    def apply(self, step: Step, alternative: int) -> int:
        return self.tables.gpte(step, self.gfn, self.index)

    def describe(self) -> str:
        return f"read gpte {self.gfn:#x}[{self.index}]"


@dataclass(frozen=True, slots=True)
class ReadGptes(Op):
    """The same of ``count`` entries at once."""

    tables: GuestTables
    gfn: int
    first: int
    count: int

    def apply(self, step: Step, alternative: int) -> tuple[int, ...]:
        indices = range(self.first, self.first + self.count)
        return tuple(self.tables.gpte(step, self.gfn, index) for index in indices)

    def describe(self) -> str:
        return f"read gptes {self.gfn:#x}[{self.first}..{self.first + self.count - 1}]"


@dataclass(frozen=True, slots=True)
class WriteGuestMemory(Op):
    """A write of guest memory past the guest's own mappings: by the emulator, or by the host."""

    tables: GuestTables
    gfn: int
    index: int
    value: int

    def apply(self, step: Step, alternative: int) -> None:
        self.tables.write(step, self.gfn, self.index, self.value)

    def describe(self) -> str:
        return f"write guest memory, gfn {self.gfn:#x}[{self.index}] = {self.value:#x}"


@dataclass(frozen=True, slots=True)
class GuestFlush(Op):
    """The guest's own TLB flush begins: INVLPG of ``address``, or of everything (-1)."""

    vcpu: int
    address: int

    def apply(self, step: Step, alternative: int) -> None:
        step.emit(GuestFlushed(self.vcpu, self.address))

    def describe(self) -> str:
        if self.address < 0:
            return "guest flushes its TLB"
        return f"guest INVLPG {self.address:#x}"
