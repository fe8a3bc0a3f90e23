"""What a call into the MMU is, as a trace shows it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tdpmmu.arch.spte import Access
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.trace.fields import FastPageFault, SetSpte, SpteChange, SpteRequested
from tdpmmu.trace.records import Record


class Kind(enum.Enum):
    """What came from outside."""

    FAULT = "guest fault"
    RECOVER = "NX recovery"
    UNMAP = "unmap"
    AGE = "ageing"
    LOG_ON = "dirty logging on"
    LOG_OFF = "dirty logging off"
    GET_LOG = "get dirty log"
    CLEAR_LOG = "clear dirty log"
    SLOT_CREATE = "memslot created"
    SLOT_DELETE = "memslot deleted"
    ZAP_ALL = "zap all"
    LOAD = "root loaded"
    PARAMETER = "module parameter set"
    RELEASE = "end of the VM"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Armed:
    """A probe of ``kvm_arch_mmu_enable_log_dirty_pt_masked``: these gfns are armed again."""

    gfns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MmioMarked:
    """``mark_mmio_spte``: ``gfn`` has no memslot in this generation."""

    gfn: int
    generation: int


@dataclass(frozen=True, slots=True)
class PageGot:
    """``kvm_mmu_get_page``: a shadow page, a ``new`` one or one that was there."""

    gfn: int
    level: int
    new: bool


@dataclass(frozen=True, slots=True)
class PageZap:
    """``kvm_mmu_prepare_zap_page``."""

    gfn: int
    level: int


Seen = SpteChange | SpteRequested | FastPageFault | Armed | MmioMarked | SetSpte | PageGot | PageZap


@dataclass(slots=True, eq=False)
class Call:
    """``seen`` is what it did, with the lines; ``last`` the line of the last event.

    For a fault: ``vcpu``, ``gfn``, ``access``, ``present``, ``reserved`` from the error code, and
    what it found.
    ``start``, ``end``: a notifier's range of host addresses.  ``slot``: the memslot that a probe
    tells of; ``parameter``: of the module, name and value; ``protects``: write access is taken away
    as logging begins; ``since``: where the thread was last seen before; ``published``: where others
    first see it.  ``over``: nothing more can belong to it.  ``cut``: the trace ends before one
    knows.  ``lost``: another thread was first to change an entry, so that nothing came of it.
    ``silent``: a round of recovery that zapped nothing.  ``lists``: where a table was put on the
    list of those to recover.
    """

    kind: Kind
    record: Record
    seen: list[tuple[int, Seen]] = field(default_factory=list)
    last: int = 0
    vcpu: int = 0
    gfn: int = 0
    access: Access = Access.READ
    present: bool = False
    reserved: bool = False
    requested: SpteRequested | None = None
    leaf: int | None = None
    mmio: bool = False
    start: int = 0
    end: int = 0
    slot: Memslot | None = None
    parameter: tuple[str, str] | None = None
    protects: bool = False
    since: int = 0
    published: int | None = None
    over: bool = False
    cut: bool = False
    lost: bool = False
    silent: bool = False
    lists: list[int] = field(default_factory=list)

    @property
    def page(self) -> int:
        """The gfn that a fault is about, which with guest paging is not its address."""
        return self.requested.gfn if self.requested is not None else self.gfn

    @property
    def pid(self) -> int:
        """The thread."""
        return self.record.pid

    @property
    def as_id(self) -> int:
        """The address space, as far as its changes say."""
        return next((seen.as_id for _, seen in self.seen if isinstance(seen, SpteChange)), 0)

    def see(self, line: int, seen: Seen) -> None:
        """One event more."""
        self.seen.append((line, seen))
        self.last = line

    def describe(self) -> str:
        """For people."""
        record = self.record
        return f"{self.kind.value} of {record.task}-{record.pid}, from line {record.line}"
