"""Rebuilding page tables from SPTE changes: what is traced, and what is not."""

from __future__ import annotations

import pytest

from tdpmmu.arch.spte import SpteFormat, spte_format
from tdpmmu.trace.detect import Detector
from tdpmmu.trace.fields import SpteChange
from tdpmmu.trace.tables import MAX_PROBLEMS, Applied, TdpTables

NPT = spte_format("npt", "6.12")
OLD = spte_format("npt", "6.1")


class Trace:
    """Feeds changes to tables, numbering the lines."""

    def __init__(self, fmt: SpteFormat) -> None:
        self.fmt = fmt
        self.tables = TdpTables(fmt)
        self.line = 0

    def change(
        self, gfn: int, level: int, old: int, new: int, pid: int = 1, as_id: int = 0
    ) -> Applied:
        self.line += 1
        return self.tables.apply(SpteChange(as_id, gfn, level, old, new), pid, self.line)

    def build(self, gfn: int, levels: tuple[int, ...] = (4, 3, 2), pid: int = 1) -> None:
        """Link tables down to the last of ``levels``, as page faults do."""
        for level in levels:
            base = gfn >> 9 * (level - 1) << 9 * (level - 1)
            self.change(base, level, self.fmt.nonpresent, self.fmt.nonleaf(level), pid)

    def check(self, *pages: int) -> None:
        """The leaves at levels 1, 2 and 3, by the events and by the tables, without problems."""
        counts = list(pages) + [0] * (3 - len(pages))
        assert self.tables.problems == []
        assert self.tables.pages[1:4] == counts
        assert self.tables.count_leaves()[1:4] == counts


def leaf(fmt: SpteFormat, pfn: int, level: int = 1, execute: bool = False) -> int:
    return fmt.leaf(pfn, level, write=True, execute=execute)


def test_leaves_are_counted_by_level() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(5, 1, NPT.nonpresent, leaf(NPT, 5))
    t.change(512, 2, NPT.nonpresent, leaf(NPT, 512, 2))
    t.change(1 << 18, 3, NPT.nonpresent, leaf(NPT, 1 << 18, 3))
    t.check(1, 1, 1)
    t.change(5, 1, leaf(NPT, 5), leaf(NPT, 5) & ~2)
    t.check(1, 1, 1)
    t.change(5, 1, leaf(NPT, 5) & ~2, NPT.nonpresent)
    t.change(512, 2, leaf(NPT, 512, 2), NPT.nonpresent)
    t.check(0, 0, 1)


def test_in_place_split_fills_512_untraced_entries() -> None:
    t = Trace(NPT)
    t.build(0, (4, 3))
    huge = leaf(NPT, 1024, 2)
    t.change(512, 2, NPT.nonpresent, huge)
    applied = t.change(512, 2, huge, NPT.nonleaf(9))
    assert applied.replaced_leaf
    assert applied.linked is not None
    t.check(512, 0)
    # The kernel makes the 4 KiB children executable: an exact old value, no volatile bits involved.
    t.change(512 + 7, 1, leaf(NPT, 1024 + 7, execute=True), NPT.nonpresent)
    t.check(511, 0)


def test_only_tables_are_linked_and_unlinked() -> None:
    t = Trace(NPT)
    linked = t.change(0, 4, NPT.nonpresent, NPT.nonleaf(4))
    assert linked.linked is not None
    assert (linked.linked.level, linked.linked.gfn) == (3, 0)
    assert (linked.replaced_leaf, linked.unlinked) == (False, None)
    t.build(0, (3, 2))
    for old, new in ((NPT.nonpresent, leaf(NPT, 1)), (leaf(NPT, 1), NPT.nonpresent)):
        applied = t.change(1, 1, old, new)
        assert (applied.linked, applied.unlinked, applied.replaced_leaf) == (None, None, False)


