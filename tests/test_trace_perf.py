"""Reading ``perf script`` text."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from tdpmmu.trace.dat.printfmt import list_fields
from tdpmmu.trace.fields import KNOWN_EVENTS, FunctionCall, PageInfo, Probe, ProbeReturn
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.perf import PerfReader
from tdpmmu.trace.records import UNKNOWN_DEPTH, Lost, Record, TraceError

TRACES = Path(__file__).parent / "data" / "traces"
EXECS = """\
# ========
# captured on    : Wed Nov 25 23:44:30 2026
# ========
#
              sh 14654 [001]  2772.518756: sched:sched_process_exec: filename=/usr/bin/sh pid=14654
              sh 14654 [001]  2772.519731:       sched:sched_switch: prev_comm=sh prev_pid=14654
"""


def read(text: str) -> list[Record | Lost]:
    return list(PerfReader(io.BytesIO(text.encode()), "t"))


@pytest.mark.parametrize(
    ("line", "task", "pid", "cpu", "ns"),
    [
        ("  sh 14654 [001]  2772.518756: s:e: x", "sh", 14654, 1, 2772518756000),
        ("  sh 14654 [001]  2772.518756548: s:e: x", "sh", 14654, 1, 2772518756548),
        ("  sh 14654/14655 [001]  2772.5187565:          1     s:e: x", "sh", 14655, 1, None),
        (" CPU 0/KVM  99 [017]  1.000000:  s:e:  x", "CPU 0/KVM", 99, 17, 10**9),
        ("  fc_vcpu 1  59 [039] 1377662.550600: s:e: x", "fc_vcpu 1", 59, 39, 1377662550600000),
        ("  sh 14654 .N.. [001]  1.000000: s:e: x", "sh", 14654, 1, 10**9),
    ],
)
def test_lines(line: str, task: str, pid: int, cpu: int, ns: int | None) -> None:
    (one,) = read(line + "\n")
    assert isinstance(one, Record)
    assert (one.task, one.pid, one.cpu, one.event, one.text) == (task, pid, cpu, "e", "x")
    assert ns is None or one.time_ns == ns


def test_callers_comments_and_losses() -> None:
    text = EXECS + (
        "\tffffffff82265488 __schedule+0x628 ([kernel.kallsyms])\n\n"
        "              sh 14654 [001]  2772.600000: PERF_RECORD_LOST lost 7\n"
        "              sh 14654 [001]  2772.600000: PERF_RECORD_EXIT(1:2):(3:4)\n"
    )
    found = read(text)
    assert [one.event for one in found if isinstance(one, Record)] == [
        "sched_process_exec",
        "sched_switch",
    ]
    assert found[-1] == Lost(9, 1, 7)
    assert isinstance(found[0], Record)
    assert found[0].depth == UNKNOWN_DEPTH


def as_perf_prints(record: Record) -> str:
    """A record as perf would have it: probes with addresses, pages as their fields."""
    values = record.source.kinds._values(record.source, record.at)
    text, group = record.text, values.format.system
    if record.event in ("kvm_mmu_get_page", "kvm_mmu_prepare_zap_page"):
        text = "[FAILED TO PARSE] " + list_fields(values)
    elif isinstance(record.fields, ProbeReturn):
        text = "(ffffffffc0380c54 <- ffffffffc0370e3b)" + text.partition(")")[2]
    elif isinstance(record.fields, Probe):
        text = "(ffffffffc0380c54)" + text.partition(")")[2]
    seconds = f"{record.time_ns // 10**9}.{record.time_ns % 10**9:09}"
    who = f"{record.task:>16} {record.pid:5} [{record.cpu:03}]"
    return f"{who} {seconds}: {group}:{record.event}: {text}\n"


@pytest.mark.parametrize("name", ["6.12-tdp0", "6.1-tdp1"])
def test_recorded_events_as_perf_would_print_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "perf.txt"
    expected = []
    with open_trace(str(TRACES / name / "trace.dat.xz")) as trace, path.open("w") as file:
        for record in trace:
            assert isinstance(record, Record)
            if record.event != "tracing_mark_write" and not isinstance(record.fields, FunctionCall):
                file.write(as_perf_prints(record))
                expected.append(record)
    with open_trace(str(path)) as trace:
        assert isinstance(trace, PerfReader)
        found = list(trace)
    assert trace.notices == []
    for perf, record in zip(found, expected, strict=True):
        assert isinstance(perf, Record)
        assert perf[1:5] == record[1:5]
        if isinstance(record.fields, Probe | ProbeReturn):
            # perf's own probes are called by their function; these were made in tracefs.
            assert type(perf.fields) is type(record.fields)
            assert perf.fields.arguments == record.fields.arguments
        else:
            assert perf.fields == record.fields
    events = {one.event for one in expected}
    assert {"kvm_mmu_get_page", "kvm_page_fault", "fast_page_fault"} <= events & KNOWN_EVENTS


def test_probes_are_called_by_their_function() -> None:
    before = " sh 1 [001] 1.000000: probe:"
    one, two = read(
        f"{before}kvm_tdp_mmu_zap_sp: (ffffffffc0380c54) kvm=0xff nx=1\n"
        f"{before}kvm_tdp_mmu_zap_sp__return: (ffffffffc0380c54 <- ffffffffc0370e3b) arg1=1\n"
    )
    assert isinstance(one, Record)
    assert isinstance(two, Record)
    assert one.fields == Probe("kvm_tdp_mmu_zap_sp", {"kvm": 255, "nx": 1})
    assert two.fields == ProbeReturn("kvm_tdp_mmu_zap_sp", {"arg1": 1})


def test_pages_as_the_plugin_prints_them_are_noticed_once() -> None:
    line = (
        " sh 1 [001] 1.000000: kvmmmu:kvm_mmu_get_page: new sp gfn 0 4 q0 direct wux root 0 sync\n"
    )
    reader = PerfReader(io.BytesIO((line * 3).encode()), "t")
    assert [one.fields for one in reader if isinstance(one, Record)] == [None] * 3
    assert len(reader.notices) == 1
    good = line.replace("new sp gfn 0 4", "sp gen 0 gfn 0 l4 8-byte")
    (one,) = read(good)
    assert isinstance(one, Record)
    assert one.fields == PageInfo(0, 4, True, "wux")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EXECS + "hello\n", "t: line 7: expected perf script text, .*found 'hello'"),
        (EXECS[:-1], r"t: line 6: the line has no end \(truncated\); expected perf script text"),
        (
            " sh 1 [001] 1.000000: kvmmmu:kvm_mmu_set_spte: gfn\n",
            "t: line 1: kvm_mmu_set_spte: expected .*; found 'gfn'",
        ),
    ],
)
def test_broken_text(text: str, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        read(text)
    assert re.match(message, str(caught.value))
