"""``struct kvm_dirty_ring``: what a vCPU has made dirty, in memory that userspace can write.

Here a ring has four entries, one of which is reserved for what one exit may still add.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.events.records import DirtyRingForged, DirtyRingHarvested, PageMarkedDirty, Warned
from tdpmmu.machine.op import Op, Step
from tdpmmu.machine.state import Cell, Layout

DIRTY_RING = "dirty-ring"
"""``KVM_CAP_DIRTY_LOG_RING``: rings take the place of bitmaps."""

SIZE, RESERVED = 4, 1
SOFT_LIMIT = SIZE - RESERVED

INVALID, DIRTY, RESET = "invalid", "dirty", "reset"
"""``flags`` of an entry: KVM's to fill, userspace's to harvest, KVM's to reset."""

U64 = 1 << 64


@dataclass(frozen=True, slots=True)
class DirtyGfn:
    """``struct kvm_dirty_gfn``; ``slot`` is address space and first gfn instead of an id.

    ``gfn`` is what KVM stored, whatever userspace makes of the entry.
    """

    flags: str
    slot: tuple[int, int]
    offset: int
    gfn: int


EMPTY = DirtyGfn(INVALID, (0, 0), 0, 0)


class Ring:
    """The ring of one vCPU: its entries and the three indices, which only ever grow."""

    __slots__ = ("dirty_index", "entries", "fetch_index", "reset_index", "vcpu")

    def __init__(self, layout: Layout, vcpu: VcpuCells) -> None:
        self.vcpu = vcpu
        name = f"vCPU{vcpu.number}.dirty_ring"
        chunk = layout.chunk(name)
        self.entries = tuple(layout.cell(f"{name}[{i}]", EMPTY, chunk=chunk) for i in range(SIZE))
        self.dirty_index = layout.cell(f"{name}.dirty_index", 0, chunk=chunk)
        self.reset_index = layout.cell(f"{name}.reset_index", 0, chunk=chunk)
        self.fetch_index = layout.cell(f"{name} in userspace: fetch_index", 0, chunk=chunk)

    def position_key(self) -> str:
        return f"ring of vCPU{self.vcpu.number}"

    def at(self, index: int) -> Cell:
        """The entry for an index."""
        return self.entries[index % SIZE]

    def used(self, step: Step) -> int:
        """``kvm_dirty_ring_used``."""
        return int(step[self.dirty_index]) - int(step[self.reset_index])


def make_rings(
    layout: Layout, vcpus: Iterable[VcpuCells], options: frozenset[str]
) -> tuple[Ring, ...]:
    """A ring for each vCPU, if the VM has them."""
    return tuple(Ring(layout, vcpu) for vcpu in vcpus) if DIRTY_RING in options else ()


@dataclass(frozen=True, slots=True)
class PushDirty(Op):
    """``kvm_dirty_ring_push``: into the ring of the vCPU that runs here; without one, nothing."""

    rings: tuple[Ring, ...]
    slot: tuple[int, int]
    gfn: int

    def apply(self, step: Step, alternative: int) -> None:
        ring = next((r for r in self.rings if r.vcpu.thread == step.thread), None)
        if ring is None:
            return
        index = step[ring.dirty_index]
        if ring.used(step) >= SIZE:
            step.emit(Warned("kvm_dirty_ring_full"))
        step[ring.at(index)] = DirtyGfn(DIRTY, self.slot, self.gfn - self.slot[1], self.gfn)
        step[ring.dirty_index] = index + 1
        step.emit(PageMarkedDirty(self.slot[0], self.gfn, (ring.vcpu.number, index)))

    def describe(self) -> str:
        return f"kvm_dirty_ring_push(gfn {self.gfn:#x})"


@dataclass(frozen=True, slots=True)
class SoftFull(Op):
    """``kvm_dirty_ring_soft_full``: the vCPU is to leave for userspace."""

    ring: Ring

    def apply(self, step: Step, alternative: int) -> bool:
        return self.ring.used(step) >= SOFT_LIMIT

    def describe(self) -> str:
        return f"kvm_dirty_ring_soft_full(vCPU{self.ring.vcpu.number})"


@dataclass(frozen=True, slots=True)
class HarvestEntry(Op):
    """Userspace takes note of the next entry, and marks it as harvested; false if there is none."""

    ring: Ring

    def apply(self, step: Step, alternative: int) -> bool:
        ring = self.ring
        index = step[ring.fetch_index]
        entry: DirtyGfn = step[ring.at(index)]
        if entry.flags != DIRTY:
            return False
        step[ring.at(index)] = replace(entry, flags=RESET)
        step[ring.fetch_index] = index + 1
        ticket = (ring.vcpu.number, index)
        step.emit(DirtyRingHarvested(entry.slot[0], entry.gfn, ticket))
        return True

    def describe(self) -> str:
        return f"harvest an entry of vCPU{self.ring.vcpu.number}'s dirty ring"


@dataclass(frozen=True, slots=True)
class ForgeEntry(Op):
    """Userspace writes another offset into an entry."""

    ring: Ring
    index: int
    offset: int

    def apply(self, step: Step, alternative: int) -> None:
        entry: DirtyGfn = step[self.ring.at(self.index)]
        step[self.ring.at(self.index)] = replace(entry, offset=self.offset % U64)
        step.emit(DirtyRingForged(entry.slot[0], entry.gfn))

    def describe(self) -> str:
        return f"userspace: dirty_gfns[{self.index}].offset = {self.offset:#x}"


@dataclass(frozen=True, slots=True)
class TakeHarvested(Op):
    """The next entry that userspace has harvested, now invalid, with its ticket; else None."""

    ring: Ring

    def apply(
        self, step: Step, alternative: int
    ) -> tuple[tuple[int, int], int, tuple[int, int]] | None:
        ring = self.ring
        index = step[ring.reset_index]
        entry: DirtyGfn = step[ring.at(index)]
        if entry.flags != RESET:
            return None
        step[ring.at(index)] = EMPTY
        step[ring.reset_index] = index + 1
        return entry.slot, entry.offset, (ring.vcpu.number, index)

    def describe(self) -> str:
        return f"kvm_dirty_ring_reset(vCPU{self.ring.vcpu.number}): the next harvested entry"
