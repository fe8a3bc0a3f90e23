"""The page tables of one state as a tree."""

from __future__ import annotations

from collections.abc import Iterator

from tdpmmu.arch.hardware import Hardware
from tdpmmu.arch.table import Header, TablePage
from tdpmmu.machine.op import FREED, QUEUED, USED, Step
from tdpmmu.machine.state import State
from tdpmmu.render import spte
from tdpmmu.render.report.rows import BUSY, LEAF, NONE, PLAIN, ROOT, STALE, TABLE, Row

_SMALL = 8
"""Tables of up to so many entries are shown with those that are empty."""


class TableView:
    """The tables of one VM."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._pages = list(hardware.page_by_number.values())

    def rows(self, state: State) -> list[Row]:
        """Roots with all below them, then tables that no root leads to any more."""
        return list(_Walk(self._hardware, self._pages, state).rows())


class _Walk:
    def __init__(self, hardware: Hardware, pages: list[TablePage], state: State) -> None:
        self._hardware = hardware
        self._pages = pages
        self._step = Step(state, 0)
        self._seen: set[int] = set()

    def rows(self) -> Iterator[Row]:
        step = self._step
        loaded = {root for vcpu in self._hardware.vcpus for root in step[vcpu.loaded]}
        for page in self._pages:
            header: Header | None = step[page.header]
            if header is None or step[page.state] not in (USED, QUEUED):
                continue
            if page.number in loaded or (header.root == page.number and step[page.state] == USED):
                yield self._root(page, header)
                yield from self._entries(page, header, 0, 1)
        for page in self._detached():
            header = step[page.header]
            yield self._unlinked(page, header)
            if header is not None:
                # Where a shadow page was only the way to it says.
                address = header.gfn if header.direct else 0
                yield from self._entries(page, header, address, 1)
        for page in self._pages:
            if step[page.state] == FREED and (who := self._walkers(page)):
                text = f"freed; {who} may still walk it"
                yield Row(page.name, 0, page.name, text, STALE)

    def _detached(self) -> Iterator[TablePage]:
        """Tables in use that no root leads to: those first that no other leads to either."""
        step = self._step
        left = [
            page
            for page in self._pages
            if step[page.state] in (USED, QUEUED) and page.number not in self._seen
        ]
        for page in sorted(left, key=lambda one: -self._level(one)):
            if page.number not in self._seen:
                yield page

    def _level(self, page: TablePage) -> int:
        header: Header | None = self._step[page.header]
        return header.level if header is not None else 0

    def _root(self, page: TablePage, header: Header) -> Row:
        step = self._step
        users = [
            f"vCPU{vcpu.number}"
            for vcpu in self._hardware.vcpus
            if page.number in step[vcpu.loaded]
        ]
        kind = f"root of address space {header.as_id}" if header.tdp else "root of shadow pages"
        if not header.direct:
            kind += f", of the guest's table in gfn {header.gfn:#x}"
        notes = [f"loaded by {', '.join(users)}" if users else "loaded by nobody"]
        notes += [f"root_count {step[page.root_count]}"]
        notes += ["invalid"] if step[page.invalid] else []
        return Row(page.name, 0, page.name, kind, ROOT, ", ".join(notes))

    def _unlinked(self, page: TablePage, header: Header | None) -> Row:
        step = self._step
        waits = step[page.state] == QUEUED
        text = "waits for a grace period" if waits else "no longer, or not yet, linked"
        size = f"{spte.size(header.level)} entries" if header is not None else ""
        if header is not None and not header.direct:
            size += f" of the guest's table in gfn {header.gfn:#x}"
        who = self._walkers(page)
        note = f"{who} may still walk it" if who else ""
        return Row(page.name, 0, page.name, text, BUSY, ", ".join(filter(None, (size, note))))

    def _walkers(self, page: TablePage) -> str:
        """The vCPUs that may hold an entry that leads to a table."""
        fmt = self._hardware.format
        return ", ".join(
            f"vCPU{vcpu.number}"
            for vcpu in self._hardware.vcpus
            if any(
                not fmt.is_last(held, level) and fmt.pfn(held) == page.pfn
                for _, _, level, held in self._hardware.usable(self._step, vcpu)
            )
        )

    def _entries(self, page: TablePage, header: Header, address: int, depth: int) -> Iterator[Row]:
        self._seen.add(page.number)
        hardware, step = self._hardware, self._step
        fmt = hardware.format
        size = hardware.geometry.pages(header.level)
        for index, cell in enumerate(page.entries):
            value, at = step[cell], address + index * size
            if value in (0, fmt.nonpresent) and len(page.entries) > _SMALL:
                continue
            child = None
            if fmt.is_shadow_present(value) and not fmt.is_last(value, header.level):
                child = hardware.page_by_pfn.get(fmt.pfn(value))
            yield self._entry(page, header, index, value, at, depth, child)
            below: Header | None = step[child.header] if child is not None else None
            if child is not None and below is not None and child.number not in self._seen:
                yield from self._entries(child, below, at, depth + 1)

    def _entry(
        self,
        page: TablePage,
        header: Header,
        index: int,
        value: int,
        at: int,
        depth: int,
        child: TablePage | None,
    ) -> Row:
        fmt = self._hardware.format
        step = self._step
        text = spte.value(self._hardware, value, header.level)
        kind, note = LEAF, ""
        if child is not None:
            kind = TABLE
            notes = []
            if step[child.header] is None:
                kind, notes = STALE, ["freed"]
            elif child.number in self._seen:
                notes.append("shown above")
            if step[child.nx_huge_page_disallowed]:
                notes.append("NX huge page disallowed")
            note = ", ".join(notes)
        elif text == "none":
            kind = NONE
        elif fmt.is_frozen(value):
            kind = BUSY
        elif not fmt.is_shadow_present(value):
            kind = PLAIN
        where = f"{'gfn' if header.direct else 'address'} {at:#x} {spte.size(header.level)}"
        label = f"{page.name}[{index}]"
        return Row(label, depth, label, f"{where}: {text}", kind, note, f"SPTE {value:#x}")
