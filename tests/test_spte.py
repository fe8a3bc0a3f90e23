"""SPTE encodings against values of real kernels, and against the headers' bit numbers."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpmmu.arch.spte import FORMAT_NAMES, KERNELS, Access, SpteFormat, spte_format

ALL = [spte_format(name, kernel) for name in FORMAT_NAMES for kernel in KERNELS]
OLD = ("5.12-rc4", "5.12")
NEW = ("6.12", "6.18")

formats = st.sampled_from(ALL)
pfns = st.integers(0, (1 << 39) - 1)
levels = st.integers(1, 3)


def bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


def test_recorded_values_of_real_kernels() -> None:
    npt = spte_format("npt", "6.12")
    assert npt.leaf(0xCE00, 2, write=True, execute=False) == 0x800000000CE00EE7
    assert npt.leaf(0xCC01, 1, write=True, execute=True) == 0xCC01E67
    assert npt.nonleaf(0x189F5) == 0x189F5827
    old = spte_format("npt", "6.1")
    assert old.leaf(0xD001, 1, write=True, execute=True) == 0xD001E67
    assert (old.removed, npt.removed) == (0x5A0, 0x80000000000005A0)
    assert (old.nonpresent, npt.nonpresent) == (0, 1 << 63)


def test_ept_values_by_bit_number() -> None:
    ept = spte_format("ept", "6.12")
    leaf = ept.leaf(0x12345, 1, write=True, execute=True)
    assert leaf == 0x12345000 | bits(0, 1, 2, 4, 5, 6, 8, 9, 11, 57, 58, 63)
    huge = spte_format("ept", "6.1").leaf(0x200, 2, write=True, execute=False)
    assert huge == 0x200000 | bits(0, 1, 4, 5, 6, 7, 8, 9, 11, 57, 58)
    assert ept.nonleaf(5) == 0x5000 | bits(0, 1, 2, 8, 11, 63)
    assert spte_format("ept", "5.12").nonleaf(5) == 0x5000 | bits(0, 1, 2, 8)


def test_values_of_5_12_by_bit_number() -> None:
    for kernel in OLD:
        npt = spte_format("npt", kernel)
        leaf = npt.leaf(0x40000, 3, write=True, execute=False)
        assert leaf == 0x40000000 | bits(0, 1, 2, 5, 6, 7, 10, 11, 63)
        ept = spte_format("ept", kernel)
        assert ept.leaf(1, 1, write=False, execute=False) == 0x1000 | bits(0, 4, 5, 6, 8, 10, 11)
        assert npt.removed == ept.removed == 1 << 59


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: f"{fmt.name}-{fmt.kernel}")
def test_software_bits_of_every_format(fmt: SpteFormat) -> None:
    if fmt.kernel in OLD:
        expected = (bits(10), bits(11), 0)
    elif fmt.name == "ept":
        expected = (bits(57), bits(58), bits(11))
    else:
        expected = (bits(9), bits(10), bits(11))
    assert (fmt.host_writable, fmt.mmu_writable, fmt.mmu_present) == expected
    assert fmt.nonpresent == (1 << 63 if fmt.kernel in NEW else 0)
    assert bool(fmt.present & 1 << 63) == (fmt.name == "ept" and fmt.kernel in NEW)
    assert fmt.software_accessed == (fmt.kernel == "6.18")


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: f"{fmt.name}-{fmt.kernel}")
def test_masks_of_every_format(fmt: SpteFormat) -> None:
    assert fmt.address == 0x000FFFFFFFFFF000
    assert (fmt.writable, fmt.large) == (bits(1), bits(7))
    assert (fmt.ad_type, fmt.ad_disabled, fmt.ad_wrprot_only) == (bits(52, 53), bits(52), bits(53))
    assert (fmt.acc_track_saved, fmt.acc_track_saved_shift) == (bits(54, 56), 54)
    assert fmt.mmio_gen_low == (3, 11 if fmt.kernel in OLD else 10)
    assert fmt.mmio_gen_high == (54 if fmt.kernel in OLD else 52, 62)
    if fmt.name == "ept":
        assert (fmt.user, fmt.exec, fmt.nx) == (bits(0), bits(2), 0)
        assert (fmt.accessed, fmt.dirty) == (bits(8), bits(9))
        assert fmt.memtype == bits(3, 4, 5, 6)
        assert fmt.memtype_wb == bits(4, 5, 6)
        assert (fmt.acc_track, fmt.mmio_access) == (bits(0, 1, 2), 0)
    else:
        assert (fmt.present, fmt.user, fmt.exec, fmt.nx) == (bits(0), bits(2), 0, bits(63))
        assert (fmt.accessed, fmt.dirty) == (bits(5), bits(6))
        assert (fmt.memtype, fmt.memtype_wb, fmt.acc_track) == (0, 0, 0)
        assert fmt.mmio_access == bits(1, 2)


def test_readable_and_dirty_are_bits_of_their_own() -> None:
    npt = spte_format("npt", "6.12")
    clean = npt.leaf(1, 1, write=True, execute=True, dirty=False)
    assert not npt.is_dirty(clean)
    assert npt.is_dirty(clean | npt.dirty)
    assert npt.is_dirty(clean & ~npt.writable | npt.dirty)
    assert npt.is_readable(clean)
    assert not npt.is_readable(clean & ~1)


@settings(deadline=None)
@given(formats, pfns, levels, *[st.booleans()] * 6)
def test_leaf_says_what_it_was_made_of(
    fmt: SpteFormat,
    pfn: int,
    level: int,
    write: bool,
    execute: bool,
    accessed: bool,
    dirty: bool,
    host_writable: bool,
    mmu_writable: bool,
) -> None:
    spte = fmt.leaf(
        pfn,
        level,
        write=write,
        execute=execute,
        accessed=accessed,
        dirty=dirty,
        host_writable=host_writable,
        mmu_writable=mmu_writable,
    )
    really_writable = write and host_writable and mmu_writable
    assert 0 <= spte < 1 << 64
    assert fmt.is_shadow_present(spte)
    assert not fmt.is_frozen(spte)
    assert not fmt.is_mmio(spte)
    assert fmt.is_last(spte, level)
    assert fmt.is_large(spte) == (level > 1)
    assert fmt.pfn(spte) == pfn
    assert fmt.is_readable(spte)
    assert fmt.is_writable(spte) == really_writable
    assert fmt.is_executable(spte) == execute
    assert fmt.is_accessed(spte) == accessed
    assert fmt.is_dirty(spte) == (dirty and really_writable)
    assert fmt.is_host_writable(spte) == host_writable
    assert fmt.is_mmu_writable(spte) == (host_writable and mmu_writable)
    assert fmt.ad_enabled(spte)
    assert not fmt.ad_need_write_protect(spte)
    assert not fmt.is_access_track(spte)
    assert fmt.allows(spte, Access.READ)
    assert fmt.allows(spte, Access.WRITE) == really_writable
    assert fmt.allows(spte, Access.EXEC) == execute


@settings(deadline=None)
@given(formats, pfns, st.integers(2, 5))
def test_nonleaf_is_no_leaf_and_allows_all(fmt: SpteFormat, pfn: int, level: int) -> None:
    spte = fmt.nonleaf(pfn)
    assert fmt.is_shadow_present(spte)
    assert not fmt.is_last(spte, level)
    assert fmt.pfn(spte) == pfn
    assert fmt.is_writable(spte)
    assert fmt.is_executable(spte)
    assert fmt.is_readable(spte)
    assert fmt.is_accessed(spte)
    assert not fmt.is_mmu_writable(spte)
    assert not fmt.is_mmio(spte)


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: f"{fmt.name}-{fmt.kernel}")
def test_nonpresent_frozen_and_mmio_are_not_present(fmt: SpteFormat) -> None:
    for spte in (fmt.nonpresent, fmt.removed, fmt.mmio(0x1234, 77)):
        assert not fmt.is_shadow_present(spte)
        assert not any(fmt.allows(spte, kind) for kind in Access)
        assert fmt.is_frozen(spte) == (spte == fmt.removed)
        assert fmt.is_mmio(spte) == (spte not in (fmt.nonpresent, fmt.removed))


@settings(deadline=None)
@given(formats, pfns, st.integers(0, (1 << 22) - 1), st.integers(0, 7))
def test_mmio_keeps_gfn_and_generation(
    fmt: SpteFormat, gfn: int, generation: int, access: int
) -> None:
    spte = fmt.mmio(gfn, generation, access)
    stored = 18 if fmt.kernel in OLD else 19
    assert fmt.mmio_generation(spte) == generation & (1 << stored) - 1
    assert spte >> 12 & (1 << 39) - 1 == gfn
    assert fmt.is_mmio(spte)
    if fmt.name == "ept":
        assert spte & 7 == 6
    else:
        assert spte & 7 == access & 6 | 1
        assert spte >> 51 & 1


def test_mmio_generation_bits() -> None:
    assert spte_format("npt", "6.12").mmio(0, 1 << 7) == bits(0, 1, 2, 51, 10)
    assert spte_format("npt", "6.12").mmio(0, 1 << 8, 0) == bits(0, 51, 52)
    assert spte_format("ept", "6.1").mmio(0, 1 << 18) == bits(1, 2, 62)
    assert spte_format("ept", "5.12").mmio(0, 1 << 8) == bits(1, 2, 11, 52, 53)
    assert spte_format("ept", "5.12").mmio(0, 1 << 9) == bits(1, 2, 52, 53, 54)
    # What does not fit is dropped, what is no part of it is not read.
    assert spte_format("npt", "6.12").mmio(0, 1 << 19, 0) == bits(0, 51)
    assert spte_format("npt", "5.12").mmio(0, 1 << 18, 0) == bits(0, 51, 52, 53)
    assert spte_format("ept", "6.1").mmio_generation(bits(1, 2, 11, 12, 51, 63)) == 0
    assert spte_format("npt", "6.12").mmio(0) == spte_format("npt", "6.12").mmio(0, 0, 7)


def test_ept_mmio_from_6_10_needs_bit_63_clear() -> None:
    mmio = spte_format("ept", "6.12").mmio(9)
    assert not spte_format("ept", "6.12").is_mmio(mmio | 1 << 63)
    assert spte_format("ept", "6.1").is_mmio(mmio | 1 << 63)


@pytest.mark.parametrize(
    ("rwx", "allowed"),
    [
        (0, ""),
        (1, "R"),
        (2, ""),
        (3, "RW"),
        (4, "E"),
        (5, "RE"),
        (6, ""),
        (7, "RWE"),
    ],
)
def test_ept_allows_by_rwx(rwx: int, allowed: str) -> None:
    ept = spte_format("ept", "6.12")
    spte = 0x1000 | bits(11, 63) | rwx
    letters = "".join(kind.name[0] for kind in Access if ept.allows(spte, kind))
    assert letters == allowed


def test_npt_needs_the_user_bit_and_shadow_paging_does_not() -> None:
    npt, shadow = spte_format("npt", "6.12"), spte_format("shadow", "6.12")
    supervisor = npt.leaf(1, 1, write=True, execute=True) & ~npt.user
    assert not any(npt.allows(supervisor, kind) for kind in Access)
    assert all(shadow.allows(supervisor, kind) for kind in Access)
    assert not any(shadow.allows(supervisor & ~1, kind) for kind in Access)
    read_only = npt.leaf(1, 1, write=False, execute=False)
    assert [kind for kind in Access if npt.allows(read_only, kind)] == [Access.READ]


def test_without_hardware_ad_bits() -> None:
    ept = spte_format("ept", "6.12")
    spte = ept.leaf(1, 1, write=True, execute=True, accessed=False, dirty=False) | ept.ad_disabled
    assert not ept.ad_enabled(spte)
    assert ept.ad_need_write_protect(spte)
    assert ept.is_accessed(spte)
    assert ept.is_dirty(spte)
    assert not ept.is_dirty(spte & ~ept.writable)
    tracked = spte & ~7
    assert ept.is_access_track(tracked)
    assert not ept.is_access_track(spte)
    assert not ept.is_accessed(tracked)
    assert ept.ad_need_write_protect(spte & ~ept.ad_disabled | ept.ad_wrprot_only)
    assert ept.ad_enabled(spte & ~ept.ad_disabled | ept.ad_wrprot_only)


def test_accessed_without_hardware_ad_bits_in_6_18() -> None:
    ept = spte_format("ept", "6.18")
    spte = ept.leaf(1, 1, write=True, execute=True, accessed=False) | ept.ad_disabled
    assert not ept.is_accessed(spte)
    assert ept.is_accessed(spte | ept.accessed)


@settings(deadline=None)
@given(formats, st.integers(0, (1 << 21) - 1), st.integers(0, 511), st.booleans(), st.booleans())
def test_split_of_2m_equals_the_4k_leaf(
    fmt: SpteFormat, number: int, index: int, write: bool, executable: bool
) -> None:
    huge = fmt.leaf(number << 9, 2, write=write, execute=False)
    child = fmt.split_child(huge, 1, index, executable=executable)
    assert child == fmt.leaf((number << 9) + index, 1, write=write, execute=executable)


def test_split_makes_4k_leaves_executable_unless_told() -> None:
    npt = spte_format("npt", "6.12")
    huge = npt.leaf(512, 2, write=True, execute=False)
    assert npt.is_executable(npt.split_child(huge, 1, 3))
    assert not npt.is_executable(npt.split_child(huge, 1, 3, executable=False))


@settings(deadline=None)
@given(formats, st.integers(0, (1 << 12) - 1), st.integers(0, 511), st.booleans())
def test_split_of_1g_keeps_the_permissions(
    fmt: SpteFormat, number: int, index: int, execute: bool
) -> None:
    huge = fmt.leaf(number << 18, 3, write=True, execute=execute)
    child = fmt.split_child(huge, 2, index << 9)
    assert child == fmt.leaf((number << 18) + (index << 9), 2, write=True, execute=execute)


def test_frozen_hashable_and_cached() -> None:
    fmt = spte_format("npt", "6.12")
    assert fmt is spte_format("npt", "6.12")
    assert len({*ALL}) == len(ALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fmt.name = "ept"  # type: ignore[misc]
    assert not hasattr(fmt, "__dict__")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known are ept, npt, shadow"):
        spte_format("vtd", "6.12")
    with pytest.raises(ValueError, match=r"known are 5\.12-rc4, .*6\.18"):
        spte_format("npt", "6.13")


def test_arguments_out_of_range() -> None:
    fmt = spte_format("npt", "6.12")
    for pfn in (1 << 40, -1):
        with pytest.raises(ValueError, match="does not fit"):
            fmt.leaf(pfn, 1, write=True, execute=True)
        with pytest.raises(ValueError, match="does not fit"):
            fmt.nonleaf(pfn)
    for gfn in (1 << 39, -1):
        with pytest.raises(ValueError, match="does not fit"):
            fmt.mmio(gfn)
    with pytest.raises(ValueError, match="level 0"):
        fmt.leaf(1, 0, write=True, execute=True)
