"""One event of the kernel's against one of the model's."""

from __future__ import annotations

from typing import Any

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.conformance.replay.calls import Armed, MmioMarked, PageGot, PageZap, Seen
from tdpmmu.conformance.replay.names import Names
from tdpmmu.conformance.replay.result import Result, count
from tdpmmu.conformance.replay.traced import Changed, Fixed, Requested, Sets, What
from tdpmmu.trace.fields import FastPageFault, SetSpte, SpteChange, SpteRequested
from tdpmmu.worlds.live import Memory

BY_HARDWARE = "accessed and dirty bits set by hardware"

OTHERS = {
    SpteRequested: "levels asked for (kvm_mmu_spte_requested)",
    FastPageFault: "fast page faults",
    Armed: "words of the dirty log armed again",
    MmioMarked: "MMIO SPTEs marked",
    PageGot: "shadow pages found or made",
    PageZap: "shadow pages zapped",
}

_TRACED_AS: dict[type[Any], type[Any]] = {
    Requested: SpteRequested,
    Fixed: FastPageFault,
    Sets: SetSpte,
}


def traced_as(what: What) -> type[Any]:
    """What an event of the model's is in a trace, if it has events of that kind at all."""
    return _TRACED_AS.get(type(what), type(what))


class Comparison:
    """Tables by name; what hardware explains is counted in ``result``."""

    def __init__(self, fmt: SpteFormat, names: Names, memory: Memory, result: Result) -> None:
        self._format = fmt
        self._names = names
        self._memory = memory
        self._result = result
        self._hardware = fmt.accessed | fmt.dirty

    def agree(self, seen: Seen, what: What) -> bool:
        """Whether the model's event is the kernel's."""
        match seen, what:
            case SpteChange(), Changed():
                return self._same(seen, what)
            case SpteRequested(), Requested():
                return seen.level == what.level and seen.gfn == what.gfn
            case FastPageFault(), Fixed():
                return self._same_fix(seen, what)
            case SetSpte(), Sets():
                here = (seen.gfn, seen.level, seen.spte)
                return here == (what.gfn, what.level, what.spte)
        return seen == what

    def _same(self, seen: SpteChange, what: Changed) -> bool:
        """Bit for bit, tables by name; only hardware may have set accessed and dirty bits."""
        if (seen.as_id, seen.gfn, seen.level) != (what.as_id, what.gfn, what.level):
            return False
        if not self._same_bits(seen.old, seen.new, what, seen.level):
            return False
        if not self._same_table(seen.old, seen.new, seen.level):
            self._names.unlinked(seen.old, seen.level)
        return True

    def _same_fix(self, seen: FastPageFault, what: Fixed) -> bool:
        """The event's new value is what the entry holds when it is traced, not what was written."""
        now = self._memory[what.sptep.chunk][what.sptep.offset]
        if now != what.new and seen.new == now:
            seen = seen._replace(new=what.new)
        gfn = seen.address >> 12
        return gfn == what.gfn and self._same_bits(seen.old, seen.new, what, 1)

    def _same_bits(self, old_seen: int, new_seen: int, what: Changed | Fixed, level: int) -> bool:
        old = self._names.same(old_seen, what.old, level, bind=False)
        new = self._names.same(new_seen, what.new, level, bind=True)
        if old is None or new is None:
            return False
        if old or new:
            if old & ~self._hardware or old & what.old or new & ~old or new & what.new:
                return False
            count(self._result.explained, BY_HARDWARE)
            memory = self._memory
            if memory[what.sptep.chunk][what.sptep.offset] == what.new:
                memory[what.sptep.chunk][what.sptep.offset] = what.new | new
        return True

    def _same_table(self, old: int, new: int, level: int) -> bool:
        fmt = self._format
        return (
            fmt.is_shadow_present(new)
            and not fmt.is_last(new, level)
            and fmt.pfn(old) == fmt.pfn(new)
        )
