"""Timelines for the Perfetto UI, decoded again: of the model's runs and of real kernels' traces."""

from __future__ import annotations

import io
import lzma
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pftrace
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pftrace import Track
from test_ftrace import SCENARIOS, TRACES, built_for, token, written
from typer.testing import CliRunner
from walks import walk

from tdpmmu.cli.main import app
from tdpmmu.events import records as ev
from tdpmmu.machine.op import Step
from tdpmmu.render.interleaving import Scene
from tdpmmu.render.names import KernelNames
from tdpmmu.render.pages import PageCounts
from tdpmmu.render.perfetto import write_timeline
from tdpmmu.scenarios.script import Script
from tdpmmu.scenarios.showing import scene_of
from tdpmmu.scenarios.token import Reproduction, decode, reproduce
from tdpmmu.timeline.builder import Timeline
from tdpmmu.trace.detect import Detector
from tdpmmu.trace.perfetto import Conversion
from tdpmmu.trace.prog import read_prog
from tdpmmu.trace.records import TraceError
from tdpmmu.trace.survey import survey
from tdpmmu.trace.text import TraceReader
from tdpmmu.versions.registry import kernel_class
from tdpmmu.worlds.replay import Record

COUNTERS = ("pages_4k", "pages_2m", "pages_1g")
RETURNS = {"6.1-tdp1": 14, "6.12-tdp1": 13}
"""How many times the worker zaps a table, as ``zap_sp_ret`` in the trace says."""


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def trace_file(name: str) -> str:
    return str(TRACES / name / "trace.txt.xz")


def trace_text(name: str) -> str:
    return lzma.decompress((TRACES / name / "trace.txt.xz").read_bytes()).decode()


# --- the builder ----------------------------------------------------------------------------------


def test_a_timeline_is_what_was_put_into_it() -> None:
    out = io.BytesIO()
    timeline = Timeline(out, "title")
    group = timeline.track("group")
    track, pages = timeline.track("one", group), timeline.counter("pages", "pages", group)
    timeline.begin(track, 10, "outer", {"a": "b"})
    timeline.begin(track, 20, "inner")
    timeline.instant(track, 25, "now", {"n": 3})
    timeline.end(track, 30, {"ret": 1})
    timeline.count(pages, 12, 5)
    timeline.count(pages, 13, 5)
    timeline.instant(track, 5, "late")  # no track goes back in time
    timeline.close(40)
    tracks = pftrace.read(out.getvalue())
    assert list(tracks) == ["", "group", "group/one", "group/pages"]
    one = tracks["group/one"]
    assert [(s.begin, s.end, s.name, s.depth, s.notes) for s in one.slices()] == [
        (20, 30, "inner", 1, {"ret": 1}),
        (10, 40, "outer", 0, {"a": "b"}),
    ]
    assert [(i.time, i.name, i.notes) for i in one.instants()] == [
        (25, "now", {"n": 3}),
        (30, "late", {}),
    ]
    assert [(row.time, row.value) for row in tracks["group/pages"].rows] == [(12, 5)]
    with pytest.raises(ValueError, match="no slice is open"):
        timeline.end(track, 50)


def test_a_state_lasts_until_the_next() -> None:
    out = io.BytesIO()
    timeline = Timeline(out, "title")
    track = timeline.track("state")
    for time, name in ((1, "a"), (2, "a"), (3, "b"), (4, ""), (5, ""), (6, "c")):
        timeline.state(track, time, name)
    timeline.close(9)
    slices = pftrace.read(out.getvalue())["state"].slices()
    assert [(s.begin, s.end, s.name) for s in slices] == [(1, 3, "a"), (3, 4, "b"), (6, 9, "c")]


# --- runs of the model ----------------------------------------------------------------------------


@cache
def stale() -> Reproduction:
    return reproduce(decode(token()))


def timeline_of(records: list[Record], scene: Scene) -> dict[str, Track]:
    out = io.BytesIO()
    write_timeline(out, records, scene, stale().token, "run")
    return pftrace.read(out.getvalue())


@cache
def shown() -> dict[str, Track]:
    done = stale()
    return timeline_of(list(done.records), scene_of(done))


