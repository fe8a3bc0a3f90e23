"""Explain an SPTE: what KVM and the hardware read in a 64-bit page table entry.

The reading follows the helpers of spte.h (``is_shadow_present_pte``, ``is_last_spte``, ...), the
complaints follow what ``make_spte``, ``make_nonleaf_spte`` and ``make_mmio_spte`` can build,
``check_spte_writable_invariants`` and the reserved bits of the CPU formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.spte import (
    ACC_TRACK_SAVED_MASK,
    BASE_ADDR_MASK,
    EPT_IPAT_BIT,
    EPT_MT_MASK,
    EPT_MT_SHIFT,
    EPT_RWX_MASK,
    EPT_SUPPRESS_VE_BIT,
    FORMAT_NAMES,
    MMIO_RESERVED_BIT,
    PAGE_SHIFT,
    PT64_NX_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    SPTE_BITS,
    TDP_AD_MASK,
    SpteFormat,
    spte_format,
)
from tdpmmu.arch.spte_bits import BitField, bit_fields, mmio_fields

MAX_LEVEL = 5
"""The top level of a 5-level root."""

DEFAULT_PHYS_BITS = 51
"""The widest physical address that leaves bit 51 reserved, as MMIO SPTEs need it."""

MEMORY_TYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}
PAGE_SIZES = {1: "4K", 2: "2M", 3: "1G"}

_SUMMARY_KERNELS = ("6.12", "6.1", "5.12")
"""One kernel of each family of encodings, newest first."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one SPTE says.

    ``state`` is ``present``, ``non-present``, ``frozen``, ``MMIO`` or ``unknown`` (none of them:
    not present, yet not a value that this kernel writes).  The fields from ``pfn`` to
    ``access_track`` speak of present SPTEs and are None elsewhere; ``pfn`` counts 4 KiB pages and
    ``levels`` are the levels (1 = 4 KiB) where the entry can stand.  ``leaf`` is deduced from the
    software bits if no level was given.  ``user`` is None for EPT.  ``problems`` are the reasons
    why the entry is malformed.
    """

    spte: int
    format: str
    kernel: str
    level: int | None
    state: str
    leaf: bool | None = None
    levels: tuple[int, ...] = ()
    pfn: int | None = None
    readable: bool | None = None
    writable: bool | None = None
    executable: bool | None = None
    user: bool | None = None
    accessed: bool | None = None
    dirty: bool | None = None
    host_writable: bool | None = None
    mmu_writable: bool | None = None
    ad: str | None = None
    access_track: bool | None = None
    memory_type: str | None = None
    ignore_pat: bool | None = None
    mmio_gfn: int | None = None
    mmio_generation: int | None = None
    mmio_access: str | None = None
    bits: tuple[BitField, ...] = ()
    problems: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    @property
    def malformed(self) -> bool:
        """Reserved or contradictory bits are set, for this format and kernel."""
        return bool(self.problems)

    @property
    def address(self) -> int | None:
        """The physical address in the entry, in bytes."""
        return None if self.pfn is None else self.pfn << PAGE_SHIFT

    @property
    def kind(self) -> str:
        """State, kind of entry and page size in a few words."""
        if self.state != "present":
            return self.state
        if not self.leaf:
            return "present non-leaf"
        return "present leaf, " + " or ".join(PAGE_SIZES.get(n, f"level {n}") for n in self.levels)


def set_spte_reading(fmt: SpteFormat, spte: int) -> str:
    """The letters that the tracepoint ``kvm_mmu_set_spte`` prints for ``spte``, like ``rw-u``.

    As in the kernel "r" is always printed where ``shadow_present_mask`` is not 0, which includes
    EPT from 6.12 on, readable or not.
    """
    return "".join(
        (
            "r" if fmt.present or spte & PT_PRESENT_MASK else "-",
            "w" if fmt.is_writable(spte) else "-",
            "x" if fmt.is_executable(spte) else "-",
            "u" if spte & fmt.user else "-",
        )
    )


def decode_spte(
    spte: int,
    fmt: SpteFormat,
    level: int | None = None,
    *,
    phys_bits: int = DEFAULT_PHYS_BITS,
    hints: bool = True,
) -> Decoded:
    """Read ``spte`` as an entry of ``fmt`` at ``level`` (1 to 5, None: not known).

    ``phys_bits`` (13 to 51) is the CPU's physical address width; address bits from there on are
    reserved.  ``hints`` False spares the comparison with the other formats and kernels.  ValueError
    for arguments out of range.
    """
    if not 0 <= spte < 1 << SPTE_BITS:
        raise ValueError(f"{spte:#x} is not a 64-bit SPTE")
    if level is not None and not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"level {level} is not in 1..{MAX_LEVEL}")
    if not PAGE_SHIFT < phys_bits <= DEFAULT_PHYS_BITS:
        raise ValueError(f"{phys_bits} physical address bits are not in 13..{DEFAULT_PHYS_BITS}")
    decoded = _read(spte, fmt, level, phys_bits)
    if not hints:
        return decoded
    found = _hints(spte, fmt, level, phys_bits) if decoded.problems else ()
    if not found and not fmt.is_shadow_present(spte):
        found = _nonpresent_hint(spte, fmt)
    if not found:
        return decoded
    return _read(spte, fmt, level, phys_bits, hints=found)


def well_formed(spte: int, fmt: SpteFormat, level: int | None = None) -> bool:
    """``fmt`` can have this value at ``level``; a foreign non-present value does not count."""
    if spte == 0 and fmt.nonpresent:
        return False
    return not _read(spte, fmt, level, DEFAULT_PHYS_BITS).problems


def _read(
    spte: int,
    fmt: SpteFormat,
    level: int | None,
    phys_bits: int,
    hints: tuple[str, ...] = (),
) -> Decoded:
    common = (spte, fmt.name, fmt.kernel, level)
    if fmt.is_frozen(spte):
        return Decoded(*common, "frozen", bits=bit_fields(fmt, spte), hints=hints)
    if spte in (fmt.nonpresent, 0):
        return Decoded(*common, "non-present", bits=bit_fields(fmt, spte), hints=hints)
    if fmt.is_mmio(spte):
        return _read_mmio(spte, fmt, level, hints)
    if not fmt.is_shadow_present(spte):
        problems = [f"KVM {fmt.kernel} writes no such value: {_why_not_present(spte, fmt)}"]
        problems += _frozen_lookalike(spte, fmt)
        return Decoded(
            *common, "unknown", bits=bit_fields(fmt, spte), problems=tuple(problems), hints=hints
        )
    leaf = _is_leaf(spte, fmt, level)
    levels = _levels(spte, fmt, level, leaf)
    problems = _leaf_problems(spte, fmt, levels) if leaf else _nonleaf_problems(spte, fmt, level)
    problems += _common_problems(spte, fmt, phys_bits) + _frozen_lookalike(spte, fmt)
    ept = fmt.name == "ept"
    memory_type = (spte & EPT_MT_MASK) >> EPT_MT_SHIFT
    return Decoded(
        *common,
        "present",
        leaf=leaf,
        levels=levels,
        pfn=fmt.pfn(spte),
        readable=fmt.is_readable(spte),
        writable=fmt.is_writable(spte),
        executable=fmt.is_executable(spte),
        user=None if ept else bool(spte & fmt.user),
        accessed=fmt.is_accessed(spte),
        dirty=fmt.is_dirty(spte) if leaf else None,
        host_writable=fmt.is_host_writable(spte) if leaf else None,
        mmu_writable=fmt.is_mmu_writable(spte) if leaf else None,
        ad=("enabled", "disabled", "write protection only", "reserved")[(spte & TDP_AD_MASK) >> 52],
        access_track=fmt.is_access_track(spte),
        memory_type=MEMORY_TYPES.get(memory_type, "reserved") if ept and leaf else None,
        ignore_pat=bool(spte & EPT_IPAT_BIT) if ept and leaf else None,
        bits=bit_fields(fmt, spte),
        problems=tuple(problems),
        hints=hints,
    )


def _is_leaf(spte: int, fmt: SpteFormat, level: int | None) -> bool:
    if level is not None or spte & PT_PAGE_SIZE_MASK:
        return fmt.is_last(spte, level or 2)
    # A writable leaf is MMU-writable, a non-leaf is always writable and never MMU-writable.
    return not fmt.is_writable(spte) or fmt.is_mmu_writable(spte)


def _levels(spte: int, fmt: SpteFormat, level: int | None, leaf: bool) -> tuple[int, ...]:
    if level is not None:
        return (level,)
    if not leaf:
        return (2, 3, 4, 5)
    if not spte & PT_PAGE_SIZE_MASK:
        return (1,)
    return (2, 3) if not fmt.pfn(spte) & (1 << 18) - 1 else (2,)


def _bits_text(value: int) -> str:
    """The numbers of the set bits, runs shortened: ``bits 3, 52-54``."""
    runs: list[str] = []
    bit = 0
    while value >> bit:
        if not value >> bit & 1:
            bit += 1
            continue
        first = bit
        while value >> bit & 1:
            bit += 1
        runs.append(str(first) if bit - first == 1 else f"{first}-{bit - 1}")
    return ("bits " if len(runs) > 1 or "-" in runs[0] else "bit ") + ", ".join(runs)


def _a(fmt: SpteFormat) -> str:
    return f"a {fmt.name}" if fmt.name == "shadow" else f"an {fmt.name}"


def _why_not_present(spte: int, fmt: SpteFormat) -> str:
    foreign = spte & ~fmt.nonpresent
    return f"MMU-present (bit 11) is clear, but {_bits_text(foreign or spte)} set"


def _frozen_lookalike(spte: int, fmt: SpteFormat) -> list[str]:
    """Another kernel's frozen value, or this one's with a bit that must not be there."""
    stripped = spte & ~(1 << 63 | 1 << 11)
    if stripped not in (0x5A0, 1 << 59):
        return []
    return [f"looks like a frozen SPTE, but {fmt.kernel} freezes with {fmt.removed:#x} exactly"]


def _leaf_bits(fmt: SpteFormat, huge: bool) -> int:
    """Every bit that ``make_spte`` can set in a leaf, address apart."""
    known = fmt.present | fmt.user | fmt.exec | fmt.nx | fmt.accessed | fmt.dirty | fmt.memtype
    known |= fmt.host_writable | fmt.mmu_writable | fmt.mmu_present | PT_WRITABLE_MASK
    if fmt.name == "ept":
        known |= TDP_AD_MASK | ACC_TRACK_SAVED_MASK
    return known | PT_PAGE_SIZE_MASK if huge else known


def _leaf_problems(spte: int, fmt: SpteFormat, levels: tuple[int, ...]) -> list[str]:
    problems = []
    level = levels[0]
    huge = level > 1
    if level > 3:
        problems.append(f"leaf bit (7) at level {level}: pages are 4K, 2M or 1G")
    elif not huge and spte & PT_PAGE_SIZE_MASK:
        problems.append("leaf bit (7) at level 1, where every entry is a leaf")
    elif huge and fmt.pfn(spte) & ((1 << 9 * (level - 1)) - 1):
        low = spte & ((1 << PAGE_SHIFT + 9 * (level - 1)) - 1) & BASE_ADDR_MASK
        problems.append(f"a {PAGE_SIZES[level]} page with address {_bits_text(low)} set")
    unknown = spte & ~_leaf_bits(fmt, True) & ~BASE_ADDR_MASK
    if unknown:
        problems.append(f"KVM sets no {_bits_text(unknown)} in {_a(fmt)} leaf")
    if fmt.is_mmu_writable(spte):
        if not fmt.is_host_writable(spte):
            problems.append("MMU-writable but not host-writable")
    elif fmt.is_writable(spte):
        problems.append("writable but not MMU-writable")
    if fmt.name == "ept":
        memory_type = (spte & EPT_MT_MASK) >> EPT_MT_SHIFT
        if memory_type not in MEMORY_TYPES:
            problems.append(f"memory type {memory_type} is reserved")
    return problems


def _nonleaf_problems(spte: int, fmt: SpteFormat, level: int | None) -> list[str]:
    problems = []
    template = fmt.nonleaf(0)
    if fmt.name == "ept":
        template |= TDP_AD_MASK
    else:
        template |= PT64_NX_MASK
    unknown = spte & ~template & ~BASE_ADDR_MASK
    if unknown:
        where = "" if level is None else f" at level {level}"
        problems.append(f"KVM sets no {_bits_text(unknown)} in {_a(fmt)} non-leaf{where}")
    if not fmt.is_writable(spte):
        problems.append("a non-leaf without write permission")
    if not fmt.is_executable(spte):
        problems.append("a non-leaf without execute permission")
    return problems


def _common_problems(spte: int, fmt: SpteFormat, phys_bits: int) -> list[str]:
    problems = []
    reserved = spte & BASE_ADDR_MASK & ~((1 << phys_bits) - 1)
    if reserved:
        problems.append(f"reserved address {_bits_text(reserved)} set")
    if fmt.name == "ept":
        problems += _ept_problems(spte, fmt)
    else:
        if not spte & PT_PRESENT_MASK:
            problems.append("MMU-present, but the hardware's P (bit 0) is clear")
        if fmt.name == "npt" and not spte & PT_USER_MASK:
            problems.append("U (bit 2) is clear: nested accesses are user accesses and all fault")
    return problems


def _ept_problems(spte: int, fmt: SpteFormat) -> list[str]:
    problems = []
    rwx = spte & EPT_RWX_MASK
    if rwx & 3 == 2:
        problems.append("EPT misconfiguration: writable but not readable")
    ad_type = (spte & TDP_AD_MASK) >> 52
    if ad_type == 3:
        problems.append("A/D type 3 (bits 53:52) is not in use")
    disabled = ad_type == 1
    if disabled:
        hardware = fmt.dirty if fmt.software_accessed else fmt.dirty | fmt.accessed
        if spte & hardware:
            problems.append(f"A/D bits are disabled, but {_bits_text(spte & hardware)} set")
    if spte & ACC_TRACK_SAVED_MASK and not (disabled and not rwx):
        problems.append("saved access-track bits in an SPTE which is not access-tracked")
    if not rwx and not disabled:
        problems.append("MMU-present, but without R, W and X the hardware sees nothing")
    if fmt.present & EPT_SUPPRESS_VE_BIT and not spte & EPT_SUPPRESS_VE_BIT:
        problems.append(f"suppress-#VE (bit 63) is clear; {fmt.kernel} sets it in present SPTEs")
    return problems


def _read_mmio(spte: int, fmt: SpteFormat, level: int | None, hints: tuple[str, ...]) -> Decoded:
    fields, generation_mask = mmio_fields(fmt, spte)
    problems = []
    if fmt.mmu_present & spte:
        problems.append("MMU-present (bit 11) in an MMIO SPTE")
    address = BASE_ADDR_MASK & ~MMIO_RESERVED_BIT
    known = fmt.mmio_fixed | fmt.mmio_access | generation_mask | address | fmt.mmu_present
    if spte & ~known:
        problems.append(f"KVM sets no {_bits_text(spte & ~known)} in {_a(fmt)} MMIO SPTE")
    if fmt.mmio_fixed & ~spte:
        problems.append(f"an MMIO SPTE without {_bits_text(fmt.mmio_fixed & ~spte)}")
    access = spte & fmt.mmio_access
    return Decoded(
        spte,
        fmt.name,
        fmt.kernel,
        level,
        "MMIO",
        mmio_gfn=(spte & address) >> PAGE_SHIFT,
        mmio_generation=fmt.mmio_generation(spte),
        mmio_access=("w" if access & 2 else "-") + ("u" if access & 4 else "-"),
        bits=fields,
        problems=tuple(problems),
        hints=hints,
    )


def _hints(spte: int, fmt: SpteFormat, level: int | None, phys_bits: int) -> tuple[str, ...]:
    """Formats and kernels under which the value makes sense; the nearest one first."""
    same_format = [(fmt.name, kernel) for kernel in (fmt.kernel, *_SUMMARY_KERNELS)]
    same_kernel = [(name, fmt.kernel) for name in FORMAT_NAMES]
    rest = [(name, kernel) for name in FORMAT_NAMES for kernel in _SUMMARY_KERNELS]
    for name, kernel in same_kernel + same_format + rest:
        other = spte_format(name, kernel)
        decoded = _read(spte, other, level, phys_bits)
        if not decoded.problems:
            return (f"well-formed as --format {name} --kernel {kernel}: {decoded.kind}",)
    if level is not None:
        decoded = _read(spte, fmt, None, phys_bits)
        if not decoded.problems:
            return (f"well-formed at another level: {decoded.kind}",)
    return ()


def _nonpresent_hint(spte: int, fmt: SpteFormat) -> tuple[str, ...]:
    if spte == 0 and fmt.nonpresent:
        return (f"{fmt.kernel} writes 1 << 63 here; 0 is the non-present value up to 6.9",)
    return ()
