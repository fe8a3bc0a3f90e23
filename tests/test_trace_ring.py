"""Pages of the ring buffer: losses, long times, long events, either byte order, several CPUs."""

from __future__ import annotations

import io
import struct

import pytest
from dat_files import DatFile, event_format, ring_page

from tdpmmu.trace.dat.reader import DatReader
from tdpmmu.trace.fields import Marker, Probe, SpteChange
from tdpmmu.trace.records import Lost, Record, TraceError

CHANGED = 7
FORMATS = [
    (
        "kvmmmu",
        event_format(
            "kvm_tdp_mmu_spte_changed",
            CHANGED,
            "u64 gfn;8;8;0\nu64 old_spte;16;8;0\nu64 new_spte;24;8;0\n"
            "u8 level;32;1;0\nu8 as_id;33;1;0",
            '"as id %d gfn %llx level %d old_spte %llx new_spte %llx", REC->as_id, REC->gfn, '
            "REC->level, REC->old_spte, REC->new_spte",
        ),
    ),
    (
        "ftrace",
        event_format(
            "print",
            5,
            "unsigned long ip;8;8;0\nchar buf[];16;0;0",
            '"%ps: %s", (void *)REC->ip, REC->buf',
        ),
    ),
    (
        "sched",
        event_format(
            "said",
            9,
            "__data_loc char[] what;8;4;0\n__rel_loc char[] more;12;4;0\nint list[2];16;8;1",
            '"%s/%s %d", __get_str(what), __get_rel_str(more), REC->list[1]',
        ),
    ),
    (
        "kprobes",
        event_format(
            "zap_sp",
            11,
            "unsigned long __probe_ip;8;8;0\ns32 left;16;4;1",
            '"(%lx) left=%d", REC->__probe_ip, REC->left',
        ),
    ),
]
SYMBOLS = (
    b"ffffffff81000000 T tracing_mark_write\nffffffff81000100 T trace_it\n"
    b"ffffffffc0000000 t kvm_tdp_mmu_zap_sp\t[kvm]\nffffffffc00000d0 t next\t[kvm]\n"
)


def common(number: int, pid: int, endian: str = "<") -> bytes:
    return struct.pack(endian + "HBBi", number, 0, 0, pid)


def change(gfn: int, pid: int = 1, endian: str = "<") -> bytes:
    return common(CHANGED, pid, endian) + struct.pack(endian + "QQQBB", gfn, 1 << 63, 5, 1, 0)


def marker(text: bytes, ip: int = 0xFFFFFFFF81000010) -> bytes:
    return common(5, 3) + struct.pack("<Q", ip) + text + b"\n\0"


def dat(*cpus: bytes, **more: object) -> DatFile:
    return DatFile(FORMATS, list(cpus), kallsyms=SYMBOLS, cmdlines=b"1 vcpu\n", **more)  # type: ignore[arg-type]


def read(file: DatFile) -> list[Record | Lost]:
    return list(DatReader(io.BytesIO(file.version_6()), "t"))


def records(file: DatFile) -> list[Record]:
    return [one for one in read(file) if isinstance(one, Record)]


def test_cpus_are_merged_by_time_the_lower_first() -> None:
    one = ring_page(100, [(0, change(0)), (10, change(1)), (10, change(2))])
    two = ring_page(105, [(0, change(10)), (5, change(11)), (90, change(12))])
    found = records(dat(one, two))
    assert [(r.line, r.time_ns, r.cpu, r.fields.gfn) for r in found] == [
        (1, 100, 0, 0),
        (2, 105, 1, 10),
        (3, 110, 0, 1),
        (4, 110, 1, 11),
        (5, 120, 0, 2),
        (6, 200, 1, 12),
    ]
    assert found[0].fields == SpteChange(0, 0, 1, 1 << 63, 5)
    assert found[0].text == "as id 0 gfn 0 level 1 old_spte 8000000000000000 new_spte 5"
    assert found[0].task == "vcpu"


def test_the_same_time_across_pages_and_cpus() -> None:
    one = ring_page(100, [(0, change(0)), (0, change(1))]) + ring_page(100, [(0, change(2))])
    found = records(dat(one, ring_page(100, [(0, change(9))])))
    assert [r.fields.gfn for r in found] == [0, 1, 2, 9]


def test_a_big_endian_file() -> None:
    page = ring_page(
        100, [(7, change(3, endian=">")), (1 << 30, change(4, 9, endian=">"))], endian=">"
    )
    first, second = records(dat(page, endian=">"))
    assert (first.time_ns, first.pid, first.fields.gfn) == (107, 1, 3)
    assert (second.time_ns, second.pid, second.fields.gfn) == (107 + (1 << 30), 9, 4)


def test_absolute_time_stamps() -> None:
    stamp = (1 << 40) + 12345
    words = struct.pack("<II", 31 | (stamp & (1 << 27) - 1) << 5, stamp >> 27)
    entries = words + struct.pack("<I", 10 | 2 << 5) + change(1).ljust(40, b"\0")
    page = struct.pack("<QQ", 5, len(entries)) + entries
    (found,) = records(dat(page.ljust(4096, b"\0")))
    assert found.time_ns == stamp + 2


def test_padding_inside_and_at_the_end_of_a_page() -> None:
    event = struct.pack("<I", 10 | 1 << 5) + change(1).ljust(40, b"\0")
    gap = struct.pack("<II", 29 | 1 << 5, 12) + bytes(8)
    entries = event + gap + event + struct.pack("<I", 29) + bytes(20)
    page = struct.pack("<QQ", 5, len(entries)) + entries
    assert [r.time_ns for r in records(dat(page.ljust(4096, b"\0")))] == [6, 8]


