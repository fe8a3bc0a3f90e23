"""Runs of the model as tracefs text: the reader of real traces understands them."""

from __future__ import annotations

import io
import lzma
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner
from walks import walk

from tdpmmu.arch.hardware import AccessMemory
from tdpmmu.arch.spte import Access
from tdpmmu.arch.table import CmpXchgSpte, Header, WriteSpte
from tdpmmu.cli.main import app
from tdpmmu.events.records import PageLinked, SpteChanged
from tdpmmu.machine.op import QUEUED, USED, Op, Step
from tdpmmu.machine.state import State
from tdpmmu.render.ftrace import ftrace
from tdpmmu.render.ftrace_text import FtraceText, Task
from tdpmmu.render.interleaving import Scene
from tdpmmu.render.kvm_events import KvmEvents
from tdpmmu.render.spte_lines import SpteLines
from tdpmmu.render.x86 import X86
from tdpmmu.scenarios.base import Built
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.showing import scene_of
from tdpmmu.scenarios.token import attach_all, decode, make, reproduce
from tdpmmu.trace.fields import KNOWN_EVENTS, parse_fields
from tdpmmu.trace.records import Record
from tdpmmu.trace.stats import TraceStats, trace_stats
from tdpmmu.trace.text import TraceReader
from tdpmmu.versions.registry import kernel_class
from tdpmmu.worlds.explore.search import explore
from tdpmmu.worlds.replay import Record as Done

TRACES = Path(__file__).parent / "data" / "traces"
KERNELS = ("5.12-rc4", "5.12", "5.13", "6.1", "6.12", "6.18")
SCENARIOS = (
    NxRecovery(legacy=1, roots=1),
    NxRecovery(legacy=0, roots=2, format="ept", unmap=False),
    NxRecovery(legacy=0, roots=1, levels=4, flush="ranged"),
    Script(threads="vcpu0: w0 x0; t0: unmap:0; t1: recover", setup="x2 w0"),
    Script(threads="vcpu0: r0 w1; t0: get-log:0", setup="w1 w0", slots="0-1:log 2-3"),
    Script(threads="vcpu0: w0 x0; t0: zap-all-fast", setup="w0 x2", slots="0-1 2-3"),
)


def built_for(scenario: NxRecovery | Script, kernel: str) -> Built:
    mmu_class = kernel_class(kernel)
    built = scenario.build(mmu_class)
    attach_all(built, mmu_class)
    return built


def written(records: list[Done], built: Built, kernel: str) -> str:
    machine = built.machine
    names = [thread.name for thread in machine.threads]
    scene = Scene(built.kvm.hardware, machine.layout, names, kernel_class(kernel))
    return ftrace(records, scene, ["a comment"], "HARM nothing")


def stats_of(text: str) -> TraceStats:
    return trace_stats(TraceReader(io.BytesIO(text.encode()), "run"))


def leaves(built: Built, state: State) -> list[int]:
    """What the model's TDP tables map, by level from 4K."""
    hardware = built.kvm.hardware
    step = Step(state, 0)
    counts = [0] * 6
    for page in hardware.page_by_number.values():
        header: Header | None = step[page.header]
        if header is not None and header.tdp and step[page.state] in (USED, QUEUED):
            for _, level, spte in hardware.entries(step, page, header.gfn):
                counts[level] += hardware.format.is_last(spte, level)
    return counts[1:4]


# --- the round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_reader_rebuilds_what_the_model_has(kernel: str) -> None:
    seen: Counter[int] = Counter()
    for scenario in SCENARIOS:
        built = built_for(scenario, kernel)
        for seed in range(4):
            records = walk(built, seed)
            text = written(records, built, kernel)
            stats = stats_of(text)
            splits = text.count(": kvm_mmu_split_huge_page: ")
            row = stats.rows[-1]
            assert row.marker == "(end of trace)"
            rebuilt = [row.pages_4k, row.pages_2m, row.pages_1g]
            if splits:
                # A split in place has 512 children for the reader, and 2 in the model.
                continue
            assert stats.exact, stats.doubts
            assert rebuilt == leaves(built, records[-1].after)
            seen.update(rebuilt)
            family = {"6.12": "6.10 or later", "6.18": "6.10 or later"}.get(kernel, "")
            assert not family or stats.kernel_text == family
    assert seen[1] > 3
    assert sum(seen.values()) > seen[0]


