"""The bits of an SPTE by the names that the kernel has for them."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.spte import BASE_ADDR_MASK, PAGE_SHIFT, SpteFormat

_AD_TYPES = ("enabled", "disabled", "write protection only", "reserved")
_OLD = ("5.12-rc4", "5.12")


@dataclass(frozen=True, slots=True)
class BitField:
    """Bits ``high`` down to ``low`` and what they hold."""

    high: int
    low: int
    name: str
    value: int
    meaning: str


def _field(spte: int, high: int, low: int, name: str, meaning: str = "") -> BitField:
    return BitField(high, low, name, spte >> low & ((1 << high - low + 1) - 1), meaning)


def _software_names(fmt: SpteFormat) -> tuple[str, str]:
    """Host-writable and MMU-writable; spelled "writeable" up to 5.17, but for EPT."""
    if fmt.kernel in _OLD:
        return "SPTE_HOST_WRITEABLE", "SPTE_MMU_WRITEABLE"
    if fmt.name == "ept":
        return "EPT_SPTE_HOST_WRITABLE", "EPT_SPTE_MMU_WRITABLE"
    if fmt.kernel == "5.13":
        return "DEFAULT_SPTE_HOST_WRITEABLE", "DEFAULT_SPTE_MMU_WRITEABLE"
    return "DEFAULT_SPTE_HOST_WRITABLE", "DEFAULT_SPTE_MMU_WRITABLE"


def _bit_number(mask: int) -> int:
    return mask.bit_length() - 1


def bit_fields(fmt: SpteFormat, spte: int) -> tuple[BitField, ...]:
    """Every field of a present SPTE of ``fmt``, set or not, highest bit first."""
    host_name, mmu_name = _software_names(fmt)
    host = _bit_number(fmt.host_writable)
    mmu = _bit_number(fmt.mmu_writable)
    fields = [
        _field(spte, host, host, host_name, "memslot and host mapping are writable"),
        _field(spte, mmu, mmu, mmu_name, "a write fault may set W without mmu_lock"),
        _field(spte, 51, PAGE_SHIFT, "SPTE_BASE_ADDR_MASK", "physical address >> 12"),
        _field(spte, 7, 7, "PT_PAGE_SIZE_MASK", "leaf above level 1"),
    ]
    if fmt.mmu_present:
        fields.append(_field(spte, 11, 11, "SPTE_MMU_PRESENT_MASK", "KVM counts it as present"))
    if fmt.name == "ept":
        old = fmt.kernel in _OLD
        ad_type = _AD_TYPES[spte >> 52 & 3]
        ad_name = "SPTE_SPECIAL_MASK" if old else "SPTE_TDP_AD_MASK"
        saved = "SHADOW_ACC_TRACK_SAVED_BITS"
        fields += [
            _field(spte, 63, 63, "VMX_EPT_SUPPRESS_VE_BIT", "no #VE for this entry"),
            _field(spte, 56, 56, f"{saved} (X)", "X before access tracking"),
            _field(spte, 54, 54, f"{saved} (R)", "R before access tracking"),
            _field(spte, 53, 52, ad_name, f"A/D bits: {ad_type}"),
            _field(spte, 9, 9, "VMX_EPT_DIRTY_BIT", "dirty"),
            _field(spte, 8, 8, "VMX_EPT_ACCESS_BIT", "accessed"),
            _field(spte, 6, 6, "VMX_EPT_IPAT_BIT", "ignore the guest's PAT"),
            _field(spte, 5, 3, "VMX_EPT_MT_MASK", "memory type"),
            _field(spte, 2, 2, "VMX_EPT_EXECUTABLE_MASK", "execute"),
            _field(spte, 1, 1, "VMX_EPT_WRITABLE_MASK", "write"),
            _field(spte, 0, 0, "VMX_EPT_READABLE_MASK", "read"),
        ]
    else:
        fields += [
            _field(spte, 63, 63, "PT64_NX_MASK", "no execute"),
            _field(spte, 6, 6, "PT_DIRTY_MASK", "dirty"),
            _field(spte, 5, 5, "PT_ACCESSED_MASK", "accessed"),
            _field(spte, 2, 2, "PT_USER_MASK", "user accesses"),
            _field(spte, 1, 1, "PT_WRITABLE_MASK", "write"),
            _field(spte, 0, 0, "PT_PRESENT_MASK", "present to the hardware"),
        ]
    return _sorted_with_rest(spte, fields)


def mmio_fields(fmt: SpteFormat, spte: int) -> tuple[tuple[BitField, ...], int]:
    """The fields of an MMIO SPTE, highest bit first, and the mask of its generation bits."""
    low, high = fmt.mmio_gen_low, fmt.mmio_gen_high
    fields = [
        _field(spte, high[1], high[0], "MMIO_SPTE_GEN_HIGH_MASK", "memslot generation, high part"),
        _field(spte, low[1], low[0], "MMIO_SPTE_GEN_LOW_MASK", "memslot generation, low part"),
    ]
    mask = 0
    for field in fields:
        mask |= (1 << field.high + 1) - (1 << field.low)
    if fmt.kernel in _OLD:
        fields.append(_field(spte, 53, 52, "SPTE_SPECIAL_MASK", "SPTE_MMIO_MASK if 3"))
    if fmt.name == "ept":
        fields.append(_field(spte, 51, PAGE_SHIFT, "gfn", "guest frame without a memslot"))
        fields.append(_field(spte, 2, 0, "VMX_EPT_MISCONFIG_WX_VALUE", "the misconfiguration"))
    else:
        fields += [
            _field(spte, 51, 51, "reserved address bit", "makes the access fault"),
            _field(spte, 50, PAGE_SHIFT, "gfn", "guest frame without a memslot"),
            _field(spte, 2, 1, "ACC_USER_MASK | ACC_WRITE_MASK", "shadow_mmio_access_mask"),
            _field(spte, 0, 0, "PT_PRESENT_MASK", "present to the hardware"),
        ]
    return _sorted_with_rest(spte, fields), mask


def _sorted_with_rest(spte: int, fields: list[BitField]) -> tuple[BitField, ...]:
    """Add the set bits that no field covers."""
    covered = BASE_ADDR_MASK
    for field in fields:
        covered |= (1 << field.high + 1) - (1 << field.low)
    rest = spte & ~covered
    while rest:
        bit = _bit_number(rest)
        fields.append(BitField(bit, bit, "no name", 1, "KVM has no use for it here"))
        rest &= ~(1 << bit)
    return tuple(sorted(fields, key=lambda field: -field.high))