def test_there_is_a_track_for_each_vcpu_tlb_lock_thread_and_the_vm() -> None:
    assert {
        "what the run shows",
        "threads/nx recovery",
        "threads/vCPU0",
        "threads/host",
        "vCPUs/vCPU0",
        "vCPUs/TLB of vCPU0",
        "vCPUs/TLB of vCPU1",
        "locks/mmu_lock",
        "locks/rcu",
        "VM/pages_4k",
        "VM/SPTE changes",
        "VM/TLB flushes",
    } <= set(shown())


def test_every_operation_is_a_slice_inside_the_functions_it_is_in() -> None:
    done = stale()
    slices = [s for name, t in shown().items() if name.startswith("threads/") for s in t.slices()]
    operations = {s.notes["step"]: s for s in slices if "step" in s.notes}
    assert sorted(operations) == [record.number for record in done.records]
    for record in done.records:
        found = operations[record.number]
        assert (found.begin, found.end) == (record.number * 1000, record.number * 1000 + 1000)
        assert found.notes["operation"] == record.op.describe()
    names = KernelNames(done.subject.mmu_class)
    for record in done.records:
        track = shown()[f"threads/{record.name}"]
        now = record.number * 1000
        around = [s for s in track.slices() if s.begin <= now < s.end and "step" not in s.notes]
        chain = tuple(s.name for s in sorted(around, key=lambda s: s.depth))
        assert chain == names.chain(record.place), record.number


def test_a_tlb_shows_when_what_it_may_hold_is_stale() -> None:
    done = stale()
    track = shown()["vCPUs/TLB of vCPU0"]
    assert "stale: 1" in track.slices()[-1].name
    notes = [row.name for row in shown()["what the run shows"].instants()]
    assert "stale from here: vCPU0 may still hold it" in notes
    assert notes[-1].startswith("HARM stale-translation: the host reuses")
    vcpu = scene_of(done).hardware.vcpus[0]
    for record in done.records:
        held = Step(record.after, 0)[vcpu.held]
        names = [s.name for s in track.slices() if s.begin <= record.number * 1000 < s.end]
        assert bool(names) == bool(held), record.number


def test_a_lock_shows_who_holds_it() -> None:
    holders: list[str] = []
    mmu_lock = shown()["locks/mmu_lock"].slices()
    for record in stale().records:
        for event in record.events:
            if isinstance(event, ev.LockTaken) and event.lock == "mmu_lock":
                holders.append(f"{event.mode}: {record.name}")
    assert [s.name for s in mmu_lock] == holders


@pytest.mark.parametrize("kernel", ["5.12", "6.12"])
def test_runs_of_all_kinds_are_well_formed_and_count_right(kernel: str) -> None:
    split = Script(threads="vcpu0: x0; vcpu1: w2; t0: recover", setup="w0")
    for scenario in (*SCENARIOS, split):
        built = built_for(scenario, kernel)
        records = walk(built, 1)
        machine = built.machine
        names = [thread.name for thread in machine.threads]
        scene = Scene(built.kvm.hardware, machine.layout, names, kernel_class(kernel))
        tracks = timeline_of(records, scene)
        counts = PageCounts(built.kvm.hardware)
        counts.start(records[-1].after)
        end = records[-1].number * 1000 + 1000
        for level, name in enumerate(COUNTERS, 1):
            assert tracks[f"VM/{name}"].value_at(end) == counts.leaves[level]
        for thread in {record.name for record in records}:
            ends = {r.number * 1000 + 1000 for r in records if r.name == thread} | {end}
            assert {s.end for s in tracks[f"threads/{thread}"].slices()} <= ends


# --- traces of kernels ----------------------------------------------------------------------------


@cache
def trace_lines() -> list[str]:
    return trace_text("6.12-tdp1").splitlines()[60:360]


@cache
def converted(name: str) -> dict[str, Track]:
    result = run("trace", "convert", trace_file(name), "--perfetto", "-")
    assert result.exit_code == 0, result.output
    return pftrace.read(result.stdout_bytes)


