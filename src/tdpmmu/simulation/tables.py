"""A VM whose page tables are arrays, made when they are touched and used again after their free."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.hardware import Hardware, VcpuCells
from tdpmmu.arch.table import TABLE_PFN, FreshPages, Header, Pool, TablePage
from tdpmmu.events.records import PageFreed
from tdpmmu.kernel.mm import HostMemory
from tdpmmu.machine.op import FREE, FREED, Step
from tdpmmu.machine.state import Cell, Guard, Layout
from tdpmmu.mmu.kvm import ByGfn, Config, Kvm
from tdpmmu.simulation.regions import Blocks, Generations

ENTRIES = 512
_FIELDS, _DISALLOWED = 5, 2
"""State, header, ``nx_huge_page_disallowed``, root count, ``role.invalid``; then the entries."""


class Rows:
    """The entries of all tables, a row each; ``flat`` is the same memory, for single entries.

    ``disallowed`` is ``nx_huge_page_disallowed`` of each.
    """

    def __init__(self, empty: int) -> None:
        self.empty = empty
        self.used = 0
        self.array = np.empty((64, ENTRIES), dtype=np.uint64)
        self.flat = self.array.reshape(-1).data
        self.disallowed = np.zeros(64, dtype=np.uint8)

    def new(self) -> int:
        """Another row."""
        if self.used == len(self.array):
            # Memory that nobody has written to takes none of the host's.
            grown = np.empty((2 * self.used, ENTRIES), dtype=np.uint64)
            grown[: self.used] = self.array
            self.array = grown
            self.flat = grown.reshape(-1).data
            self.disallowed = np.concatenate([self.disallowed, np.zeros_like(self.disallowed)])
        self.array[self.used] = self.empty
        self.used += 1
        return self.used - 1


class TableChunk:
    """The values of one table's cells, as a world finds them by offset."""

    __slots__ = ("_base", "_fields", "_row", "_rows")

    def __init__(self, rows: Rows, row: int) -> None:
        self._rows = rows
        self._row = row
        self._base = row * ENTRIES - _FIELDS
        self._fields: list[Any] = [FREE, None, False, 0, False]

    def __getitem__(self, offset: int) -> Any:
        if offset >= _FIELDS:
            return self._rows.flat[self._base + offset]
        return self._fields[offset]

    def __setitem__(self, offset: int, value: Any) -> None:
        if offset >= _FIELDS:
            self._rows.flat[self._base + offset] = value
        else:
            self._fields[offset] = value
            if offset == _DISALLOWED:
                self._rows.disallowed[self._row] = value


class EntryCell(Cell):
    """One entry, made whenever somebody looks at it."""

    __slots__ = ()

    def __init__(self, chunk: int, offset: int, page: TablePage) -> None:
        self.chunk = chunk
        self.offset = offset
        self.guard = None
        self.page = page
        self.key = (chunk, offset)

    @property
    def index(self) -> int:
        """Which of its table it is."""
        return self.offset - _FIELDS

    def __getattr__(self, name: str) -> Any:
        if name == "name":
            return f"{self.page.name}[{self.index}]"
        raise AttributeError(name)


class _Entries(Sequence[Cell]):
    """``sp->spt``."""

    __slots__ = ("_chunk", "_page")

    def __init__(self, chunk: int, page: TablePage) -> None:
        self._chunk = chunk
        self._page = page

    def __len__(self) -> int:
        return ENTRIES

    @overload
    def __getitem__(self, at: int) -> Cell: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Cell]: ...
    def __getitem__(self, at: int | slice) -> Cell | Sequence[Cell]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(ENTRIES))]
        if at >= ENTRIES:
            raise IndexError(at)
        return EntryCell(self._chunk, _FIELDS + at, self._page)


