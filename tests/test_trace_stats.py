"""``tdpmmu trace stats``: the kernel's own statistics rebuilt from its trace."""

from __future__ import annotations

import io
import json
import lzma
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tdpmmu.arch.spte import spte_format
from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.trace import trace_app
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.prog import read_prog
from tdpmmu.trace.records import TraceError
from tdpmmu.trace.stats import TraceStats, compare, trace_stats
from tdpmmu.trace.text import TraceReader

TRACES = Path(__file__).parent / "data" / "traces"
TDP = ("6.1-tdp1", "6.12-tdp1")
FAMILY = {"6.1-tdp1": "5.13 to 6.9", "6.12-tdp1": "6.10 or later"}
NPT = spte_format("npt", "6.12")
EPT = spte_format("ept", "6.12")
NONE = NPT.nonpresent

app = typer.Typer()
app.add_typer(trace_app, name="trace")


def trace_path(name: str) -> str:
    return str(TRACES / name / "trace.txt.xz")


def unpacked(name: str) -> bytes:
    return lzma.decompress(Path(trace_path(name)).read_bytes())


def prog_path(name: str) -> str:
    return str(TRACES / name / "prog.txt")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["trace", "stats", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


class Script:
    """Writes a trace as the kernel would, one entry a call."""

    def __init__(self, pid: int = 1) -> None:
        self.lines: list[str] = []
        self.pid = pid

    def add(self, rest: str, pid: int | None = None) -> None:
        number = len(self.lines) + 1
        self.lines.append(f"  vcpu-{pid or self.pid} [000] ..... {number}.000000: {rest}")

    def change(self, gfn: int, level: int, old: int, new: int, pid: int | None = None) -> None:
        self.add(
            f"kvm_tdp_mmu_spte_changed: as id 0 gfn {gfn:x} level {level} old_spte {old:x} "
            f"new_spte {new:x}",
            pid,
        )

    def fault(self, gfn: int, pfn: int, level: int, error_code: int = 0x14) -> None:
        self.add(
            f"kvm_page_fault: vcpu 0 rip 0x0 address {gfn << 12:#x} error_code {error_code:#x}"
        )
        self.add(f"kvm_mmu_spte_requested: gfn {gfn:x} pfn {pfn:x} level {level}")

    def build(self) -> None:
        for level in (4, 3):
            self.change(0, level, NONE, NPT.nonleaf(level))

    def split(self, gfn: int, pfn: int) -> None:
        """A fetch that takes a new table, for a frame that could be in a huge page."""
        self.fault(gfn, pfn, 1)
        self.change(gfn & ~511, 2, NONE, NPT.nonleaf(gfn))

    def mark(self, text: str) -> None:
        self.add(f"tracing_mark_write: {text}")

    def data(self) -> bytes:
        return "".join(line + "\n" for line in self.lines).encode()

    def stats(self) -> TraceStats:
        return trace_stats(TraceReader(io.BytesIO(self.data()), "t"))


def last_nx(script: Script) -> int | None:
    return script.stats().rows[-1].nx_lpage_splits


@pytest.mark.parametrize("name", TDP)
def test_all_statistics_are_the_kernels_own(name: str) -> None:
    with open_trace(trace_path(name)) as reader:
        result = trace_stats(reader)
    compared, differences = compare(result, read_prog(prog_path(name)), "prog")
    assert differences == []
    assert compared == 21 * 4
    assert result.exact
    assert (result.format_name, result.kernel_text) == ("npt", FAMILY[name])
    end = result.rows[-1]
    assert (end.pages_4k, end.pages_2m, end.pages_1g, end.nx_lpage_splits) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", TDP)
@pytest.mark.parametrize("stat", ["pages_4k", "pages_2m", "nx_lpage_splits"])
def test_comparison_covers_numbers_that_are_not_zero(name: str, stat: str) -> None:
    steps = read_prog(prog_path(name))
    assert len({step.stats.get(stat, 0) for step in steps if step.stats is not None}) > 2


def test_a_wrong_number_is_shown_and_exits_1(tmp_path: Path) -> None:
    prog = tmp_path / "prog.txt"
    prog.write_text(Path(prog_path("6.12-tdp1")).read_text().replace("=2050", "=2051"))
    code, output = run(trace_path("6.12-tdp1"), "--prog", str(prog))
    assert code == 1
    assert "2 of 84 numbers are not the kernel's own:" in output
    rows = [line.split() for line in output.splitlines() if line.endswith("2051")]
    assert rows == [
        ["4728", "18", "DONE", "x:1-8/2", "pages_4k", "2050", "2051"],
        ["4730", "21", "DONE", "r", "pages_4k", "2050", "2051"],
    ]
    code, output = run(trace_path("6.12-tdp1"), "--prog", str(prog), "--json")
    assert code == 1
    comparison = json.loads(output)["comparison"]
    assert comparison["compared"] == 84
    assert [one["kernel"] for one in comparison["differences"]] == [2051, 2051]


def test_output_for_people() -> None:
    code, output = run(trace_path("6.12-tdp1"), "--prog", prog_path("6.12-tdp1"))
    assert code == 0
    assert "npt, kernel 6.10 or later, found out; 38089 events, 36614 of them SPTE" in output
    rows = [line.split() for line in output.splitlines()]
    assert ["410", "17.091143", "DONE", "x:1-8", "4098", "23", "0", "9"] in rows
    assert "Exact: nothing was lost" in output
    assert "nx_lpage_splits inferred from faults" in output
    assert "All 84 numbers are the kernel's own." in output


def test_json() -> None:
    code, output = run(trace_path("6.1-tdp1"), "--json")
    assert code == 0
    result = json.loads(output)
    assert (result["format"], result["kernel"]) == ("npt", "5.13 to 6.9")
    assert (result["events"], result["spte_changes"], result["exact"]) == (31717, 30008, True)
    assert result["comparison"] is None
    assert len(result["markers"]) == 2 * 21 + 2
    assert result["markers"][0]["nx_lpage_splits"] == 0
    assert result["markers"][3] == {
        "line": 498,
        "time": 14.92177,
        "marker": "DONE x:1-8",
        "pages_4k": 10,
        "pages_2m": 23,
        "pages_1g": 0,
        "nx_lpage_splits": 9,
    }


def test_standard_input() -> None:
    data = Path(trace_path("6.1-tdp1")).read_bytes()
    result = CliRunner().invoke(app, ["trace", "stats", "-"], input=data)
    assert result.exit_code == 0
    assert "standard input: npt, kernel 5.13 to 6.9" in result.output


@pytest.mark.parametrize("name", ["6.12-tdp0", "6.12-npt0"])
def test_traces_of_the_legacy_mmu_have_nothing_to_rebuild(name: str) -> None:
    with pytest.raises(UsageError, match="ends without a kvm_tdp_mmu_spte_changed; expected"):
        run(trace_path(name))


def test_given_format_and_kernel() -> None:
    code, output = run(trace_path("6.12-tdp1"), "--kernel", "6.18", "--format", "npt")
    assert code == 0
    assert "npt, kernel 6.18; 38089 events" in output
    assert "Exact" in output
    with pytest.raises(UsageError, match=r"line 34: expected SPTEs of one of the known formats"):
        run(trace_path("6.12-tdp1"), "--kernel", "6.1")
    _, output = run(trace_path("6.12-tdp1"), "--kernel", "6.1", "--format", "npt")
    assert "Not exact from line 34 on:" in output
    with pytest.raises(UsageError, match=r"unknown kernel '2\.6': known are"):
        run(trace_path("6.12-tdp1"), "--kernel", "2.6")
    with pytest.raises(UsageError, match="has no shadow paging"):
        run(trace_path("6.12-tdp1"), "--format", "shadow")


def test_lost_events_are_reported_with_their_place(tmp_path: Path) -> None:
    lines = unpacked("6.12-tdp1").decode().splitlines(keepends=True)
    lines[599] = "CPU:1 [LOST 42 EVENTS]\n"
    path = tmp_path / "lost"
    path.write_text("".join(line for line in lines if not line.startswith("#")))
    code, output = run(str(path))
    assert code == 0
    assert "Not exact from line 588 on:\n  line 588: CPU 1 lost 42 events here" in output
    assert "Exact" not in output
    lines[599] = "CPU:1 [LOST EVENTS]\n"
    path.write_text("".join(line for line in lines if not line.startswith("#")))
    _, output = run(str(path), "--json")
    result = json.loads(output)
    assert not result["exact"]
    assert result["doubts"][0] == {
        "line": 588,
        "what": "CPU 1 lost an unknown number of events here",
    }


def test_overwritten_start_is_a_doubt(tmp_path: Path) -> None:
    script = Script()
    script.build()
    path = tmp_path / "trace"
    header = "# entries-in-buffer/entries-written: 2/12   #P:1\n"
    path.write_text(header + "".join(line + "\n" for line in script.lines))
    _, output = run(str(path))
    assert "line 1: the ring buffer overwrote 10 entries" in output


def test_only_markers_of_the_program_make_rows() -> None:
    script = Script()
    script.mark("STEP w")
    script.build()
    script.mark("anything else")
    script.change(512, 2, NONE, NPT.leaf(512, 2, write=True, execute=False))
    script.mark("DONE w")
    script.mark("END")
    script.add("a <-b")
    rows = script.stats().rows
    assert [(row.line, row.marker, row.pages_2m) for row in rows] == [
        (1, "STEP w", 0),
        (6, "DONE w", 1),
        (7, "END", 1),
        (8, "(end of trace)", 1),
    ]
    assert [row.time for row in rows] == [1.0, 6.0, 7.0, 8.0]


def test_get_page_of_the_fifth_level_sets_the_root_level() -> None:
    script = Script()
    page = "kvm_mmu_get_page: sp gen 0 gfn 0 l5 8-byte q0 direct wux nxe ad root 0 sync new"
    script.add(page)
    script.change(1 << 36, 5, NONE, NPT.nonleaf(5))
    script.change(1 << 36, 4, NONE, NPT.nonleaf(4))
    assert script.stats().exact


def test_unfit_values_after_the_detection_do_not_stop_the_reading() -> None:
    script = Script()
    script.build()
    script.change(0, 2, NONE, 0x5A0)
    assert script.stats().changes == 3


def test_split_of_a_fetch_counts_until_its_table_is_removed() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    assert last_nx(script) == 1
    script.change(0x200, 2, NPT.nonleaf(0x201), NONE)
    assert last_nx(script) == 0
    assert script.stats().exact


def test_split_in_a_removed_subtree_counts_no_more() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.split(0x401, 0x1201)
    assert last_nx(script) == 2
    script.change(0, 3, NPT.nonleaf(3), NONE)
    assert last_nx(script) == 0


@pytest.mark.parametrize(
    ("pfn", "level", "error_code"),
    [
        (0x1002, 1, 0x14),  # a small frame
        (0x1000, 1, 0x14),
        (0x1101, 1, 0x14),
        (0x1001, 2, 0x14),  # the mitigation did not lower the level
        (0x1001, 1, 0x6),  # a write
        (1 << 63 | 1, 1, 0x14),  # no memslot: KVM_PFN_NOSLOT, were it as well aligned
    ],
)
def test_other_faults_do_not_count(pfn: int, level: int, error_code: int) -> None:
    script = Script()
    script.build()
    script.fault(0x201, pfn, level, error_code)
    script.change(0x200, 2, NONE, NPT.nonleaf(9))
    assert last_nx(script) == 0


def test_tables_linked_above_the_split_do_not_count() -> None:
    script = Script()
    script.fault(0x1, 0x1, 1)
    for level in (4, 3, 2):
        script.change(0, level, NONE, NPT.nonleaf(level))
    assert last_nx(script) == 1


def test_1g_split_counts_if_1g_pages_are_in_use() -> None:
    script = Script()
    script.change(0, 4, NONE, NPT.nonleaf(4))
    script.change(1 << 18, 3, NONE, NPT.leaf(1 << 18, 3, write=True, execute=False))
    script.fault(0x1, 0x1, 1)
    script.change(0, 3, NONE, NPT.nonleaf(3))
    script.change(0, 2, NONE, NPT.nonleaf(2))
    assert last_nx(script) == 2


def test_prefetch_after_a_fetch_does_not_count() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.add("kvm_mmu_spte_requested: gfn 401 pfn 1201 level 1")
    script.change(0x400, 2, NONE, NPT.nonleaf(9))
    assert last_nx(script) == 1


def test_another_threads_fault_does_not_count() -> None:
    script = Script()
    script.build()
    script.fault(0x201, 0x1001, 1)
    script.change(0x200, 2, NONE, NPT.nonleaf(9), pid=2)
    assert last_nx(script) == 0


def test_table_for_another_gfn_does_not_count() -> None:
    script = Script()
    script.build()
    script.fault(0x201, 0x1001, 1)
    script.change(0x400, 2, NONE, NPT.nonleaf(9))
    assert last_nx(script) == 0


@pytest.mark.parametrize(
    ("write", "execute", "expected"), [(True, False, 1), (False, False, 0), (True, True, 0)]
)
def test_in_place_split(write: bool, execute: bool, expected: int) -> None:
    """Not under dirty logging (write-protected, MMU-writable), not if the leaf was executable."""
    script = Script()
    script.build()
    huge = NPT.leaf(0x1000, 2, write=write, execute=execute)
    script.change(0x200, 2, NONE, huge)
    script.fault(0x201, 0x1001, 1)
    script.change(0x200, 2, huge, NPT.nonleaf(9))
    assert last_nx(script) == expected


def test_executable_huge_page_means_no_mitigation() -> None:
    script = Script()
    script.build()
    script.change(0x400, 2, NONE, NPT.leaf(0x1000, 2, write=True, execute=True))
    script.split(0x201, 0x1001)
    assert last_nx(script) == 0


def test_dirty_logging_seen_in_function_lines() -> None:
    script = Script()
    script.build()
    script.add("kvm_mmu_slot_remove_write_access <-kvm_arch_commit_memory_region")
    script.add("kvm_flush_remote_tlbs <-kvm_arch_commit_memory_region")
    script.split(0x201, 0x1001)
    assert last_nx(script) == 0
    script.add("kvm_mmu_zap_collapsible_sptes <-kvm_arch_commit_memory_region")
    script.split(0x401, 0x1201)
    assert last_nx(script) == 1


def test_function_lines_before_the_first_change_are_not_forgotten() -> None:
    script = Script()
    script.add("kvm_tdp_mmu_wrprot_slot <-kvm_mmu_slot_remove_write_access")
    script.build()
    script.split(0x201, 0x1001)
    assert last_nx(script) == 0


def test_request_of_a_thread_that_never_faulted_is_no_fetch() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.add("kvm_mmu_spte_requested: gfn 401 pfn 1201 level 1", pid=5)
    script.change(0x400, 2, NONE, NPT.nonleaf(9), pid=5)
    assert last_nx(script) == 1


def test_removal_by_another_thread_than_the_worker_is_no_doubt() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.change(0x400, 2, NONE, NPT.nonleaf(9))
    script.change(0x400, 2, NPT.nonleaf(9), NONE, pid=5)
    assert script.stats().exact


def test_ept_faults_have_the_fetch_in_bit_2() -> None:
    for error_code, expected in ((0x184, 1), (0x181, 0), (0x182, 0)):
        script = Script()
        none = EPT.nonpresent
        for level in (4, 3):
            script.change(0, level, none, EPT.nonleaf(level))
        script.fault(0x201, 0x1001, 1, error_code)
        script.change(0x200, 2, none, EPT.nonleaf(9))
        assert last_nx(script) == expected


@pytest.mark.parametrize("missing", ["kvm_page_fault", "kvm_mmu_spte_requested"])
def test_without_the_faults_nx_splits_are_not_known(missing: str) -> None:
    script = Script()
    script.split(0x201, 0x1001)
    script.lines = [line for line in script.lines if missing not in line]
    result = script.stats()
    assert result.rows[-1].nx_lpage_splits is None
    assert result.nx_how.startswith("not known: enable the events kvm_page_fault and")


def test_not_known_in_the_recorded_trace(tmp_path: Path) -> None:
    lines = unpacked("6.12-tdp1").decode().splitlines(keepends=True)
    path = tmp_path / "trace"
    path.write_text("".join(x for x in lines if "kvm_page_fault" not in x and x[0] != "#"))
    code, output = run(str(path), "--prog", prog_path("6.12-tdp1"))
    assert code == 0
    assert "nx_lpage_splits not known: enable the events kvm_page_fault" in output
    assert "Exact" in output
    assert " not known\n" in output
    assert "All 63 numbers are the kernel's own." in output


@pytest.mark.parametrize("name", ["track_possible_nx_huge_page", "account_huge_nx_page"])
def test_function_lines_beat_the_inference(name: str) -> None:
    script = Script()
    script.build()
    script.fault(0x201, 0x1003, 1)  # not aligned like a huge page, but the kernel counts it
    script.change(0x200, 2, NONE, NPT.nonleaf(9))
    script.add(f"{name} <-kvm_tdp_mmu_map")
    script.split(0x401, 0x1201)  # looks like a split, but the kernel does not count it
    result = script.stats()
    assert result.rows[-1].nx_lpage_splits == 1
    assert result.nx_how == "counted from function lines"
    script.change(0x400, 2, NPT.nonleaf(0x401), NONE)
    assert last_nx(script) == 1
    script.change(0x200, 2, NPT.nonleaf(9), NONE)
    assert last_nx(script) == 0


def test_function_lines_make_faults_needless() -> None:
    script = Script()
    script.build()
    script.change(0x200, 2, NONE, NPT.nonleaf(9))
    script.add("track_possible_nx_huge_page <-kvm_tdp_mmu_map")
    assert last_nx(script) == 1


def test_function_lines_add_up() -> None:
    script = Script()
    script.build()
    for gfn in (0x200, 0x400):
        script.change(gfn, 2, NONE, NPT.nonleaf(9))
        script.add("track_possible_nx_huge_page <-kvm_tdp_mmu_map")
    assert last_nx(script) == 2


def test_first_function_line_discards_what_was_inferred() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.split(0x401, 0x1201)
    script.add("track_possible_nx_huge_page <-kvm_tdp_mmu_map")
    assert last_nx(script) == 1


def test_accounting_without_a_table_is_a_doubt() -> None:
    script = Script()
    script.build()
    script.add("track_possible_nx_huge_page <-kvm_tdp_mmu_map", pid=5)
    result = script.stats()
    assert result.doubts == [(3, "NX accounting by a thread that linked no table")]


def test_worker_that_keeps_a_table_under_dirty_logging() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.split(0x401, 0x1201)
    probe = "unaccount: (unaccount_nx_huge_page+0x4/0x50 [kvm]) gfn=0x400"
    script.add(probe, pid=9)
    assert last_nx(script) == 1
    script.change(0x400, 2, NPT.nonleaf(0x401), NONE)
    assert last_nx(script) == 1
    script.change(0x200, 2, NPT.nonleaf(0x201), NONE)
    assert last_nx(script) == 0


def test_worker_that_keeps_a_table_by_function_line() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.split(0x401, 0x1201)
    script.add("untrack_possible_nx_huge_page <-handle_removed_pt", pid=9)
    assert last_nx(script) == 2
    script.add("unaccount_nx_huge_page <-kvm_recover_nx_huge_pages", pid=9)
    assert last_nx(script) == 1
    script.change(0x200, 2, NPT.nonleaf(0x201), NONE)
    assert last_nx(script) == 1


@pytest.mark.parametrize(
    "line",
    [
        "kvm_tdp_mmu_zap_sp <-kvm_nx_huge_page_recovery_worker",
        "kvm_tdp_mmu_zap_possible_nx_huge_page <-kvm_recover_nx_huge_pages",
        "zap_sp: (kvm_tdp_mmu_zap_sp+0x0/0x60 [kvm]) gfn=0x200",
    ],
)
def test_recovery_of_a_table_that_was_not_counted_is_a_doubt(line: str) -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.add(line)
    script.change(0x200, 2, NPT.nonleaf(0x201), NONE)
    assert script.stats().exact
    script.fault(0x201, 0x1003, 1)
    script.change(0x200, 2, NONE, NPT.nonleaf(0x201))
    script.change(0x200, 2, NPT.nonleaf(0x201), NONE)
    assert script.stats().exact
    script.change(0x200, 2, NONE, NPT.nonleaf(0x201))
    script.add(line)
    script.change(0x200, 2, NPT.nonleaf(0x201), NONE)
    ((number, text),) = script.stats().doubts
    assert number == len(script.lines)
    assert "the recovery worker zaps the table of gfn 0x200, which was not counted" in text


def test_worker_of_6_18_stops_counting_before_it_zaps() -> None:
    script = Script()
    script.build()
    script.split(0x201, 0x1001)
    script.add("unaccount_nx_huge_page <-kvm_recover_nx_huge_pages", pid=9)
    script.add("kvm_tdp_mmu_zap_possible_nx_huge_page <-kvm_recover_nx_huge_pages", pid=9)
    script.change(0x200, 2, NPT.nonleaf(0x201), NONE, pid=9)
    assert last_nx(script) == 0
    assert script.stats().exact


def test_trace_and_log_of_different_runs(tmp_path: Path) -> None:
    prog = tmp_path / "prog.txt"
    log = Path(prog_path("6.12-tdp1")).read_text()
    prog.write_text(log.replace("DONE r", "DONE q", 1))
    with pytest.raises(UsageError, match=r'line 21: expected the step.*"DONE q".*"DONE r"'):
        run(trace_path("6.12-tdp1"), "--prog", str(prog))
    prog.write_text(log + "[   9999.0 ms] DONE more\n")
    with pytest.raises(UsageError, match=r'"DONE more" is not there, but its end'):
        run(trace_path("6.12-tdp1"), "--prog", str(prog))


def test_steps_without_statistics_are_passed_over(tmp_path: Path) -> None:
    prog = tmp_path / "prog.txt"
    log = Path(prog_path("6.12-tdp1")).read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(log) if line.startswith("  stats vm"))
    prog.write_text("".join(log[:first] + log[first + 1 :]))
    _, output = run(trace_path("6.12-tdp1"), "--prog", str(prog))
    assert "All 80 numbers are the kernel's own." in output