@pytest.mark.parametrize("name", ["6.1-tdp1", "6.12-tdp1"])
def test_counters_are_the_kernels_own_statistics_after_each_step(name: str) -> None:
    tracks = converted(name)
    steps = read_prog(str(TRACES / name / "prog.txt"))
    slices = tracks["steps"].slices()
    assert [one.name for one in slices] == [step.name for step in steps]
    compared = 0
    for shown_step, step in zip(slices, steps, strict=True):
        if step.stats is None:
            continue
        for counter in COUNTERS:
            value = tracks[f"VM/{counter}"].value_at(shown_step.end)
            assert value == step.stats.get(counter, 0), (step.name, counter)
            compared += 1
    assert compared > 50


@pytest.mark.parametrize("name", ["6.1-tdp1", "6.12-tdp1"])
def test_faults_probed_pairs_changes_and_flushes_are_all_there(name: str) -> None:
    tracks = converted(name)
    text = trace_text(name)
    tasks = [track for path, track in tracks.items() if path.startswith("tasks/")]
    slices = [one for track in tasks for one in track.slices()]
    faults = [one for one in slices if one.name.startswith("page fault")]
    assert len(faults) == text.count(": kvm_page_fault: ")
    kinds = {one.name for one in faults} - {"page fault (read)"}
    assert kinds == {"page fault (write)", "page fault (fetch)"}
    zaps = [one for one in slices if one.name == "kvm_tdp_mmu_zap_sp"]
    assert len(zaps) == text.count(": zap_sp_ret: ") == RETURNS[name]
    assert all(one.notes["returns"] == "ret=1" and "sp" in one.notes for one in zaps)
    changes = list(tracks["VM/SPTE changes"].instants())
    assert len(changes) == text.count(": kvm_tdp_mmu_spte_changed: ")
    flushes = [row.name for row in tracks["VM/TLB flushes"].instants()]
    assert flushes.count("kvm_flush_remote_tlbs") == text.count(": flush: ")
    tables = [row.name for row in tracks["VM/page tables"].instants()]
    assert tables.count("free table") == text.count(": free_sp: ")


def test_a_fault_lasts_until_its_spte_is_there() -> None:
    """The first fault of the recorded program: its times are in the trace's text."""
    first = next(
        one
        for path, track in converted("6.1-tdp1").items()
        if path.startswith("tasks/mmuload")
        for one in sorted(track.slices(), key=lambda one: one.begin)
        if one.name.startswith("page fault")
    )
    lines = trace_text("6.1-tdp1").splitlines()
    at = next(i for i, line in enumerate(lines) if ": kvm_page_fault: " in line)
    after = [i for i, line in enumerate(lines) if ": kvm_page_fault: " in line][1]
    last = [line for line in lines[at:after] if ": kvm_mmu_set_spte: " in line][-1]
    assert first.begin == nanoseconds(lines[at])
    assert first.end == nanoseconds(last)
    assert first.notes == {"address": "0x1000", "code": "0x100000014"}


def nanoseconds(line: str) -> int:
    return int(line.split("] ")[1].split()[1].rstrip(":").replace(".", "")) * 1000


@pytest.mark.parametrize("name", ["6.12-tdp0", "6.12-npt0"])
def test_a_trace_without_the_tdp_mmu_has_no_pages(name: str) -> None:
    tracks = converted(name)
    assert not any("pages_" in path for path in tracks)
    tasks = [track for path, track in tracks.items() if path.startswith("tasks/")]
    faults = [s for track in tasks for s in track.slices() if s.name == "page fault"]
    assert len(faults) == trace_text(name).count(": kvm_page_fault: ")


def test_guests_and_locks_have_tracks_where_they_are_traced(tmp_path: Path) -> None:
    """The model's own text is a trace with all of it, so both writers meet here."""
    built = built_for(SCENARIOS[3], "6.1")
    records = walk(built, 2)
    source, out = tmp_path / "run.txt", tmp_path / "run.pftrace"
    source.write_text(written(records, built, "6.1"))
    result = run("trace", "convert", str(source), "--perfetto", str(out))
    assert result.exit_code == 0, result.output
    assert result.output.endswith("; pages are exact\n")
    tracks = pftrace.read(out.read_bytes())
    events = [event for record in records for event in record.events]
    entered = sum(isinstance(event, ev.GuestEntered) for event in events)
    assert len(tracks["vCPUs/vCPU0"].slices()) == entered > 0
    lock = tracks["locks/&(kvm)->mmu_lock"].slices()
    modes = {one.name.partition(":")[0] for one in lock}
    assert modes == {"read", "write"}
    counts = PageCounts(built.kvm.hardware)
    counts.start(records[-1].after)
    run_step = tracks["steps"].slices()[-1]
    assert run_step.name == "run"
    for level, name in enumerate(COUNTERS, 1):
        assert tracks[f"VM/{name}"].value_at(run_step.end) == counts.leaves[level]


