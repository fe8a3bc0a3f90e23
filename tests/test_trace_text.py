"""Reading trace text: lines, fields, and every way in which a file can be broken."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import pytest

from tdpmmu.trace.fields import (
    KNOWN_EVENTS,
    FastPageFault,
    Marker,
    PageFault,
    PageInfo,
    SetSpte,
    SplitHugePage,
    SpteChange,
    SpteRequested,
    parse_fields,
    probed_function,
)
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.records import Lost, Record, TraceError
from tdpmmu.trace.text import TraceReader

TRACES = Path(__file__).parent / "data" / "traces"
LINE = "         mmuload-227     [001] .N.1.    16.788062: "
CHANGE = "kvm_tdp_mmu_spte_changed: as id 1 gfn 2ab level 2 old_spte 5a0 new_spte 189f5827"


def read(text: str | bytes) -> list[Record | Lost]:
    data = text.encode() if isinstance(text, str) else text
    return list(TraceReader(io.BytesIO(data), "t"))


def record(rest: str) -> Record:
    (one,) = read(LINE + rest + "\n")
    assert isinstance(one, Record)
    return one


def fields(rest: str) -> object:
    return parse_fields(record(rest), TraceReader(io.BytesIO(), "t"))


def test_a_line_and_its_parts() -> None:
    one = record(CHANGE)
    assert (one.line, one.task, one.pid, one.cpu, one.time) == (1, "mmuload", 227, 1, 16.788062)
    assert one.event == "kvm_tdp_mmu_spte_changed"
    assert one.text.startswith("as id 1")
    assert (one.function, one.caller) == ("", "")


@pytest.mark.parametrize(
    ("line", "task", "pid"),
    [
        (" kvm-nx-lpage-re-229     [000] .....    16.7: a: b", "kvm-nx-lpage-re", 229),
        ("     a task-9 [x-12 [003] d..2.   1.5: a: b", "a task-9 [x", 12),
        ("          <idle>-0       [002] dNs2.  1.5: a: b", "<idle>", 0),
        ("           <...>-77      [002] .....  1.5: a: b", "<...>", 77),
        ("   mmuload-227   (    227) [001] ..... 1.5: a: b", "mmuload", 227),
        ("   mmuload-227   (-------) [001] ..... 1.5: a: b", "mmuload", 227),
        ("   mmuload-227     [001]    16.7: a: b", "mmuload", 227),
        ("   mmuload-227     [001] ..... 1600: a: b", "mmuload", 227),
    ],
)
def test_line_variants(line: str, task: str, pid: int) -> None:
    (one,) = read(line + "\n")
    assert isinstance(one, Record)
    assert (one.task, one.pid, one.event, one.text) == (task, pid, "a", "b")


def test_text_of_a_marker_may_look_like_a_line() -> None:
    one = record("tracing_mark_write: b-1 [000] ..... 2.0: c: d")
    assert (one.task, one.pid, one.event) == ("mmuload", 227, "tracing_mark_write")


def test_function_lines() -> None:
    one = record("kvm_mmu_commit_zap_page.part.0 <-kvm_mmu_zap_all")
    assert one.event == "function"
    assert (one.function, one.caller) == ("kvm_mmu_commit_zap_page.part.0", "kvm_mmu_zap_all")
    module = record("kvm_mmu_load [kvm] <-vcpu_run [kvm]")
    assert (module.function, module.caller) == ("kvm_mmu_load", "vcpu_run")


def test_comments_stack_frames_and_blank_lines_are_no_records() -> None:
    text = f"# tracer: nop\n{LINE}{CHANGE}\n => kvm_mmu_load\n\n##### CPU 1 buffer started ####\n"
    assert len(read(text)) == 1


def test_stack_traces_are_records_without_text() -> None:
    kernel, user = read(
        f"{LINE}<stack trace>\n => kvm_mmu_load\n{LINE}<user stack trace>\n => <00007f>\n"
    )
    assert isinstance(kernel, Record)
    assert isinstance(user, Record)
    assert (kernel.event, kernel.text, kernel.fields) == ("kernel_stack", "", None)
    assert user.event == "user_stack"


def test_lost_events() -> None:
    assert read("CPU:1 [LOST 42 EVENTS]\nCPU:0 [LOST EVENTS]\n") == [
        Lost(1, 1, 42),
        Lost(2, 0, None),
    ]


def test_fields_of_the_events() -> None:
    page = "sp gen 0 gfn 2ab l1 8-byte q0 direct wux nxe ad root 0 sync"
    shadow = "sp gen 0 gfn 1a l2 8-byte q3 -ux invalid !nxe !ad root 1 unsync"
    assert fields(CHANGE) == SpteChange(1, 0x2AB, 2, 0x5A0, 0x189F5827)
    assert fields(f"kvm_mmu_get_page: {page} new") == PageInfo(0x2AB, 1, True, "wux")
    assert fields(f"kvm_mmu_prepare_zap_page: {shadow}") == PageInfo(0x1A, 2, False, "-ux")
    assert fields(
        "kvm_page_fault: vcpu 0 rip 0x1000 address 0x0000000000201000 error_code 0x100000014"
    ) == PageFault(0x201000, 0x100000014)
    assert fields("kvm_page_fault: address 201000 error_code 14") == PageFault(0x201000, 0x14)
    assert fields("kvm_mmu_spte_requested: gfn 1 pfn cc01 level 2") == SpteRequested(1, 0xCC01, 2)
    assert fields("kvm_mmu_set_spte: gfn 1 spte cc01e67 (rw-u) level 1 at 350d008") == SetSpte(
        1, 0xCC01E67, "rw-u", 1, 0x350D008
    )
    fast = "sptep 000000006 old 0xcc01e65 new cc01e67 spurious 0 fixed 1"
    assert fields(f"fast_page_fault: vcpu 0 gva 200000 error_code P|W|U {fast}") == FastPageFault(
        0x200000, 0xCC01E65, 0xCC01E67, True
    )
    assert fields(f"fast_page_fault: vcpu 0 gva 1 error_code  {fast[:-1]}0") == FastPageFault(
        1, 0xCC01E65, 0xCC01E67, False
    )
    assert fields(
        "kvm_mmu_split_huge_page: gfn 400 spte 800000000d000ee7 level 2 errno -16"
    ) == SplitHugePage(0x400, 0x800000000D000EE7, 2, -16)
    assert fields("tracing_mark_write: STEP x:1-8 ") == Marker("STEP x:1-8")
    assert fields("something_else: as id 1") is None
    assert fields("kvm_mmu_load <-vcpu_run") is None


def test_probes() -> None:
    probe = record("zap_sp: (kvm_tdp_mmu_zap_sp+0x0/0x60 [kvm]) kvm=0xff sp=0x10 gfn=0x200")
    assert probed_function(probe) == (
        "kvm_tdp_mmu_zap_sp",
        {"kvm": "0xff", "sp": "0x10", "gfn": "0x200"},
    )
    back = record("zap_sp_ret: (worker+0x203/0x330 [kvm] <- kvm_tdp_mmu_zap_sp) ret=1")
    assert probed_function(back) is None
    assert probed_function(record(CHANGE)) is None
    assert probed_function(record("a <-b")) is None


@pytest.mark.parametrize("event", sorted(KNOWN_EVENTS - {"tracing_mark_write"}))
def test_known_events_with_wrong_fields_are_an_error(event: str) -> None:
    with pytest.raises(TraceError, match=rf"^t: line 1: {event}: expected .*; found 'gfn'$"):
        fields(f"{event}: gfn")


def test_whole_recorded_traces_are_understood() -> None:
    for path in sorted(TRACES.glob("*/trace.txt.xz")):
        with open_trace(str(path)) as reader:
            records = list(reader)
        assert len(records) == reader.entries_in_buffer == reader.entries_written
        assert reader.records == len(records)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: empty file; expected tracefs text"),
        ("hello\n", "line 1: expected tracefs text, .*found 'hello'"),
        (f"{LINE}{CHANGE}\nhello\n", "line 2: expected tracefs text"),
        (f"{LINE}???\n", 'line 1: expected "event: fields" or "function <-caller"'),
        (f"{LINE}{CHANGE}\n{LINE}{CHANGE}", r"line 2: the line has no end \(truncated\)"),
        ("x" * 70000 + "\n", "line 1: the line is longer than 64 KiB"),
        (
            f"# entries-in-buffer/entries-written: 3/3   #P:2\n{LINE}{CHANGE}\n",
            "line 3: expected 3 entries, as the header says, but the file ends after 1",
        ),
    ],
)
def test_broken_text(text: str, message: str) -> None:
    with pytest.raises(TraceError, match=f"^t: {message}") as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_more_entries_than_the_header_says_are_fine() -> None:
    assert len(read(f"# entries-in-buffer/entries-written: 0/9   #P:2\n{LINE}{CHANGE}\n")) == 1


def test_binary_data() -> None:
    with pytest.raises(TraceError, match=r"^t: line 2: binary data; expected tracefs text"):
        read(f"{LINE}{CHANGE}\n".encode() + b"\x00\x01\n")


def test_found_text_is_ascii_and_short() -> None:
    with pytest.raises(TraceError) as caught:
        read(b"\xff\xfe\x1b[31m" + b"x" * 500 + b"\n")
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_xz_plain_and_standard_input_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"{LINE}{CHANGE}\n{LINE}a <-b\n".encode()
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(data)
    packed.write_bytes(lzma.compress(data))
    results = []
    for path in (plain, packed):
        with open_trace(str(path)) as reader:
            results.append(list(reader))
        with path.open("rb") as stream:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
            with open_trace("-") as reader:
                results.append(list(reader))
                assert reader.name == "standard input"
    assert len(results[0]) == 2
    assert [[one[:-1] for one in found] for found in results[1:]] == [
        [one[:-1] for one in results[0]]
    ] * 3


def test_truncated_and_corrupt_xz(tmp_path: Path) -> None:
    whole = (TRACES / "6.1-tdp1" / "trace.txt.xz").read_bytes()
    path = tmp_path / "t.xz"
    path.write_bytes(whole[:50000])
    with pytest.raises(TraceError, match=r"t\.xz: line \d+: the \.xz data ends too early"):
        list_all(path)
    path.write_bytes(whole[:24] + b"\xff" * 200 + whole[224:])
    with pytest.raises(TraceError, match=r"t\.xz: line \d+: (corrupt \.xz data|expected)"):
        list_all(path)


def list_all(path: Path) -> list[Record | Lost]:
    with open_trace(str(path)) as reader:
        return list(reader)


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file or directory; expected a trace file"):
        list_all(tmp_path / "none")
    with pytest.raises(TraceError, match="Is a directory; expected a trace file"):
        list_all(tmp_path)
    dat = tmp_path / "trace.dat"
    dat.write_bytes(b"\x17\x08\x44tracing6\x00")
    with pytest.raises(TraceError, match=r"trace\.dat: offset 0xc: expected 1 bytes of the byte"):
        list_all(dat)
