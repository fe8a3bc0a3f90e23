"""The page tables that a run begins with, as the events that build them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tdpmmu.arch.hardware import Hardware
from tdpmmu.arch.table import Header, TablePage
from tdpmmu.machine.op import USED, Step
from tdpmmu.machine.state import Layout
from tdpmmu.render.kvm_events import KvmEvents

_NX_LISTS = ("lpage_disallowed_mmu_pages", "possible_nx_huge_pages[TDP].list")


def first_tables(
    hardware: Hardware, layout: Layout, events: KvmEvents, step: Step, mmu_class: type[Any]
) -> Iterator[str]:
    """One line for each event: tables from the root down, each counted as an NX split if it is.

    The function that counts is the one that this kernel has.
    """
    count = "account_huge_nx_page"
    if hasattr(mmu_class, "track_possible_nx_huge_page"):
        count = "track_possible_nx_huge_page"
    listed = {page for cell in layout.cells if cell.name in _NX_LISTS for page in step[cell]}
    builder = _Builder(hardware, events, step, f"{count} <-kvm_tdp_mmu_map", listed)
    for page in hardware.page_by_number.values():
        header: Header | None = step[page.header]
        if step[page.state] == USED and header is not None and header.root == page.number:
            if header.tdp:
                yield from events.padding(page, header)
            yield events.get_page(page, header, step)
            yield from builder.entries(page, header)


class _Builder:
    def __init__(
        self, hardware: Hardware, events: KvmEvents, step: Step, count: str, listed: set[TablePage]
    ) -> None:
        self._hardware = hardware
        self._events = events
        self._step = step
        self._count = count
        self._listed = listed
        self._done: set[TablePage] = set()

    def entries(self, page: TablePage, header: Header) -> Iterator[str]:
        """Every entry in use, a table's own entries right after its first link."""
        fmt, events, step = self._hardware.format, self._events, self._step
        size = self._hardware.geometry.pages(header.level)
        for index, cell in enumerate(page.entries):
            spte = step[cell]
            if spte == fmt.nonpresent:
                continue
            gfn = header.gfn + index * size
            present = fmt.is_shadow_present(spte)
            child = None
            if present and not fmt.is_last(spte, header.level):
                child = self._hardware.page_by_pfn.get(fmt.pfn(spte))
            below: Header | None = step[child.header] if child is not None else None
            if not header.direct and present:
                gfn = below.gfn if below else self._hardware.frame_gfn(fmt.pfn(spte))
            new = child not in self._done
            if child is not None and below is not None and new:
                self._done.add(child)
                yield events.get_page(child, below, step)
            if header.tdp:
                yield events.spte_changed(header.as_id, gfn, header.level, fmt.nonpresent, spte)
            elif present:
                yield events.set_spte(page, index, gfn, header.level, spte)
            if child is not None and below is not None and new:
                if header.tdp and child in self._listed:
                    yield self._count
                yield from self.entries(child, below)