def test_broken_logs(tmp_path: Path) -> None:
    prog = tmp_path / "prog.txt"
    for content, words in (
        (b"", "line 1: no step with statistics; expected"),
        (b"[ 1.0 ms] DONE w\n", "line 1: no step with statistics; expected"),
        (b"\xff\xfe\x00", "not text; expected the program's log"),
    ):
        prog.write_bytes(content)
        with pytest.raises(TraceError, match=words):
            read_prog(str(prog))
    with pytest.raises(TraceError, match="No such file or directory; expected the program's log"):
        read_prog(str(tmp_path / "none"))
    with pytest.raises(TraceError, match="Is a directory"):
        read_prog(str(tmp_path))


@pytest.mark.parametrize(
    "what", ["cut", "garbled", "binary", "empty", "missing", "directory", "xz"]
)
def test_broken_traces_are_one_line_for_the_user(tmp_path: Path, what: str) -> None:
    data = unpacked("6.12-tdp1")
    path = tmp_path / "trace"
    if what == "directory":
        path.mkdir()
    elif what != "missing":
        path.write_bytes(
            {
                "cut": data[:100000],
                "garbled": data.replace(b"old_spte", b"old", 5),
                "binary": bytes(range(256)) * 9,
                "empty": b"",
                "xz": Path(trace_path("6.12-tdp1")).read_bytes()[:70000],
            }[what]
        )
    with pytest.raises(UsageError) as caught:
        run(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "expected" in message
    assert "line " in message or what in ("missing", "directory")


def fuzz_base() -> bytes:
    script = Script()
    script.mark("STEP w")
    script.build()
    script.split(0x201, 0x1001)
    script.change(0x201, 1, NONE, NPT.leaf(0x1001, 1, write=True, execute=True))
    script.add("zap_sp: (kvm_tdp_mmu_zap_sp+0x0/0x60 [kvm]) gfn=0x200")
    script.change(0x200, 2, NPT.nonleaf(0x201), NONE)
    script.change(0x201, 1, NPT.leaf(0x1001, 1, write=True, execute=True), NPT.removed)
    script.add("unaccount: (unaccount_nx_huge_page+0x4/0x50 [kvm]) gfn=0x400")
    script.add("track_possible_nx_huge_page <-kvm_tdp_mmu_map")
    script.add("kvm_mmu_split_huge_page: gfn 400 spte 800000000d000ee7 level 2 errno 0")
    return script.data()


BASE = fuzz_base()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(BASE)),
            st.integers(0, 20),
            st.one_of(st.binary(max_size=6), st.sampled_from([b"f" * 30, b"\n", b"9" * 5000])),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_damage_gives_a_result_or_one_line(damage: list[tuple[int, int, bytes]]) -> None:
    data = BASE
    for position, length, replacement in damage:
        data = data[:position] + replacement + data[position + length :]
    message = "t: line 1: as expected"
    try:
        result = trace_stats(TraceReader(io.BytesIO(data), "t"))
        assert result.rows[-1].marker == "(end of trace)"
    except TraceError as error:
        message = str(error)
    assert message.startswith("t: line ")
    assert "expected" in message
    assert "\n" not in message
