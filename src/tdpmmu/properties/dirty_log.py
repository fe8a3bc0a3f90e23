"""Guest writes that userspace never hears of."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.arch.table import Header
from tdpmmu.events.records import (
    DirtyLogChanged,
    DirtyLogReturned,
    DirtyLogTaken,
    DirtyRingForged,
    DirtyRingHarvested,
    DirtyRingReset,
    EmulatedWrite,
    Event,
    GfnTracked,
    GfnUntracked,
    GuestAccess,
    GuestEntered,
    PageMarkedDirty,
    TornDown,
)
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Step
from tdpmmu.properties.base import Property


class DirtyLogComplete(Property):
    """Every guest write to a slot that is logged is on record.

    It is if the gfn was marked since the log was last taken, or if a call that has taken it has
    not returned yet: userspace reads the page after that.  In a dirty ring it is on record until
    userspace harvests that entry, and then until the entry is reset.

    Whoever makes a page writable without the lock may mark it a little later; a mark that never
    comes is missed at the end.  A write by KVM itself has to be marked before its vCPU goes on.

    The ghost: logged gfns, marked ones, taken ones, and KVM's own writes that are not marked; each
    gfn with its address space, and what is marked or taken with its ticket.
    """

    name: ClassVar[str] = "dirty-log"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a guest write is missing from the dirty log"
    hears: ClassVar[tuple[type[Event], ...]] = (
        DirtyLogChanged,
        PageMarkedDirty,
        DirtyLogTaken,
        DirtyLogReturned,
        DirtyRingHarvested,
        DirtyRingForged,
        DirtyRingReset,
        GuestAccess,
        EmulatedWrite,
        GuestEntered,
        TornDown,
    )
    initial: ClassVar[object] = (frozenset(), frozenset(), frozenset(), frozenset())
    history: ClassVar[bool] = True

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        logged, marked, taken, unmarked = step[self.cell]
        match event:
            case DirtyLogChanged(as_id, gfn, pages, on):
                gfns = {(as_id, gfn + i) for i in range(pages)}
                logged = logged | gfns if on else logged - gfns
                if not on:
                    marked = frozenset(one for one in marked if one[:2] not in gfns)
                    taken = frozenset(one for one in taken if one[:2] not in gfns)
            case PageMarkedDirty(as_id, gfn, ticket):
                # What goes into a ring leaves the CPU's own log.
                marked = marked - {(as_id, gfn, ())} | {(as_id, gfn, ticket)}
                unmarked = frozenset(w for w in unmarked if w[1:] != (as_id, gfn))
            case DirtyLogTaken(as_id, gfns_taken):
                out = {(as_id, gfn, ()) for gfn in gfns_taken}
                marked, taken = marked - out, taken | out
            case DirtyLogReturned(as_id):
                taken = frozenset(one for one in taken if one[0] != as_id)
            case DirtyRingHarvested(as_id, gfn, ticket):
                entry = {(as_id, gfn, ticket)}
                marked, taken = marked - entry, taken | entry
            case DirtyRingForged(as_id, gfn):
                logged = logged - {(as_id, gfn)}
            case DirtyRingReset(tickets):
                taken = frozenset(one for one in taken if one[2] not in tickets)
            case EmulatedWrite(vcpu, as_id, gfn):
                if (as_id, gfn) in logged:
                    unmarked = unmarked | {(vcpu, as_id, gfn)}
            case GuestEntered(vcpu):
                self._unmarked(step, frozenset(w for w in unmarked if w[0] == vcpu))
            case TornDown():
                self._unmarked(step, unmarked)
            case GuestAccess(vcpu, gfn, "write", False):
                where = (self._as_id(step, vcpu), gfn)
                on_record = any(one[:2] == where for one in marked | taken)
                if where in logged and not on_record:
                    unmarked = unmarked | {(-1, *where)}
        after = (logged, marked, taken, unmarked)
        if after != step[self.cell]:
            step[self.cell] = after

    def _unmarked(self, step: Step, writes: frozenset[tuple[int, int, int]]) -> None:
        for vcpu, _, gfn in sorted(writes):
            who = f"KVM, for vCPU{vcpu}," if vcpu >= 0 else "the guest"
            step.violate(self, f"{who} wrote gfn {gfn:#x}, which is logged, and left no trace")
            return

    def _as_id(self, step: Step, vcpu: int) -> int:
        hardware = self.hardware
        root = step[hardware.vcpus[vcpu].loaded][0]
        header: Header | None = step[hardware.page_by_number[root].header]
        return header.as_id if header is not None else 0


class TrackedWrite(Property):
    """A guest write to a gfn that is write-tracked never goes through: KVM has to see it."""

    name: ClassVar[str] = "tracked-write"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a guest writes a page table that KVM shadows, unseen"
    hears: ClassVar[tuple[type[Event], ...]] = (GfnTracked, GfnUntracked, GuestAccess)
    initial: ClassVar[object] = frozenset()
    history: ClassVar[bool] = True

    def observe(self, step: Step, event: Event) -> None:
        assert self.cell is not None
        if isinstance(event, GfnTracked):
            step[self.cell] = step[self.cell] | {(event.gfn, event.page)}
        elif isinstance(event, GfnUntracked):
            step[self.cell] = step[self.cell] - {(event.gfn, event.page)}
        elif isinstance(event, GuestAccess):
            write = event.kind == "write" and not event.fault
            if write and any(gfn == event.gfn for gfn, _ in step[self.cell]):
                step.violate(
                    self,
                    f"vCPU{event.vcpu} writes gfn {event.gfn:#x}, which is write-tracked, unseen",
                )
