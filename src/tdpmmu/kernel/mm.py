"""The host's memory under a VM: which frame backs which gfn, and when the host takes it back.

Guest memory is backed in *blocks* of one huge page (``level`` of the host mapping).  A block that
the host takes back is replaced by fresh frames, so that an old pfn never means the new owner's
page. Units: gfn and pfn in 4 KiB pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.events.records import HostPageReused
from tdpmmu.machine.op import LEFT, NEITHER, Op, Step
from tdpmmu.machine.state import Cell, Layout

FIRST_PFN = 0x100000


class HostMemory:
    """Backing of the gfns ``[0, pages)``; ``block`` is the size of one host mapping in pages."""

    __slots__ = ("block", "blocks", "generation", "pages")

    def __init__(self, layout: Layout, pages: int, block: int, *, chunk: int) -> None:
        self.pages = pages
        self.block = block
        self.blocks = max(1, pages // block)
        self.generation = tuple(
            layout.cell(f"host page of gfn {i * block:#x}", 0, chunk=chunk)
            for i in range(self.blocks)
        )

    def position_key(self) -> str:
        return "host memory"

    def pfn(self, gfn: int, generation: int) -> int:
        """The frame behind ``gfn`` while its block has this generation."""
        return FIRST_PFN + generation * self.blocks * self.block + gfn

    def gfn_of(self, pfn: int) -> int:
        """The gfn that a frame backs, or backed before the host took it away."""
        return (pfn - FIRST_PFN) % (self.blocks * self.block)

    async def get_user_page(self, gfn: int, faulting: Cell | None = None) -> int:
        """``hva_to_pfn``: the frame that backs ``gfn`` now.

        ``faulting`` is the cell that says that a vCPU has faulted and not looked yet.
        """
        pfn: int = await GetUserPage(self, gfn, faulting)
        return pfn

    async def take_back(self, gfn: int) -> None:
        """The host clears its page table entry and gives the frames of the block to others."""
        await TakeBack(self, gfn)

    async def unmap(self, gfn: int) -> None:
        """The first half of that: whoever asks from now on gets fresh frames."""
        await Unmap(self, gfn)

    async def reuse(self, gfn: int) -> None:
        """The second half."""
        await Reuse(self, gfn)


@dataclass(frozen=True, slots=True)
class GetUserPage(Op):
    """Read the host's page table."""

    memory: HostMemory
    gfn: int
    faulting: Cell | None

    def apply(self, step: Step, alternative: int) -> int:
        memory = self.memory
        if self.faulting is not None:
            step[self.faulting] = False
        return memory.pfn(self.gfn, step[memory.generation[self.gfn // memory.block]])

    def mover(self, step: Step) -> str:
        # The older the answer the worse, and a retry asks again.
        return NEITHER if self.faulting is None else LEFT

    def describe(self) -> str:
        return f"get_user_page(gfn {self.gfn:#x})"


@dataclass(frozen=True, slots=True)
class TakeBack(Op):
    """The moment of harm for whatever still reaches the old frames."""

    memory: HostMemory
    gfn: int

    def apply(self, step: Step, alternative: int) -> None:
        memory = self.memory
        cell = memory.generation[self.gfn // memory.block]
        first = self.gfn // memory.block * memory.block
        old = memory.pfn(first, step[cell])
        step[cell] = step[cell] + 1
        step.emit(HostPageReused(first, old, memory.block))

    def describe(self) -> str:
        return f"host reuses the page of gfn {self.gfn:#x}"


@dataclass(frozen=True, slots=True)
class Unmap(Op):
    """The host clears its page table entry."""

    memory: HostMemory
    gfn: int

    def apply(self, step: Step, alternative: int) -> None:
        cell = self.memory.generation[self.gfn // self.memory.block]
        step[cell] = step[cell] + 1

    def describe(self) -> str:
        return f"host unmaps the page of gfn {self.gfn:#x}"


@dataclass(frozen=True, slots=True)
class Reuse(Op):
    """What it has unmapped last is given to somebody else."""

    memory: HostMemory
    gfn: int

    def apply(self, step: Step, alternative: int) -> None:
        memory = self.memory
        first = self.gfn // memory.block * memory.block
        unmapped = step[memory.generation[self.gfn // memory.block]] - 1
        step.emit(HostPageReused(first, memory.pfn(first, unmapped), memory.block))

    def describe(self) -> str:
        return f"host reuses the page of gfn {self.gfn:#x}"