def test_table_stays_if_only_its_link_changes() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1))
    applied = t.change(0, 2, NPT.nonleaf(2), NPT.nonleaf(2) & ~NPT.accessed)
    assert (applied.linked, applied.unlinked) == (None, None)
    t.change(1, 1, leaf(NPT, 1), NPT.nonpresent)
    t.check(0)
    applied = t.change(0, 2, NPT.nonleaf(2), NPT.nonleaf(77))
    assert applied.unlinked is not None
    assert applied.linked is not None


def test_split_of_a_1g_page_gives_2m_pages() -> None:
    t = Trace(NPT)
    t.build(0, (4,))
    huge = leaf(NPT, 1 << 18, 3)
    t.change(0, 3, NPT.nonpresent, huge)
    t.change(0, 3, huge, NPT.nonleaf(9))
    t.check(0, 512, 0)
    t.change(3 << 9, 2, leaf(NPT, (1 << 18) + (3 << 9), 2), NPT.nonleaf(8))
    t.check(512, 511, 0)


def test_frozen_entry_may_be_found_nonpresent_up_to_6_9() -> None:
    t = Trace(OLD)
    t.build(0, (4, 3))
    huge = leaf(OLD, 1024, 2)
    t.change(512, 2, 0, huge)
    t.change(512, 2, huge, OLD.removed)
    t.check(0, 0)
    t.change(512, 2, 0, OLD.nonleaf(9))
    t.check(0, 0)


def test_nonpresent_entry_may_not_be_found_frozen() -> None:
    t = Trace(OLD)
    t.build(0)
    t.change(5, 1, OLD.removed, leaf(OLD, 5))
    assert t.tables.problems == [
        (4, "the level 1 entry of gfn 0x5 was 0x5a0, but the events before say 0x0")
    ]


def test_removed_table_reports_its_entries() -> None:
    t = Trace(NPT)
    base = 5 << 27 | 7 << 18 | 9 << 9
    t.build(base)
    for gfn in (1, 2):
        t.change(base + gfn, 1, NPT.nonpresent, leaf(NPT, gfn))
    applied = t.change(base, 2, NPT.nonleaf(2), NPT.nonpresent)
    assert applied.unlinked is not None
    assert (applied.unlinked.level, applied.unlinked.gfn) == (1, base)
    t.check(2)
    t.change(base + 1, 1, leaf(NPT, 1), NPT.removed)
    t.check(1)
    t.change(base + 2, 1, leaf(NPT, 2), NPT.removed)
    t.tables.finish(99)
    t.check(0)


def test_present_entries_that_a_removed_table_never_reported_are_a_problem() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1))
    t.change(0, 2, NPT.nonleaf(2), NPT.nonpresent)
    t.tables.finish(9)
    assert t.tables.problems == [
        (9, "1 present entries of the removed level 1 table of gfn 0x0 not reported")
    ]


def test_removed_table_and_its_successor_in_the_same_place() -> None:
    """Under the shared lock a fault can fill the place anew while the removal goes on."""
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1))
    t.change(0, 2, NPT.nonleaf(2), NPT.nonpresent, pid=7)
    t.change(0, 1, NPT.nonpresent, NPT.removed, pid=7)
    t.build(0, (2,), pid=1)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1), pid=1)
    t.check(2)
    t.change(1, 1, leaf(NPT, 1), NPT.removed, pid=7)
    t.check(1)
    t.change(1, 1, leaf(NPT, 1), NPT.nonpresent, pid=1)
    t.tables.finish(99)
    t.check(0)


def test_thread_that_removed_a_table_may_fill_its_successor() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(0, 2, NPT.nonleaf(2), NPT.nonpresent, pid=7)
    t.build(0, (2,), pid=1)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1), pid=7)
    t.change(1, 1, leaf(NPT, 1), NPT.nonpresent, pid=1)
    t.tables.finish(99)
    t.check(0)


