"""``tdpmmu decode``: round trips, the kernel's own readings, and what is malformed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tdpmmu.arch.decode import decode_spte, set_spte_reading, well_formed
from tdpmmu.arch.spte import FORMAT_NAMES, KERNELS, SpteFormat, spte_format
from tdpmmu.cli.decode import CONTEXT_SETTINGS, decode
from tdpmmu.cli.decoding import parse_spte
from tdpmmu.cli.errors import UsageError
from tdpmmu.trace.fields import (
    FastPageFault,
    SetSpte,
    SplitHugePage,
    SpteChange,
    SpteRequested,
    parse_fields,
)
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.records import Record

TRACES = Path(__file__).parent / "data" / "traces"
ALL = [spte_format(name, kernel) for name in FORMAT_NAMES for kernel in KERNELS]
NPT = spte_format("npt", "6.12")
EPT = spte_format("ept", "6.12")

app = typer.Typer()
app.command(context_settings=CONTEXT_SETTINGS)(decode)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


@settings(deadline=None)
@given(
    st.sampled_from(ALL),
    st.integers(0, (1 << 30) - 1),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_leaf_is_read_back(
    fmt: SpteFormat, number: int, level: int, write: bool, execute: bool, host: bool
) -> None:
    pfn = (number << 9 * (level - 1)) & (1 << 39) - 1
    spte = fmt.leaf(pfn, level, write=write, execute=execute, host_writable=host)
    decoded = decode_spte(spte, fmt, level)
    assert decoded.problems == ()
    assert (decoded.state, decoded.leaf, decoded.levels) == ("present", True, (level,))
    assert (decoded.pfn, decoded.address) == (pfn, pfn << 12)
    assert (decoded.writable, decoded.executable) == (write and host, execute)
    assert (decoded.host_writable, decoded.mmu_writable) == (host, host)
    assert decoded.readable
    assert decoded.accessed
    assert decoded.dirty == (write and host)
    assert decoded.memory_type == ("WB" if fmt.name == "ept" else None)
    assert decoded.user is (None if fmt.name == "ept" else True)
    guess = decode_spte(spte, fmt)
    assert guess.leaf
    assert level in guess.levels
    assert guess.problems == ()


@settings(deadline=None)
@given(st.sampled_from(ALL), st.integers(0, (1 << 39) - 1), st.integers(2, 5))
def test_every_nonleaf_is_read_back(fmt: SpteFormat, pfn: int, level: int) -> None:
    for given_level in (level, None):
        decoded = decode_spte(fmt.nonleaf(pfn), fmt, given_level)
        assert decoded.problems == ()
        assert decoded.kind == "present non-leaf"
        assert decoded.levels == ((2, 3, 4, 5) if given_level is None else (level,))
        assert decoded.pfn == pfn


@settings(deadline=None)
@given(st.sampled_from(ALL), st.integers(0, (1 << 39) - 1), st.integers(0, (1 << 18) - 1))
def test_every_mmio_spte_is_read_back(fmt: SpteFormat, gfn: int, generation: int) -> None:
    decoded = decode_spte(fmt.mmio(gfn, generation), fmt)
    assert (decoded.state, decoded.problems) == ("MMIO", ())
    assert (decoded.mmio_gfn, decoded.mmio_generation) == (gfn, generation)
    assert decoded.mmio_access == ("--" if fmt.name == "ept" else "wu")


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: f"{fmt.name}-{fmt.kernel}")
def test_nonpresent_and_frozen(fmt: SpteFormat) -> None:
    nonpresent = decode_spte(fmt.nonpresent, fmt)
    assert (nonpresent.state, nonpresent.malformed, nonpresent.hints) == ("non-present", False, ())
    assert decode_spte(fmt.removed, fmt).state == "frozen"


@settings(deadline=None)
@given(st.sampled_from(ALL), st.integers(0, (1 << 64) - 1), st.sampled_from([None, 1, 2, 3, 4, 5]))
def test_any_value_is_read_and_no_bit_is_forgotten(
    fmt: SpteFormat, spte: int, level: int | None
) -> None:
    decoded = decode_spte(spte, fmt, level)
    assert sum(field.value << field.low for field in decoded.bits) == spte
    assert decoded.malformed == bool(decoded.problems)
    if decoded.state == "present":
        assert fmt.is_shadow_present(spte)


@pytest.mark.parametrize(
    ("name", "format_name", "kernel", "expected"),
    [
        ("6.1-tdp1", "npt", "6.1", {"set": 110, "pfn": 96, "changes": 30008, "fast": 23}),
        ("6.12-tdp1", "npt", "6.12", {"set": 98, "pfn": 96, "changes": 36614, "fast": 23}),
        ("6.12-tdp0", "npt", "6.12", {"set": 262, "pfn": 87, "changes": 0, "fast": 40}),
        ("6.12-npt0", "shadow", "6.12", {"set": 229, "pfn": 116, "changes": 0, "fast": 0}),
    ],
)
def test_agrees_with_the_kernel_on_every_spte_of_the_traces(
    name: str, format_name: str, kernel: str, expected: dict[str, int]
) -> None:
    fmt = spte_format(format_name, kernel)
    seen: Counter[str] = Counter()
    requested: dict[int, SpteRequested] = {}
    with open_trace(str(TRACES / name / "trace.txt.xz")) as reader:
        for record in reader:
            assert isinstance(record, Record)
            fields = parse_fields(record, reader)
            if isinstance(fields, SpteRequested):
                requested[record.pid] = fields
            elif isinstance(fields, SetSpte):
                seen["set"] += 1
                decoded = decode_spte(fields.spte, fmt, fields.level)
                assert set_spte_reading(fmt, fields.spte) == fields.reading, record
                assert decoded.problems == (), record
                assert decoded.leaf
                letters = "".join(
                    letter if value else "-"
                    for letter, value in zip(
                        "rwxu",
                        (decoded.readable, decoded.writable, decoded.executable, decoded.user),
                        strict=True,
                    )
                )
                assert letters == fields.reading, record
                assert decode_spte(fields.spte, fmt).levels == (fields.level,), record
                request = requested.get(record.pid)
                if request and (request.gfn, request.level) == (fields.gfn, fields.level):
                    seen["pfn"] += 1
                    offset = fields.gfn & (1 << 9 * (fields.level - 1)) - 1
                    assert decoded.pfn is not None
                    assert decoded.pfn | offset == request.pfn, record
            elif isinstance(fields, SpteChange):
                seen["changes"] += 1
                for spte in (fields.old, fields.new):
                    assert well_formed(spte, fmt, fields.level), record
                    guess = decode_spte(spte, fmt, hints=False)
                    assert guess.state != "present" or fields.level in guess.levels, record
            elif isinstance(fields, FastPageFault):
                seen["fast"] += 1
                assert not decode_spte(fields.old, fmt, 1).writable, record
                assert decode_spte(fields.new, fmt, 1).writable == fields.fixed, record
            elif isinstance(fields, SplitHugePage):
                assert decode_spte(fields.spte, fmt, fields.level).leaf, record
    assert {key: seen[key] for key in expected} == expected


NPT_LEAF = NPT.leaf(0xCE00, 2, write=True, execute=False)
NPT_4K = NPT.leaf(0xCE01, 1, write=True, execute=True)
EPT_LEAF = EPT.leaf(0xCE01, 1, write=True, execute=True)
SUPPRESS_VE = 1 << 63


@pytest.mark.parametrize(
    ("fmt", "spte", "level", "words"),
    [
        (NPT, NPT_LEAF, 1, "leaf bit (7) at level 1"),
        (NPT, NPT_LEAF, 4, "leaf bit (7) at level 4"),
        (NPT, NPT_LEAF, 3, "a 1G page with address bits 21-23"),
        (NPT, NPT_LEAF | 1 << 12, 2, "a 2M page with address bit 12"),
        (NPT, NPT_4K, 2, "no bits 6, 9-10 in an npt non-leaf at level 2"),
        (NPT, NPT_4K & ~NPT.mmu_writable, 1, "writable but not MMU-writable"),
        (NPT, NPT_4K & ~NPT.host_writable, 1, "MMU-writable but not host-writable"),
        (NPT, NPT_4K & ~NPT.user, 1, "U (bit 2) is clear"),
        (NPT, NPT_4K & ~1, 1, "P (bit 0) is clear"),
        (NPT, NPT_4K | 1 << 8, 1, "no bit 8 in an npt leaf"),
        (NPT, NPT_4K | 1 << 52, 1, "no bit 52 in an npt leaf"),
        (NPT, NPT_4K & ~1 | 1 << 51, 1, "reserved address bit 51"),
        (NPT, NPT.nonleaf(7) | 1 << 63, 2, "without execute permission"),
        (NPT, NPT.nonleaf(7) & ~2, 3, "without write permission"),
        (NPT, NPT.nonleaf(7) & ~NPT.user, 3, "U (bit 2) is clear"),
        (NPT, 0x1000, None, "MMU-present (bit 11) is clear, but bit 12 set"),
        (NPT, 0x5A0, None, "looks like a frozen SPTE"),
        (NPT, NPT.removed | 1 << 11, None, "looks like a frozen SPTE"),
        (NPT, 1 << 59, None, "looks like a frozen SPTE"),
        (NPT, NPT.mmio(3) | 1 << 11, None, "MMU-present (bit 11) in an MMIO SPTE"),
        (NPT, NPT.mmio(3) | 1 << 63, None, "no bit 63 in an npt MMIO SPTE"),
        (EPT, EPT_LEAF & ~1, 1, "misconfiguration: writable but not readable"),
        (EPT, EPT_LEAF & ~7, 1, "without R, W and X the hardware sees nothing"),
        (EPT, EPT_LEAF & ~SUPPRESS_VE, 1, "suppress-#VE (bit 63) is clear"),
        (EPT, EPT_LEAF ^ 5 << 3, 1, "memory type 3 is reserved"),
        (EPT, EPT_LEAF | 3 << 52, 1, "A/D type 3"),
        (EPT, EPT_LEAF | 1 << 52, 1, "A/D bits are disabled, but bits 8-9 set"),
        (EPT, EPT_LEAF | 1 << 54, 1, "saved access-track bits"),
        (EPT, EPT_LEAF | 1 << 10, 1, "no bit 10 in an ept leaf"),
        (EPT, EPT.nonleaf(7) | 1 << 6, 2, "no bit 6 in an ept non-leaf"),
        (spte_format("ept", "6.1"), 6 | 1 << 63 | 1 << 12, None, "no bit 63 in an ept MMIO"),
        (spte_format("npt", "5.12"), 3 << 52, None, "an MMIO SPTE without bits 0, 51"),
    ],
)
def test_malformed(fmt: SpteFormat, spte: int, level: int | None, words: str) -> None:
    decoded = decode_spte(spte, fmt, level)
    assert any(words in problem for problem in decoded.problems), decoded.problems
    assert decoded.malformed
    assert not well_formed(spte, fmt, level)


def test_one_problem_is_named_once() -> None:
    executable = "a non-leaf without execute permission"
    assert decode_spte(NPT.nonleaf(7) | 1 << 63, NPT).problems == (executable,)
    unknown = "KVM sets no bits 3-4 in an npt leaf"
    assert decode_spte(NPT_4K | 3 << 3, NPT, 1).problems == (unknown,)


def test_ept_nonleaf_without_ad_bits_is_well_formed() -> None:
    spte = EPT.nonleaf(7) & ~EPT.accessed | EPT.ad_disabled
    assert decode_spte(spte, EPT, 2).problems == ()


@pytest.mark.parametrize(
    ("memory_type", "name"), [(0, "UC"), (1, "WC"), (4, "WT"), (5, "WP"), (6, "WB")]
)
def test_memory_types(memory_type: int, name: str) -> None:
    decoded = decode_spte(EPT_LEAF & ~(15 << 3) | memory_type << 3, EPT, 1)
    assert (decoded.memory_type, decoded.ignore_pat, decoded.problems) == (name, False, ())


def test_zero_is_not_what_6_12_writes() -> None:
    assert not well_formed(0, NPT)
    assert well_formed(0, spte_format("npt", "6.1"))
    assert well_formed(NPT.nonpresent, NPT)


def test_phys_bits() -> None:
    spte = NPT.leaf(1 << 35, 1, write=True, execute=True)
    assert decode_spte(spte, NPT, phys_bits=48).problems == ()
    assert decode_spte(spte, NPT, phys_bits=47).problems == ("reserved address bit 47 set",)


def test_access_tracked_ept_leaf_is_well_formed() -> None:
    spte = EPT_LEAF & ~(7 | EPT.accessed | EPT.dirty) | EPT.ad_disabled | 5 << 54
    decoded = decode_spte(spte, EPT, 1)
    assert decoded.problems == ()
    assert decoded.access_track
    assert (decoded.accessed, decoded.readable, decoded.ad) == (False, False, "disabled")


def test_accessed_bit_without_hardware_ad_bits_is_fine_from_6_13() -> None:
    spte = EPT_LEAF & ~EPT.dirty | EPT.ad_disabled
    assert decode_spte(spte, EPT).problems == ("A/D bits are disabled, but bit 8 set",)
    assert decode_spte(spte, spte_format("ept", "6.18")).problems == ()


@pytest.mark.parametrize(
    ("spte", "fmt", "hint"),
    [
        (EPT_LEAF, NPT, "--format ept --kernel 6.12: present leaf, 4K"),
        (NPT_LEAF, EPT, "--format npt --kernel 6.12: present leaf, 2M"),
        (spte_format("ept", "6.1").nonleaf(5), NPT, "--format ept --kernel 6.1"),
        (spte_format("npt", "5.12").leaf(1, 1, write=True, execute=True), NPT, "--kernel 5.12"),
        (0x5A0, NPT, "--kernel 6.1: frozen"),
        (1 << 63, spte_format("npt", "6.1"), "--kernel 6.12: non-present"),
        (NPT_4K & ~NPT.user, NPT, "--format shadow --kernel 6.12"),
        (0, NPT, "0 is the non-present value up to 6.9"),
    ],
)
def test_hints_name_the_format_that_fits(spte: int, fmt: SpteFormat, hint: str) -> None:
    assert len(decode_spte(spte, fmt).hints) == 1
    assert hint in decode_spte(spte, fmt).hints[0]
    assert decode_spte(spte, fmt, hints=False).hints == ()


def test_hint_at_another_level() -> None:
    assert decode_spte(NPT_LEAF, NPT, 1).hints == (
        "well-formed at another level: present leaf, 2M",
    )
    assert decode_spte(NPT_LEAF, NPT, 2).hints == ()


def test_page_size_is_open_without_a_level() -> None:
    aligned = NPT.leaf(1 << 18, 3, write=True, execute=False)
    assert decode_spte(aligned, NPT).kind == "present leaf, 2M or 1G"
    assert decode_spte(aligned, NPT, 3).kind == "present leaf, 1G"


def test_the_kernel_prints_r_for_every_spte_of_ept_from_6_10() -> None:
    unreadable = EPT_LEAF & ~7 | 4
    assert set_spte_reading(EPT, unreadable) == "r-x-"
    assert set_spte_reading(spte_format("ept", "6.1"), unreadable) == "--x-"


def test_arguments_out_of_range() -> None:
    for value in (-1, 1 << 64):
        with pytest.raises(ValueError, match="not a 64-bit SPTE"):
            decode_spte(value, NPT)
    for level in (0, 6):
        with pytest.raises(ValueError, match=r"not in 1\.\.5"):
            decode_spte(1, NPT, level)
    for phys_bits in (12, 52):
        with pytest.raises(ValueError, match=r"not in 13\.\.51"):
            decode_spte(1, NPT, phys_bits=phys_bits)


@pytest.mark.parametrize("text", ["800000000ce00ee7", "0x800000000CE00EE7", "0X800000000ce00ee7"])
def test_spellings(text: str) -> None:
    assert parse_spte(text) == 0x800000000CE00EE7


@pytest.mark.parametrize(
    "text", ["", "0x", "xyz", "-5", "+5", "1 2", "0x_1", "1_0", "\u0661", "1" * 17, "0x1g", "1\n"]
)
def test_garbage_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="is not an SPTE: expected") as caught:
        parse_spte(text)
    assert "\n" not in str(caught.value)


def test_leading_zeros_do_not_count() -> None:
    assert parse_spte("0" * 30 + "5a0") == 0x5A0


def test_command_prints_what_was_asked() -> None:
    output = run("0x800000000ce00ee7", "189f5827")
    assert "0x800000000ce00ee7: present leaf, 2M\n" in output
    assert "0x189f5827: present non-leaf\n" in output
    assert "0xce00 (address 0xce00000)" in output
    assert "read, write, no execute, user" in output
    assert "DEFAULT_SPTE_HOST_WRITABLE" in output
    assert "malformed" not in output


def test_command_line_of_every_state() -> None:
    assert "0x80000000000005a0: frozen" in run("80000000000005a0")
    assert "0x8000000000000000: non-present" in run("8000000000000000")
    mmio = run(hex(NPT.mmio(0x1234, 9)))
    assert ": MMIO" in mmio
    assert "0x1234" in mmio
    assert "generation   0x9" in mmio
    output = run("5a0")
    assert "0x5a0: malformed: unknown" in output
    assert "hint         well-formed as --format npt --kernel 6.1: frozen" in output
    ept = run(hex(EPT_LEAF), "--format", "ept")
    assert "memory type  WB, the guest's PAT ignored" in ept
    assert "EPT_SPTE_MMU_WRITABLE" in ept
    old = run(
        "--kernel", "5.12", hex(spte_format("npt", "5.12").leaf(1, 1, write=True, execute=True))
    )
    assert " SPTE_HOST_WRITEABLE" in old


def test_json() -> None:
    (one,) = json.loads(run("800000000CE00EE7", "--json", "--level", "2"))
    assert one["spte"] == "0x800000000ce00ee7"
    assert one["kind"] == "present leaf, 2M"
    assert (one["pfn"], one["address"], one["level"]) == (0xCE00, "0xce00000", 2)
    assert (one["writable"], one["executable"], one["malformed"]) == (True, False, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-5"], "'-5' is not an SPTE"),
        (["zz"], "'zz' is not an SPTE"),
        (["1" * 17], "at most 64 bits"),
        (["1", "--level", "9"], r"level 9 is not in 1\.\.5"),
        (["1", "--kernel", "2.6"], "unknown kernel '2.6': known are"),
        (["1", "--format", "vtd"], "unknown SPTE format 'vtd': known are"),
        (["1", "--phys-bits", "60"], "60 physical address bits are not in"),
    ],
)
def test_user_errors(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(*arguments)
