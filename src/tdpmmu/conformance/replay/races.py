"""What only the events of other threads tell: lost races, and when memslots were published.

``kvm_swap_active_memslots`` publishes the slots, waits for SRCU readers, and only then comes
``kvm_arch_commit_memory_region`` with its probe.  Faults in between use the new slots already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tdpmmu.arch.spte import Access
from tdpmmu.conformance.replay.calls import Call, Kind
from tdpmmu.conformance.replay.freezes import Freeze
from tdpmmu.trace.fields import SetSpte, SpteChange

_HUGE = 512


def find_publications(calls: Iterable[Call]) -> int:
    """Set ``published`` of the calls for which faults show that; how many there are."""
    faults = [call for call in calls if call.kind is Kind.FAULT and call.requested is not None]
    huge = {_frame(call) for call in faults if call.requested and call.requested.level > 1}
    found = 0
    for call in calls:
        if call.slot is None or call.kind not in _SIGNS:
            continue
        # A slot that goes is first marked invalid; its second publication follows the zap.
        since = call.seen[-1][0] if call.kind is Kind.SLOT_DELETE and call.seen else call.since
        until = call.last if call.kind is Kind.SLOT_DELETE else call.record.line
        lines = [
            fault.seen[0][0]
            for fault in faults
            if since < fault.seen[0][0] < until
            and call.slot.covers(fault.page)
            and _SIGNS[call.kind](fault, huge)
        ]
        # SRCU readers that go on beyond that moment cannot have begun before the publication.
        lines += [
            fault.record.line for fault in faults if since < fault.record.line < until < fault.last
        ]
        if lines:
            call.published = min(lines)
            found += 1
    return found


def _frame(call: Call) -> int:
    assert call.requested is not None
    return call.requested.pfn // _HUGE


def _shows_logging(fault: Call, huge: set[int]) -> bool:
    """It asks for 4 KiB where the host has a huge page, and is no fetch."""
    assert fault.requested is not None
    small = fault.requested.level == 1 and fault.access is not Access.EXEC
    return small and _frame(fault) in huge and not fault.mmio


def _shows_no_logging(fault: Call, huge: set[int]) -> bool:
    """It asks for a huge page or lists a table in place of one, or prefetches what is around."""
    assert fault.requested is not None
    prefetches = any(isinstance(one, SetSpte) and one.gfn != fault.page for _, one in fault.seen)
    return fault.requested.level > 1 or bool(fault.lists) or prefetches


def _shows_slot(fault: Call, huge: set[int]) -> bool:
    """It finds a page."""
    return not fault.mmio


def _shows_no_slot(fault: Call, huge: set[int]) -> bool:
    """It finds nothing."""
    return fault.mmio


_SIGNS = {
    Kind.LOG_ON: _shows_logging,
    Kind.LOG_OFF: _shows_no_logging,
    Kind.SLOT_CREATE: _shows_slot,
    Kind.SLOT_DELETE: _shows_no_slot,
}


def find_lost(calls: Iterable[Call], freezes: Sequence[Freeze]) -> None:
    """Mark the faults that asked for a page, set none, and were interfered with meanwhile.

    Or that came while another thread kept the entry frozen.
    """
    faults: dict[int, list[Call]] = {}
    ordered = sorted(calls, key=lambda call: call.record.line)
    following: dict[int, Call] = {}
    ends: dict[Call, float] = {}
    for call in reversed(ordered):
        after = following.get(call.pid)
        ends[call] = after.record.line if after is not None else float("inf")
        following[call.pid] = call
        if call.kind is Kind.FAULT and call.requested and call.leaf is None and not call.mmio:
            faults.setdefault(call.gfn // _HUGE, []).append(call)
            asked = call.seen[0][0]
            call.lost = any(one.pid != call.pid and one.covers(call.gfn, asked) for one in freezes)
    for other in ordered:
        for line, seen in other.seen:
            if not isinstance(seen, SpteChange) or seen.level > _MAX_LEVEL:
                continue
            for fault in faults.get(seen.gfn // _HUGE, ()):
                if other.pid != fault.pid and fault.seen[0][0] < line < ends[fault]:
                    fault.lost = True


_MAX_LEVEL = 2
"""Of entries that a fault for a gfn of one 2 MiB region may lose to somebody else."""