HEAD = "task-1     [000] .....     {}: "


def small(tmp_path: Path, *bodies: str) -> str:
    path = tmp_path / "small.txt"
    lines = [
        body if body.startswith("CPU:") else HEAD.format(f"1.{i:06}") + body
        for i, body in enumerate(bodies)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def convert_small(tmp_path: Path, *bodies: str) -> dict[str, Track]:
    out = tmp_path / "small.pftrace"
    result = run("trace", "convert", small(tmp_path, *bodies), "--perfetto", str(out))
    assert result.exit_code == 0, (result.output, result.exception)
    return pftrace.read(out.read_bytes())


def test_probed_functions_are_slices_only_if_they_return(tmp_path: Path) -> None:
    tracks = convert_small(
        tmp_path,
        "in1: (outer+0x0/0x10 [kvm]) a=1",
        "in2: (inner+0x0/0x10 [kvm]) b=0x2",
        "in3: (never_returns+0x0/0x10 [kvm])",
        "out2: (outer+0x8/0x10 [kvm] <- inner) ret=7",
        "out1: (somebody+0x8/0x10 [kvm] <- outer)",
        "out1: (somebody+0x8/0x10 [kvm] <- outer)",
        "in1: (outer+0x0/0x10 [kvm]) a=3",
    )
    slices = tracks["tasks/task-1"].slices()
    begin = 1_000_000_000
    assert [(s.name, s.begin - begin, s.end - begin, s.depth) for s in slices] == [
        ("inner", 1000, 3000, 1),
        ("outer", 0, 4000, 0),
        ("outer", 6000, 6000, 0),  # open at the end of the trace
    ]
    assert slices[0].notes == {"probe": "in2", "b": "0x2", "returns": "ret=7"}


def test_a_fault_ends_with_its_last_event_whatever_comes_next(tmp_path: Path) -> None:
    fault = "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000001000 error_code 0x6"
    tracks = convert_small(
        tmp_path,
        fault,
        "make_spte <-kvm_tdp_mmu_map",
        "kvm_mmu_spte_requested: gfn 1 pfn 1 level 1",
        "kvm_arch_commit_memory_region <-kvm_set_memslot",
        "kvm_entry: vcpu 0, rip 0x0",
        fault,
        "tracing_mark_write: hello",
        "kvm_mmu_spte_requested: gfn 1 pfn 1 level 1",
    )
    slices = tracks["tasks/task-1"].slices()
    assert [(s.begin % 1_000_000, s.end % 1_000_000) for s in slices] == [(0, 2000), (5000, 5000)]
    functions = [(row.time % 1_000_000, row.name) for row in tracks["tasks/task-1"].instants()]
    assert functions == [(1000, "make_spte"), (3000, "kvm_arch_commit_memory_region")]
    assert [row.name for row in tracks["steps"].instants()] == ["hello"]


def test_a_fault_does_not_wait_for_ever(tmp_path: Path) -> None:
    fault = "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000001000 error_code 0x6"
    step = "kvm_mmu_spte_requested: gfn 1 pfn 1 level 1"
    for lines, end in ((1000, 1001), (1001, 0)):
        tracks = convert_small(tmp_path, fault, *["f <-g"] * lines, step)
        (found,) = tracks["tasks/task-1"].slices()
        assert found.end - found.begin == end * 1000
        assert len(list(tracks["tasks/task-1"].instants())) == lines


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_damaged_traces_convert_or_are_refused_in_one_line(data: st.DataObject) -> None:
    lines = trace_lines()
    start = data.draw(st.integers(0, 250))
    lines = lines[start : start + 50]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                del lines[at]
            case 1:
                other = data.draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case 2:
                line = lines[at]
                place = data.draw(st.integers(0, len(line) - 1))
                lines[at] = (
                    line[:place] + data.draw(st.sampled_from("0f9 :x(]<-")) + line[place + 1 :]
                )
            case _:
                lines[at] = "CPU:0 [LOST EVENTS]"
    source = ("\n".join(lines) + "\n").encode()
    out = io.BytesIO()
    try:
        found = survey(TraceReader(io.BytesIO(source), "t"), Detector())
        reader = TraceReader(io.BytesIO(source), "t")
        conversion = Conversion(out, reader, found, "t")
        for record in reader:
            conversion.take(record)
        conversion.finish()
    except TraceError as error:
        message = str(error)
    else:
        pftrace.read(out.getvalue())
        return
    assert re.fullmatch(r"t: line \d+: [^\n]+", message)


def test_lost_events_are_shown_and_said(tmp_path: Path) -> None:
    change = "kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 4 old_spte 0 new_spte 5d70f827"
    source = small(tmp_path, change, "CPU:1 [LOST 5 EVENTS]", change)
    out = tmp_path / "out"
    result = run("trace", "convert", source, "--perfetto", str(out))
    assert "pages are not exact from line 2 on: CPU 1 lost 5 events" in result.output
    assert [row.name for row in pftrace.read(out.read_bytes())["lost events"].instants()] == [
        "CPU 1 lost 5 events"
    ]


# --- files and errors -----------------------------------------------------------------------------


def test_the_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    results = set()
    for seed in ("1", "2"):
        out = tmp_path / seed
        out.mkdir()
        commands = (
            ["explain", token(), "--perfetto", str(out / "run"), "--ftrace", str(out / "text")],
            ["trace", "convert", trace_file("6.12-npt0"), "--perfetto", str(out / "trace")],
        )
        code = "from tdpmmu.cli.main import app\n"
        code += "\n".join(f"app({command!r}, standalone_mode=False)" for command in commands)
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        results.add(tuple((out / name).read_bytes() for name in ("run", "text", "trace")))
    assert len(results) == 1


def test_explain_and_convert_say_what_they_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "perfetto", None)
    for module in [name for name in sys.modules if name.startswith("perfetto.")]:
        monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "out"
    for command in (
        ["explain", token(), "--perfetto", str(out)],
        ["trace", "convert", trace_file("6.12-npt0"), "--perfetto", str(out)],
    ):
        message = str(run(*command).exception)
        assert message == (
            "--perfetto: this needs the perfetto package: pip install 'tdpmmu[perfetto]'"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_broken_trace_leaves_nothing_behind(tmp_path: Path) -> None:
    source, out = tmp_path / "cut.txt", tmp_path / "out"
    text = trace_text("6.12-npt0")
    source.write_text(text[: len(text) // 2])
    out.write_text("what was there before")
    message = str(run("trace", "convert", str(source), "--perfetto", str(out)).exception)
    assert "cut.txt: line " in message
    assert "\n" not in message
    assert out.read_text() == "what was there before"
    assert sorted(tmp_path.iterdir()) == [source, out]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("-", "out", "expected a file, since the trace is read twice"),
        ("there.txt", "there.txt", "this is the trace itself"),
        ("there.txt", "no/where", "no/where: No such file or directory; expected a file to write"),
        ("missing.txt", "out", "missing.txt: No such file or directory; expected a trace file"),
    ],
)
def test_bad_files_are_one_line(
    source: str, target: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = small(tmp_path, "tracing_mark_write: x")
    Path(before).rename("there.txt")
    assert expected in str(run("trace", "convert", source, "--perfetto", target).exception)
    assert [one.name for one in tmp_path.iterdir()] == ["there.txt"]


def test_a_clock_that_does_not_count_seconds_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "tsc.txt"
    source.write_text("task-1     [000] ..... 99999999999999: tracing_mark_write: x\n")
    message = str(run("trace", "convert", str(source), "--perfetto", str(tmp_path / "o")).exception)
    assert "line 1: expected a time in seconds" in message


def test_json_does_not_go_with_files() -> None:
    message = str(run("explain", token(), "--json", "--perfetto", "x").exception)
    assert message == "--json and --perfetto do not go together: choose one"
