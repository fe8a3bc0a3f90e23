"""A VM of real geometry: lists, memory and page table pages are made as they are touched."""

from __future__ import annotations

from functools import partial

from tdpmmu.arch.geometry import X86_64, X86_64_LA57
from tdpmmu.arch.spte import SpteFormat
from tdpmmu.arch.table import FreshPages, Pool
from tdpmmu.kernel.mm import HostMemory
from tdpmmu.machine.state import Cell, Guard, Layout
from tdpmmu.mmu.kvm import ByGfn, Config, Kvm, Memslot, Memslots
from tdpmmu.mmu.roots import NO_TDP_MMU

THREADS = 64
"""How many calls can be on their way at once."""


class _Lists(dict[int, Cell]):
    """Empty lists by gfn, each made when it is first asked for."""

    def __init__(self, layout: Layout, name: str, guard: Guard) -> None:
        super().__init__()
        self._layout = layout
        self._name = name
        self._guard = guard
        self._chunk = layout.chunk(name)

    def __missing__(self, gfn: int) -> Cell:
        name = f"{self._name}[{gfn:#x}]"
        cell = self[gfn] = self._layout.cell(name, (), chunk=self._chunk, guard=self._guard)
        return cell


class LiveKvm(Kvm):
    """``struct kvm`` with what the kernel, too, allocates only when it is needed."""

    def make_lists(self, name: str, gfns: int, guard: Guard) -> ByGfn:
        return _Lists(self.layout, name, guard)

    def make_memory(self) -> HostMemory:
        # Frames are inputs, so nobody asks for one.
        return HostMemory(self.layout, 1, 1, chunk=self.layout.chunk("host"))

    def make_pool(self, number: int, size: int) -> Pool:
        return FreshPages(partial(self.new_page, self.spte_guard(number)))


def make_vm(
    fmt: SpteFormat,
    *,
    vcpus: int,
    slots: tuple[Memslot, ...],
    root_level: int = 4,
    recovery_ratio: int = 1,
    nx_huge_pages: bool = True,
    options: frozenset[str] = frozenset(),
) -> LiveKvm:
    """A VM as it is made, or as the trace finds it if it has ``slots``."""
    kvm = LiveKvm(
        Config(
            geometry=X86_64_LA57 if root_level == 5 else X86_64,
            spte_format=fmt,
            threads=THREADS,
            vcpus=vcpus,
            parked=0,
            pools=(0,),
            recovery_ratio=recovery_ratio,
            nx_huge_pages=nx_huge_pages,
            slots=slots,
            options=options,
            shadow_pages=NO_TDP_MMU in options,
        )
    )
    memory = kvm.layout.memory()
    for cell in kvm.memslots:
        memory[cell.chunk][cell.offset] = Memslots(0, memory[cell.chunk][cell.offset].slots)
    return kvm
