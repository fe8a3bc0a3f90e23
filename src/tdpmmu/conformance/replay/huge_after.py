"""Where the host has huge pages as dirty logging ends, which only later faults tell.

Of the leaves that ``kvm_rmap_zap_collapsible_sptes`` zaps no event tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tdpmmu.conformance.replay.calls import Call, Kind

_HUGE = 512


def huge_after(
    calls: Iterable[Call], log_off: Call, unmapped: Callable[[Call], Iterable[int]]
) -> set[int]:
    """The 2 MiB regions whose next fault asks for a huge page, with no unmap before it.

    A huge mapping of the host's cannot come to be without an unmap, so it was there already.
    ``unmapped`` are the regions of an unmap.
    """
    known: set[int] = set()
    huge: set[int] = set()
    for call in calls:
        if call.record.line <= log_off.record.line:
            continue
        if call.kind is Kind.LOG_ON:
            break
        if call.kind is Kind.UNMAP:
            known.update(unmapped(call))
        elif call.requested is not None and not call.mmio:
            region = call.page // _HUGE
            if region not in known and call.requested.level > 1:
                huge.add(region)
            known.add(region)
    return huge