@pytest.mark.parametrize(
    ("flags", "after", "count"), [(1 << 31, b"", None), (3 << 30, struct.pack("<q", 42), 42)]
)
def test_lost_events(flags: int, after: bytes, count: int | None) -> None:
    first = ring_page(100, [(0, change(0)), (1, change(1))])
    second = ring_page(200, [(0, change(2))], flags=flags, after=after)
    found = read(dat(b"", first + second))
    assert found[2] == Lost(3, 1, count)
    assert isinstance(found[3], Record)
    assert (found[3].line, found[3].fields.gfn) == (3, 2)
    assert len(found) == 4


def test_events_of_many_lengths() -> None:
    texts = [b"x" * length for length in (0, 1, 3, 50, 84, 85, 500, 3000)]
    found = records(dat(ring_page(1, [(1, marker(text)) for text in texts])))
    assert [r.fields for r in found] == [Marker(text.decode()) for text in texts]
    assert [r.text for r in found] == [text.decode() for text in texts]
    assert {r.event for r in found} == {"tracing_mark_write"}
    assert [r.time_ns for r in found] == list(range(2, 10))


def test_a_print_is_called_by_its_function() -> None:
    file = dat(ring_page(1, [(1, marker(b"a")), (1, marker(b"b", 0xFFFFFFFF81000110))]))
    assert [r.event for r in records(file)] == ["tracing_mark_write", "trace_it"]
    trace = DatReader(io.BytesIO(file.version_6()), "t")
    assert [row[0] for row in trace.rows({"trace_it"})] == [2]


def test_strings_elsewhere_in_the_event() -> None:
    payload = common(9, 1) + struct.pack("<IIii", 4 << 16 | 24, 6 << 16 | 12, -1, -2)
    (found,) = records(dat(ring_page(1, [(1, payload + b"one\0three\0")])))
    assert found.text == "one/three -2"
    assert found.fields is None


def test_probes_have_names_and_numbers() -> None:
    payload = common(11, 1) + struct.pack("<Qi", 0xFFFFFFFFC0000004, -5)
    (found,) = records(dat(ring_page(1, [(1, payload)])))
    assert found.fields == Probe("kvm_tdp_mmu_zap_sp", {"left": -5})
    assert found.text == "(kvm_tdp_mmu_zap_sp+0x4/0xd0 [kvm]) left=-5"


def test_unknown_events_are_passed_over_and_named() -> None:
    page = ring_page(1, [(1, change(1)), (1, common(99, 1) + bytes(8)), (1, change(2))])
    trace = DatReader(io.BytesIO(dat(page).version_6()), "t")
    found = list(trace)
    assert [one.event for one in found if isinstance(one, Record)] == [
        "kvm_tdp_mmu_spte_changed",
        "unknown_99",
        "kvm_tdp_mmu_spte_changed",
    ]
    assert trace.doubts == [(1, "event 99 is unknown: the file has no format of it")]


def test_statistics_of_the_ring_buffers() -> None:
    page = ring_page(1, [(1, change(1)), (1, change(2))])
    stats = (
        b"CPU: 0\nentries: 0\noverrun: 3\ncommit overrun: 0\ndropped events: 1\nread events: %d\n\0"
    )
    for promised, doubts in (
        (2, [(1, "the ring buffer overwrote 4 entries")]),
        (
            5,
            [
                (1, "the ring buffer overwrote 4 entries"),
                (3, "the file ends, but its statistics tell of 5 events"),
            ],
        ),
    ):
        file = dat(page, options=[(2, stats % promised)])
        trace = DatReader(io.BytesIO(file.version_6()), "t")
        assert len(list(trace)) == 2
        assert trace.doubts == doubts


@pytest.mark.parametrize(
    ("clock", "options", "ns"),
    [
        (b"mono", [], 1007),
        (b"counter", [], 1007 * 10**9),
        (b"mono", [(7, b"-7\0")], 1000),
        (b"mono", [(1, b"0x1\0")], 2007),
        (b"x86-tsc", [(14, struct.pack("<IIQ", 3, 1, 7))], 1510),
    ],
)
def test_clocks(clock: bytes, options: list[tuple[int, bytes]], ns: int) -> None:
    file = dat(ring_page(1000, [(7, change(1))]), clock=clock, options=options)
    (found,) = records(file)
    assert found.time_ns == ns


def page_of(entries: bytes, length: int | None = None) -> bytes:
    size = len(entries) if length is None else length
    return (struct.pack("<QQ", 5, size) + entries).ljust(4096, b"\0")


EVENT = struct.pack("<I", 10 | 1 << 5) + change(1).ljust(40, b"\0")


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        (page_of(b"", 5000), "offset 0x1000: expected a page with up to 4080 bytes of events"),
        (page_of(EVENT[:20]), "offset 0x1010: expected 44 bytes of an event; 20 are left"),
        (
            page_of(EVENT + struct.pack("<II", 0, 3) + bytes(20)),
            "offset 0x103c: expected an event of up to 24 bytes; found 3",
        ),
        (
            page_of(struct.pack("<I", 3 | 1 << 5) + common(CHANGED, 1) + bytes(4)),
            "offset 0x1010: expected at least 34 bytes of event kvm_tdp_mmu_spte_changed; found 12",
        ),
        (
            ring_page(100, [(0, change(1))]) + ring_page(99, [(0, change(2))]),
            "offset 0x2000: expected a page of CPU 0 that begins at 100 or later; it begins at 99",
        ),
        (page_of(EVENT)[:-1], "offset 0x1000: expected a page of 4096 bytes of CPU 0's events"),
    ],
)
def test_broken_pages(pages: bytes, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        read(dat(pages))
    assert str(caught.value).startswith(f"t: {message}")