def test_nx_splits_are_counted_from_the_run_too() -> None:
    built = built_for(Script(threads="vcpu0: x0", setup="x2"), "6.1")
    records = walk(built, 0)
    text = written(records, built, "6.1")
    rows = {row.marker: row.nx_lpage_splits for row in stats_of(text).rows}
    splits = next(cell for cell in built.machine.layout.cells if cell.name == "nx_lpage_splits")
    assert rows["DONE setup"] == Step(records[0].before, 0)[splits] == 1
    assert rows["DONE run"] == Step(records[-1].after, 0)[splits] == 2


def test_a_split_in_place_is_one_change_as_in_the_kernel() -> None:
    built = built_for(Script(threads="vcpu0: x0", setup="w0"), "6.12")
    records = walk(built, 0)
    text = written(records, built, "6.12")
    row = stats_of(text).rows[-1]
    assert leaves(built, records[-1].after) == [2, 0, 0]
    assert [row.pages_4k, row.pages_2m] == [512, 0]  # the reader's tables have 512 entries
    lines = bodies(text)
    at = next(i for i, line in enumerate(lines) if line.startswith("kvm_mmu_split_huge_page"))
    assert lines[at] == "kvm_mmu_split_huge_page: gfn 0 spte 8000000100000ee7 level 2 errno 0"
    assert re.fullmatch(
        r"kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 2 old_spte 8000000100000ee7 "
        r"new_spte 10\w+827",
        lines[at - 1],
    )


# --- the kernel's own form ------------------------------------------------------------------------


FUNCTION = re.compile(r"\S+ <-\S+$")


