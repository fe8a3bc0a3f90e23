"""What the model changes and the kernel's tracepoint does not say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.conformance.replay.result import count
from tdpmmu.conformance.replay.traced import Changed
from tdpmmu.events.records import Event, SpteChanged

SPLIT = "children of split huge pages"
FREEZE = "present to frozen, until TLBs are flushed"
THAW = "frozen to non-present"
FIXED = "write access given back, which fast_page_fault traces"
OTHER = "others, of which no event tells old and new value"


class Untraced:
    """Counts by kind, from every write of an entry less those that were traced."""

    def __init__(self, fmt: SpteFormat, table: dict[str, int]) -> None:
        self._format = fmt
        self._table = table
        self._traced: Counter[tuple[int, int, int, int]] = Counter()

    def traced(self, what: Changed) -> None:
        """A change that the kernel traces as well."""
        self._traced[what.gfn, what.level, what.old, what.new] += 1
        fmt = self._format
        split = fmt.is_shadow_present(what.old) and fmt.is_last(what.old, what.level)
        if split and fmt.is_shadow_present(what.new) and not fmt.is_last(what.new, what.level):
            count(self._table, SPLIT, 512)

    def returned(self, events: Iterable[Event]) -> None:
        """All that a call has emitted."""
        fmt = self._format
        for event in events:
            if not isinstance(event, SpteChanged):
                continue
            key = (event.gfn, event.level, event.old, event.new)
            if self._traced[key]:
                self._traced[key] -= 1
            elif fmt.is_frozen(event.old):
                count(self._table, THAW)
            elif fmt.is_frozen(event.new):
                count(self._table, FREEZE)
            elif event.new & ~event.old == fmt.writable:
                count(self._table, FIXED)
            else:
                count(self._table, OTHER)