class ArrayPage(TablePage):
    """A page table page whose entries are a row; its number is that of the row."""

    __slots__ = ("_kvm", "chunk")

    def __init__(self, kvm: SimKvm, number: int, chunk: int) -> None:
        self._kvm = kvm
        self.number = number
        self.name = f"SP{number}"
        self.pfn = TABLE_PFN + number
        self.hardware = kvm.hardware
        self.chunk = chunk
        self.state = Cell("state", chunk, 0)
        self.header = Cell("header", chunk, 1)
        self.nx_huge_page_disallowed = Cell("nx_huge_page_disallowed", chunk, 2, None, self)
        self.root_count = Cell("root_count", chunk, 3, None, self)
        self.invalid = Cell("role.invalid", chunk, 4, None, self)
        self.entries = _Entries(chunk, self)  # type: ignore[assignment]
        kvm.hardware.page_by_pfn[self.pfn] = self
        kvm.hardware.page_by_number[number] = self

    def row(self) -> npt.NDArray[np.uint64]:
        """All entries."""
        row: npt.NDArray[np.uint64] = self._kvm.rows.array[self.number]
        return row

    def free(self, step: Step) -> None:
        header: Header | None = step[self.header]
        root = header.root if header else self.number
        step[self.state] = FREED
        step.emit(PageFreed(self.name, self.pfn, root))
        self.give_back(step)

    def give_back(self, step: Step) -> None:
        """The row is for somebody else."""
        step[self.header] = None
        step[self.nx_huge_page_disallowed] = False
        step[self.invalid] = False
        self.row()[:] = self._kvm.rows.empty
        self._kvm.recycle(self)


class _EntryIndex(dict[Hashable, int]):
    """The index of an entry in its table, by the key of its cell."""

    def __missing__(self, key: Any) -> int:
        return int(key[1]) - _FIELDS


class SimHardware(Hardware):
    """CPUs of which nothing is kept that they may hold: a simulated guest has its own TLB."""

    def fill(self, step: Step, vcpu: VcpuCells) -> None:
        return None

    def entry_written(
        self, step: Step, page: TablePage, header: Header, gfn: int, spte: int
    ) -> None:
        return None


class _Lists(dict[int, Cell]):
    """Empty cells by gfn, each made when it is first asked for."""

    def __init__(self, layout: Layout, name: str, initial: Hashable) -> None:
        super().__init__()
        self._layout = layout
        self._name = name
        self._initial = initial
        self._chunk = layout.chunk(name)

    def __missing__(self, key: int) -> Cell:
        cell = self[key] = self._layout.cell(self._name, self._initial, chunk=self._chunk)
        return cell


class SimMemory(HostMemory):
    """The host's memory, of which only what was ever taken away is kept."""

    def __init__(self, pages: int, block: int, blocks: Blocks) -> None:
        self.pages = pages
        self.block = block
        self.blocks = -(-pages // block)
        self.generation = Generations(blocks)  # type: ignore[assignment]


class SimKvm(Kvm):
    """``struct kvm`` in as much memory as what was touched needs."""

    def __init__(self, config: Config, pages: int, present: bool = True) -> None:
        """``pages``: of guest memory, which the host has allocated if it is ``present``."""
        self.guest_pages = pages
        self._present = present
        self.rows = Rows(config.spte_format.nonpresent)
        self._free: list[int] = []
        self._chunks: list[int] = []
        super().__init__(config)
        self.blocks.join(self.layout.memory())

    def make_hardware(self) -> Hardware:
        hardware = SimHardware(self.config.geometry, self.config.spte_format)
        hardware.entry_index = _EntryIndex()
        return hardware

    def make_lists(self, name: str, gfns: int, guard: Guard) -> ByGfn:
        return _Lists(self.layout, name, ())

    def make_memory(self) -> HostMemory:
        block = self.geometry.pages(self.config.huge_level)
        self.blocks = Blocks(self.layout, self.guest_pages, block, self._present)
        return SimMemory(self.guest_pages, block, self.blocks)

    def make_pool(self, number: int, size: int) -> Pool:
        return FreshPages(self.fresh_page)

    def fresh_page(self) -> TablePage:
        """A page table page, free; its row may have been another one's."""
        if self._free:
            number = self._free.pop()
        else:
            number = self.rows.new()
            self._chunks.append(self.layout.chunk("table"))
        chunk = self._chunks[number]
        values: list[Any] = self.layout.memory()
        values[chunk] = TableChunk(self.rows, number)
        return ArrayPage(self, number, chunk)

    def recycle(self, page: ArrayPage) -> None:
        """A page was given back."""
        del self.hardware.page_by_pfn[page.pfn]
        del self.hardware.page_by_number[page.number]
        self._free.append(page.number)
