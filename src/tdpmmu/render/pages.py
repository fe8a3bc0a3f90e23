"""How many pages are mapped, as ``kvm_update_page_stats`` counts them: present leaves by level."""

from __future__ import annotations

from tdpmmu.arch.hardware import Hardware
from tdpmmu.arch.table import Header, TablePage
from tdpmmu.events.records import SpteChanged
from tdpmmu.machine.op import USED, Step
from tdpmmu.machine.state import State


class PageCounts:
    """``leaves[level]`` of one run, both MMUs together."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._format = hardware.format
        self.leaves = [0] * 6

    def start(self, state: State) -> None:
        """Count the leaves of all tables in use."""
        step = Step(state, 0)
        for page in self._hardware.page_by_number.values():
            if step[page.state] == USED:
                self._add_table(page, step)

    def take(self, change: SpteChanged, after: State) -> None:
        """One change; a table that takes a leaf's place brings its own leaves along."""
        was, now = self._is_leaf(change.old, change), self._is_leaf(change.new, change)
        self.leaves[change.level] += now - was
        fmt = self._format
        if was and not now and fmt.is_shadow_present(change.new):
            child = self._hardware.page_by_pfn.get(fmt.pfn(change.new))
            if child is not None:
                self._add_table(child, Step(after, 0))

    def _is_leaf(self, spte: int, change: SpteChanged) -> bool:
        return self._format.is_shadow_present(spte) and self._format.is_last(spte, change.level)

    def _add_table(self, page: TablePage, step: Step) -> None:
        header: Header | None = step[page.header]
        if header is not None:
            for _, level, spte in self._hardware.entries(step, page, header.gfn):
                self.leaves[level] += self._format.is_last(spte, level)
