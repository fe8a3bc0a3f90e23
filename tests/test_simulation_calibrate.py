"""Costs that a trace's timestamps tell: planted ones come out again."""

import pytest

from tdpmmu.simulation.calibrate import calibrate
from tdpmmu.trace.opening import open_trace

FAULT, TABLE, LEAF, FLUSH, SPLIT, FAST = 5, 3, 2, 40, 33, 4


class Lines:
    """Text of tracefs, written event by event."""

    def __init__(self):
        self.now = 1_000_000
        self.rows = []

    def put(self, after_us, text, pid=7, flags="...1."):
        self.now += after_us
        time = f"{self.now // 10**6}.{self.now % 10**6:06d}"
        self.rows.append(f"           vcpu0-{pid}     [000] {flags}    {time}: {text}\n")

    def fault(self, tables, extra=0):
        self.put(100, "kvm_page_fault: vcpu 0 rip 0x1000 address 0x1000 error_code 0x14")
        for _ in range(tables):
            page = "sp gen 0 gfn 0 l3 8-byte q0 direct wux nxe ad root 0 sync new"
            self.put(TABLE, f"kvm_mmu_get_page: {page}")
        set_spte = "kvm_mmu_set_spte: gfn 1 spte 2bd6ee7 (rwxu) level 1 at 7689008"
        self.put(FAULT + extra, set_spte)

    def zaps(self, count):
        for at in range(count):
            change = f"as id 0 gfn {at:x} level 1 old_spte 8000000002bd6ee7 new_spte 5a0"
            self.put(LEAF, f"kvm_tdp_mmu_spte_changed: {change}")
        self.put(50, "tracing_mark_write: DONE")


@pytest.fixture
def measured(tmp_path):
    def run(lines):
        path = tmp_path / "trace.txt"
        path.write_text("".join(lines.rows))
        with open_trace(str(path)) as trace:
            return {one.name: one for one in calibrate(trace)}

    return run


def test_planted_costs_come_out(measured):
    lines = Lines()
    for tables in (0, 1, 3, 0, 2, 0, 1):
        lines.fault(tables)
    lines.zaps(100)
    lines.zaps(200)
    lines.put(10, "kvm_flush_remote_tlbs <-kvm_tdp_mmu_zap_sp")
    lines.put(FLUSH, "tracing_mark_write: DONE")
    lines.put(10, "kvm_page_fault: vcpu 0 rip 0x1000 address 0x1000 error_code 0x14")
    fast = "vcpu 0 gva 1000 error_code W sptep 00000000f old 0x2bd6ee5 new 2bd6ee7 spurious 0"
    lines.put(FAST, f"fast_page_fault: {fast} fixed 1")
    lines.put(10, "tdp_mmu_split_huge_page <-kvm_tdp_mmu_map")
    lines.put(SPLIT, "kvm_mmu_split_huge_page: gfn 200 spte 800000000ce00ee7 level 2 errno 0")
    found = measured(lines)
    planted = {
        "page fault": FAULT,
        "page table made in a fault": TABLE,
        "SPTE of a table that goes": LEAF,
        "TLB flush": FLUSH,
        "fast page fault": FAST,
        "split of a huge page": SPLIT,
    }
    assert {name: found[name].ns for name in planted} == {
        name: pytest.approx(us * 1000) for name, us in planted.items()
    }
    assert found["SPTE of a table that goes"].count == 298
    assert found["RCU grace period"].ns is None


def test_one_slow_fault_does_not_rule_the_squares(measured):
    lines = Lines()
    for tables in (0, 1, 2, 0, 1, 2):
        lines.fault(tables)
    lines.fault(0, extra=9000)
    found = measured(lines)
    assert found["page fault"].ns == pytest.approx(FAULT * 1000)
    assert found["page fault"].count == 6


def test_what_is_not_in_the_trace_is_said(measured):
    lines = Lines()
    lines.put(1, "tracing_mark_write: DONE")
    found = measured(lines)
    assert all(one.ns is None and one.what.startswith("not told:") for one in found.values())
    assert {"VM exit and entry", "lock hand-over", "TLB refill"} <= set(found)


def test_lost_events_do_not_join_what_is_on_their_sides(measured):
    lines = Lines()
    lines.put(100, "kvm_page_fault: vcpu 0 rip 0x1000 address 0x1000 error_code 0x14")
    lines.rows.append("CPU:0 [LOST 12 EVENTS]\n")
    lines.put(900, "kvm_mmu_set_spte: gfn 1 spte 2bd6ee7 (rwxu) level 1 at 7689008")
    assert measured(lines)["page fault"].ns is None


def test_a_recorded_trace():
    with open_trace("tests/data/traces/6.12-tdp1/trace.dat.xz") as trace:
        found = {one.name: one for one in calibrate(trace)}
    told = {name for name, one in found.items() if one.ns is not None}
    assert told == {
        "page fault",
        "page table made in a fault",
        "fast page fault",
        "split of a huge page",
        "SPTE of a table that goes",
        "TLB flush",
        "RCU grace period",
    }
    # An emulated CPU with every SPTE change traced: microseconds, not nanoseconds.
    assert 1000 < found["SPTE of a table that goes"].ns < 10_000