def test_whole_subtree_is_removed_top_down() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1))
    t.change(512, 2, NPT.nonpresent, leaf(NPT, 512, 2))
    t.change(0, 3, NPT.nonleaf(3), NPT.nonpresent)
    inner = t.change(0, 2, NPT.nonleaf(2), NPT.removed)
    assert inner.unlinked is not None
    t.change(1, 1, leaf(NPT, 1), NPT.removed)
    t.change(512, 2, leaf(NPT, 512, 2), NPT.removed)
    t.tables.finish(99)
    t.check(0, 0)


def test_table_replaced_by_a_huge_leaf() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1))
    applied = t.change(0, 2, NPT.nonleaf(2), leaf(NPT, 0, 2))
    assert applied.unlinked is not None
    assert applied.linked is None
    t.change(1, 1, leaf(NPT, 1), NPT.removed)
    t.check(0, 1)


def test_hardware_and_fast_faults_change_entries_silently() -> None:
    t = Trace(NPT)
    t.build(0)
    clean = NPT.leaf(1, 1, write=False, execute=False, accessed=False)
    t.change(1, 1, NPT.nonpresent, clean)
    t.change(1, 1, clean | NPT.accessed, clean)
    t.change(1, 1, clean | NPT.writable | NPT.dirty, clean)
    t.check(1)
    t.tables.fast_page_fault(1, clean, clean | NPT.writable)
    t.change(1, 1, clean | NPT.writable, NPT.nonpresent)
    t.check(0)


@pytest.mark.parametrize("found", [leaf(NPT, 2), leaf(NPT, 1) & ~NPT.user, leaf(NPT, 1) | 1 << 63])
def test_other_differences_are_a_problem(found: int) -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1, execute=True))
    t.change(1, 1, found, NPT.nonpresent)
    assert [line for line, _ in t.tables.problems] == [5]


def test_w_is_not_silent_without_mmu_writable() -> None:
    t = Trace(NPT)
    t.build(0)
    protected = NPT.leaf(1, 1, write=False, execute=True, mmu_writable=False)
    t.change(1, 1, NPT.nonpresent, protected)
    t.change(1, 1, protected | NPT.writable, NPT.nonpresent)
    assert len(t.tables.problems) == 1


def test_generation_of_an_mmio_spte_is_not_silent() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, NPT.mmio(1, 4))
    t.change(1, 1, NPT.mmio(1, 12), NPT.mmio(1, 13))
    assert [line for line, _ in t.tables.problems] == [5]


def test_rwx_is_not_silent_with_ad_bits() -> None:
    ept = spte_format("ept", "6.12")
    t = Trace(ept)
    t.build(0)
    t.change(1, 1, ept.nonpresent, leaf(ept, 1, execute=True))
    t.change(1, 1, leaf(ept, 1, execute=False), ept.nonpresent)
    assert [line for line, _ in t.tables.problems] == [5]


def test_access_tracking_without_ad_bits_is_silent() -> None:
    ept = spte_format("ept", "6.12")
    spte = ept.leaf(1, 1, write=True, execute=True, accessed=False, dirty=False) | ept.ad_disabled
    t = Trace(ept)
    t.build(0)
    t.change(1, 1, ept.nonpresent, spte & ~7 | 5 << 54)
    t.change(1, 1, spte, ept.nonpresent)
    t.check(0)


def test_new_root_beside_an_invalid_one() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1))
    t.build(0, pid=2)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1), pid=2)
    t.check(2)
    # Zapping the old root, bottom up as in 6.12, leaves the new one alone.
    t.change(1, 1, leaf(NPT, 1), NPT.nonpresent, pid=3)
    t.change(0, 2, NPT.nonleaf(2), NPT.nonpresent, pid=3)
    t.change(0, 3, NPT.nonleaf(3), NPT.nonpresent, pid=3)
    t.change(0, 4, NPT.nonleaf(4), NPT.nonpresent, pid=3)
    t.check(1)
    t.change(2, 1, NPT.nonpresent, leaf(NPT, 2), pid=2)
    t.check(2)
    # The empty root goes when the next one comes.
    t.build(0, pid=4)
    t.tables.finish(99)
    t.check(2)