def bodies(text: str) -> list[str]:
    """What stands behind the time of each line."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [re.split(r" \d+\.\d{6}: ", line, maxsplit=1)[1] for line in lines]


def shape(body: str) -> str:
    """An event with every number as 9, whatever its base and length."""
    name, _, rest = body.partition(": ")
    rest = re.sub(r"\((\w+)\+0x\w+/0x\w+", r"(\1", rest)
    rest = re.sub(r"\b(?:0x)?[0-9a-f]+\b", "9", rest)
    rest = re.sub(r"\bl[1-5]\b", "l9", rest)
    return f"{name}: " + re.sub(r"\((r|-)(w|-)(x|-)(u|-)\)", "(rwxu)", rest)


@cache
def shapes_of_kernels() -> frozenset[str]:
    found = set()
    for folder in TRACES.iterdir():
        text = lzma.decompress((folder / "trace.txt.xz").read_bytes()).decode()
        found |= {shape(body) for body in set(bodies(text)) if not FUNCTION.match(body)}
    return frozenset(found)


def test_events_look_as_those_of_real_kernels() -> None:
    kernels = shapes_of_kernels()
    names = {one.partition(":")[0] for one in kernels} - {"tracing_mark_write"}
    compared: Counter[str] = Counter()
    for kernel, scenario in (("6.1", SCENARIOS[3]), ("6.12", SCENARIOS[4]), ("6.1", SCENARIOS[0])):
        built = built_for(scenario, kernel)
        for seed in range(8):
            for body in bodies(written(walk(built, seed), built, kernel)):
                name = body.partition(":")[0]
                # A root that is in use or invalid says so; the recorded ones were printed new.
                if name not in names or FUNCTION.match(body) or " invalid " in body:
                    continue
                form = shape(body)
                if name == "zap_sp_ret":
                    form = re.sub(r"\(\w+ \[", "(kvm_nx_lpage_recovery_worker [", form)
                assert form in kernels, body
                compared[name] += 1
    assert {
        "fast_page_fault",
        "flush",
        "flush_range",
        "free_sp",
        "kvm_mmu_get_page",
        "kvm_mmu_prepare_zap_page",
        "kvm_mmu_set_spte",
        "kvm_page_fault",
        "kvm_tdp_mmu_spte_changed",
        "zap_sp",
        "zap_sp_ret",
    } <= set(compared)


def test_every_line_is_an_entry_with_its_fields(tmp_path: Path) -> None:
    built = built_for(SCENARIOS[3], "6.1")
    records = walk(built, 0)
    text = written(records, built, "6.1")
    assert text.startswith("# tracer: function\n#\n# A run of tdpmmu's model of KVM, not of a")
    assert "one microsecond for each operation" in text
    assert "# a comment\n" in text
    reader = TraceReader(io.BytesIO(text.encode()), "run")
    times = []
    for record in reader:
        assert isinstance(record, Record)
        times.append(record.time)
        if record.event in KNOWN_EVENTS:
            assert parse_fields(record, reader) is not None
    assert reader.entries_in_buffer == reader.entries_written == len(times)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(records[-1].number / 1e6)


def test_shadow_paging_looks_as_in_a_real_kernel() -> None:
    script = Script(
        threads="shadow0: set:4[0]=1 r1 w0",
        setup="r0 w4",
        levels=3,
        pages=16,
        huge_level=1,
        tables="7: 6 3; 6: 5 -; 5: 0 2; 3: 4 -; 4: 5 7",
    )
    built = built_for(script, "6.12")
    kernels = shapes_of_kernels()
    compared: Counter[str] = Counter()
    for body in bodies(written(walk(built, 0), built, "6.12")):
        name = body.partition(":")[0]
        if name in ("kvm_mmu_get_page", "kvm_mmu_set_spte", "kvm_page_fault"):
            assert " direct " not in body
            # A new page is never unsync, nor read-only there; here it may be from the start.
            form = shape(body).replace(" unsync ", " sync ")
            assert re.sub(r"[-w][-u][-x](?= nxe)", "wux", form) in kernels, body
            compared[name] += 1
        assert not body.startswith("kvm_tdp_mmu")
    assert set(compared) == {"kvm_mmu_get_page", "kvm_mmu_set_spte", "kvm_page_fault"}


def test_a_host_fault_says_what_the_guest_wanted() -> None:
    for fmt, fetch in (("npt", "0x100000014"), ("ept", "0x184")):
        built = built_for(Script(threads="vcpu0: x0", format=fmt), "6.1")
        records = walk(built, 0)
        faults = [one for one in bodies(written(records, built, "6.1")) if "page_fault: vc" in one]
        assert faults == [
            f"kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000000000 error_code {fetch}"
        ]


def test_text_with_line_breaks_stays_in_its_line() -> None:
    text = FtraceText()
    text.put(Task("a thread with a long name", 7, 12), 1_000_002, "console: one\ntwo", 3)
    (line,) = text.text(1, ["a\nb"]).splitlines()[-1:]
    assert line == " a thread with a-7       [012] ...3.     1.000002: console: one two"
    (record,) = TraceReader(io.BytesIO(text.text(1, ["a\nb"]).encode()), "run")
    assert isinstance(record, Record)
    assert (record.task, record.pid, record.cpu, record.text) == (
        "a thread with a",
        7,
        12,
        "one two",
    )


# --- freezing -------------------------------------------------------------------------------------


class Made:
    """A record of one operation of a thread, as far as SPTE lines look at it."""

    def __init__(self, thread: int, op: Op, state: State) -> None:
        self.thread = thread
        self.op = op
        self.before = self.after = state
        self.result = True


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("6.1", ["old_spte d00ce7 new_spte 5a0"]),
        ("6.12", ["old_spte d00ce7 new_spte 8000000000000000"]),
    ],
)
def test_a_freeze_is_traced_as_this_kernel_does(kernel: str, expected: list[str]) -> None:
    built = built_for(NxRecovery(legacy=0, roots=1), kernel)
    hardware, state = built.kvm.hardware, built.machine.initial
    fmt = hardware.format
    page = hardware.page_by_number[0]
    events = KvmEvents(hardware, X86(hardware))

    def lines(*steps: tuple[int, int, int]) -> list[str]:
        sptes = SpteLines(hardware, events, {page.name: page})
        found = []
        for thread, old, new in steps:
            ends = old == fmt.removed and new == fmt.nonpresent
            cell = page.entries[0]
            op = WriteSpte(cell, new) if ends else CmpXchgSpte(cell, old, new)
            change = SpteChanged(page.name, 0, 0, 0, 0, 2, old, new)
            found += sptes.lines(Made(thread, op, state), change, ())  # type: ignore[arg-type]
        return [one.split("level 2 ")[1] for one in found]

    leaf = 0xD00CE7
    assert lines((0, leaf, fmt.removed), (0, fmt.removed, fmt.nonpresent)) == expected
    # Whoever overwrites another's frozen entry is traced.
    other = lines((0, leaf, fmt.removed), (1, fmt.removed, leaf))
    assert other[-1] == f"old_spte {fmt.removed:x} new_spte d00ce7"


def test_a_dirty_bit_that_hardware_sets_is_not_traced() -> None:
    built = built_for(NxRecovery(legacy=0, roots=1), "6.1")
    hardware, state = built.kvm.hardware, built.machine.initial
    fmt = hardware.format
    page = hardware.page_by_number[0]
    sptes = SpteLines(hardware, KvmEvents(hardware, X86(hardware)), {page.name: page})
    clean = fmt.leaf(0x100000, 2, write=True, execute=False, dirty=False)
    change = SpteChanged(page.name, 0, 0, 0, 0, 2, clean, clean | fmt.dirty)
    access = AccessMemory(hardware, hardware.vcpus[0], 0, Access.WRITE)
    assert sptes.lines(Made(0, access, state), change, ()) == []  # type: ignore[arg-type]
    software = WriteSpte(page.entries[0], clean | fmt.dirty)
    assert len(sptes.lines(Made(0, software, state), change, ())) == 1  # type: ignore[arg-type]


# --- numbers --------------------------------------------------------------------------------------


def test_numbers_are_spread_over_the_bits_of_x86() -> None:
    built = built_for(NxRecovery(levels=3, fanout=2), "6.12")
    hardware = built.kvm.hardware
    x86, fmt = X86(hardware), hardware.format
    assert [x86.gfn(gfn) for gfn in range(5)] == [0, 1, 0x200, 0x201, 0x40000]
    assert x86.pages(0, 2) == 0x200
    assert x86.pages(2, 2) == 0x40000 - 0x200
    huge = fmt.leaf(0x100002, 2, write=True, execute=False)
    assert fmt.pfn(x86.spte(huge, 2)) == 0x100200
    assert x86.spte(huge, 2) ^ huge == 0x100002 << 12 ^ 0x100200 << 12
    table = fmt.nonleaf(0x1003)
    assert x86.spte(table, 2) == table
    assert x86.spte(fmt.mmio(2, 1), 1) == fmt.mmio(0x200, 1)
    assert x86.spte(fmt.nonpresent, 1) == fmt.nonpresent


# --- the command ----------------------------------------------------------------------------------


@cache
def token() -> str:
    scenario = NxRecovery(legacy=0)
    built = built_for(scenario, "5.12-rc4")
    result = explore(built.machine).result
    found = next(one for one in result.violations if one.prop == "stale-translation")
    return make(scenario, "5.12-rc4", (), found).encode()


def test_explain_writes_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run.txt"
    result = CliRunner().invoke(app, ["explain", token(), "--ftrace", str(out)])
    assert result.exit_code == 0, result.output
    assert result.output == ""
    text = out.read_text()
    assert f"# Replay it: tdpmmu explain {token()}\n" in text
    assert "setup-1000    [000] .....     0.0001" in text
    assert ": tracing_mark_write: HARM stale-translation\n" in text
    shown = CliRunner().invoke(app, ["explain", token(), "--ftrace", "-"])
    assert shown.output == text
    stats = CliRunner().invoke(app, ["trace", "stats", str(out)])
    assert "Exact: nothing was lost" in stats.output


def test_what_the_run_shows_is_in_the_text() -> None:
    done = reproduce(decode(token()))
    lines = bodies(ftrace(done.records, scene_of(done), [], "HARM"))
    names = Counter(line.partition(" ")[0] for line in lines)
    changes = [e for r in done.records for e in r.events if isinstance(e, SpteChanged)]
    links = [e for r in done.records for e in r.events if isinstance(e, PageLinked)]
    setup = lines.index("tracing_mark_write: DONE setup")
    during = [line for line in lines[setup:] if line.startswith("kvm_tdp_mmu_spte_changed")]
    assert len(during) == len(changes)
    assert len([one for one in lines[setup:] if one.startswith("kvm_mmu_get_page")]) >= len(links)
    assert names["flush:"] == names["flush_ret:"] > 0
    assert names["zap_sp:"] == names["zap_sp_ret:"] == 1
    assert "tracing_mark_write: HostPageReused gfn 0x0 pfn 0x100000 pages 0x200" in lines


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "where", tmp_path):
        result = CliRunner().invoke(app, ["explain", token(), "--ftrace", str(path)])
        assert str(path) in str(result.exception)
        assert "expected a file to write" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
