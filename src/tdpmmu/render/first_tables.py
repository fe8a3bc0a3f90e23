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
    used: list[tuple[bool, int, int, TablePage, Header]] = []
    for page in hardware.page_by_number.values():
        header: Header | None = step[page.header]
        if step[page.state] == USED and header is not None:
            below = header.root != page.number
            used.append((below, -header.level, page.number, page, header))
    # Roots come first, with what is below them; then shadow pages, which do not know their root.
    for below, _, _, page, header in sorted(used, key=lambda one: one[:3]):
        if header.tdp and not below:
            yield from events.padding(page, header)
        yield from builder.table(page, header)


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

    def table(self, page: TablePage, header: Header) -> Iterator[str]:
        """A table and all below it, unless it was there already."""
        if page not in self._done:
            self._done.add(page)
            yield self._events.get_page(page, header, self._step)
            yield from self._entries(page, header)

    def _entries(self, page: TablePage, header: Header) -> Iterator[str]:
        """Every entry in use, a table's own entries right after its first link."""
        fmt, events, step = self._hardware.format, self._events, self._step
        size = self._hardware.geometry.pages(header.level)
        for index, cell in enumerate(page.entries):
            spte = step[cell]
            if spte == fmt.nonpresent:
                continue
            gfn = header.gfn + index * size
            present = fmt.is_shadow_present(spte)
            below = self._below(spte, header) if present else None
            if not header.direct and present:
                gfn = below[1].gfn if below else self._hardware.frame_gfn(fmt.pfn(spte))
            if below is not None and below[0] in self._done:
                below = None
            if below is not None:
                self._done.add(below[0])
                yield events.get_page(*below, step)
            if header.tdp:
                yield events.spte_changed(header.as_id, gfn, header.level, fmt.nonpresent, spte)
            elif present:
                yield events.set_spte(page, index, gfn, header.level, spte)
            if below is not None:
                if header.tdp and below[0] in self._listed:
                    yield self._count
                yield from self._entries(*below)

    def _below(self, spte: int, header: Header) -> tuple[TablePage, Header] | None:
        """The table that a present entry links; None for a leaf."""
        fmt = self._hardware.format
        if fmt.is_last(spte, header.level):
            return None
        child = self._hardware.page_by_pfn.get(fmt.pfn(spte))
        found: Header | None = self._step[child.header] if child is not None else None
        return (child, found) if child is not None and found is not None else None