def test_address_spaces_are_apart() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1))
    for level in (4, 3, 2):
        t.change(0, level, NPT.nonpresent, NPT.nonleaf(level), as_id=1)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1), as_id=1)
    t.check(2)
    t.change(1, 1, leaf(NPT, 1), NPT.nonpresent, as_id=1)
    t.check(1)


def test_five_level_roots() -> None:
    t = Trace(NPT)
    t.tables.new_page(5)
    t.build(1 << 36, (5, 4, 3, 2))
    t.change((1 << 36) + 1, 1, NPT.nonpresent, leaf(NPT, 1))
    t.check(1)


def test_five_levels_seen_late() -> None:
    t = Trace(NPT)
    t.build(0)
    t.change(1, 1, NPT.nonpresent, leaf(NPT, 1))
    t.change(1 << 36, 5, NPT.nonpresent, NPT.nonleaf(6))
    t.build(1 << 36, (4, 3, 2))
    t.change((1 << 36) + 1, 1, NPT.nonpresent, leaf(NPT, 1))
    t.change(1, 1, leaf(NPT, 1), NPT.nonpresent)
    t.check(1)


def test_trace_that_begins_late_says_so_once() -> None:
    t = Trace(NPT)
    t.change(1, 1, leaf(NPT, 1), NPT.nonpresent)
    t.change(2, 1, leaf(NPT, 2), NPT.nonpresent)
    t.change(512, 2, NPT.nonleaf(2), NPT.nonpresent)
    t.change(512, 1, leaf(NPT, 7), NPT.removed)
    assert t.tables.pages[1] == -3
    assert len(t.tables.problems) == 1
    assert "before the trace began" in t.tables.problems[0][1]


def test_late_tables_are_kept_together() -> None:
    t = Trace(NPT)
    for gfn in (1, 513, 2):
        t.change(gfn, 1, leaf(NPT, gfn), leaf(NPT, gfn) & ~2)
    assert t.tables.pages[1] == 0
    assert t.tables.count_leaves()[1] == 3
    t.change(513, 1, leaf(NPT, 513) & ~2, NPT.nonpresent)
    assert t.tables.count_leaves()[1] == 2
    assert len(t.tables.problems) == 1


def test_problems_are_limited() -> None:
    t = Trace(NPT)
    t.build(0)
    for _ in range(MAX_PROBLEMS + 5):
        t.change(1, 1, leaf(NPT, 1), leaf(NPT, 1) & ~2)
        t.change(1, 1, NPT.nonpresent, NPT.removed)
    assert len(t.tables.problems) == MAX_PROBLEMS
    assert t.tables.more_problems == 110


@pytest.mark.parametrize("name", ["npt", "ept"])
@pytest.mark.parametrize("kernel", ["5.12", "6.1", "6.12"])
def test_detection_by_the_first_link(name: str, kernel: str) -> None:
    fmt = spte_format(name, kernel)
    detector = Detector()
    assert detector.feed(SpteChange(0, 0, 4, fmt.nonpresent, fmt.nonleaf(77)))
    assert detector.done
    assert (detector.format.name, detector.format.kernel) == (name, kernel)


def test_detection_with_help_and_without_hope() -> None:
    change = SpteChange(0, 0, 4, 0, NPT.nonleaf(77))
    narrowed = Detector(kernel="5.13")
    assert narrowed.feed(change)
    assert (narrowed.format.name, narrowed.format.kernel) == ("npt", "5.13")
    assert not Detector("ept").feed(change)
    assert Detector("ept", "6.12").feed(change)
    with pytest.raises(ValueError, match="the TDP MMU has no shadow paging"):
        Detector("shadow")
