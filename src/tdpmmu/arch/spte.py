"""SPTE encodings: what a 64-bit page table entry of KVM means, per CPU format and kernel version.

A :class:`SpteFormat` is one CPU format (EPT, NPT, legacy shadow paging) as one kernel version uses
it.  The masks carry the kernel's names without ``shadow_``/``SPTE_``: ``kvm_mmu_set_ept_masks`` and
``kvm_mmu_reset_all_pte_masks`` (spte.c) set the kernel's own.  All formats describe a 64-bit host
with less than 52 physical address bits, no memory encryption and no L1TF mitigation; EPT is that of
a CPU with execute-only pages.  Hardware A/D bits can be off (``kvm_ad_enabled``), with EPT only.

What differs between the kernel versions:

========================  ==================  ==============  ==================
..                        5.12-rc4, 5.12      5.13, 6.1       6.12, 6.18
========================  ==================  ==============  ==================
non-present value         0                   0               1 << 63
removed / frozen value    1 << 59             0x5a0           1 << 63 | 0x5a0
MMU-present bit           none                11              11
host-, MMU-writable       10, 11              9, 10           9, 10
the same, EPT             10, 11              57, 58          57, 58
MMIO generation bits      3-11, 54-62         3-10, 52-62     3-10, 52-62
MMIO mark                 bits 53:52 = 3      its own mask    its own mask
suppress-#VE bit (EPT)    clear               clear           set, if not MMIO
========================  ==================  ==============  ==================

6.18 differs from 6.12 in one thing: KVM keeps the accessed bit up to date even for SPTEs with
hardware A/D bits off.

Units: ``pfn`` counts 4 KiB pages (address >> 12); level 1 is a 4 KiB page.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache

PAGE_SHIFT = 12
SPTE_BITS = 64

BASE_ADDR_MASK = ((1 << 52) - 1) & ~((1 << PAGE_SHIFT) - 1)
PT_PRESENT_MASK = 1 << 0
PT_WRITABLE_MASK = 1 << 1
PT_USER_MASK = 1 << 2
PT_ACCESSED_MASK = 1 << 5
PT_DIRTY_MASK = 1 << 6
PT_PAGE_SIZE_MASK = 1 << 7
PT64_NX_MASK = 1 << 63

EPT_READABLE_MASK = 1 << 0
EPT_EXECUTABLE_MASK = 1 << 2
EPT_RWX_MASK = 7
EPT_MT_SHIFT = 3
EPT_MT_MASK = 7 << EPT_MT_SHIFT
EPT_IPAT_BIT = 1 << 6
EPT_ACCESS_BIT = 1 << 8
EPT_DIRTY_BIT = 1 << 9
EPT_SUPPRESS_VE_BIT = 1 << 63
EPT_MISCONFIG_WX_VALUE = 6
MT_WRITE_BACK = 6

MMIO_RESERVED_BIT = 1 << 51

TDP_AD_SHIFT = 52
TDP_AD_MASK = 3 << TDP_AD_SHIFT
TDP_AD_DISABLED = 1 << TDP_AD_SHIFT
TDP_AD_WRPROT_ONLY = 2 << TDP_AD_SHIFT

ACC_TRACK_SAVED_SHIFT = 54
ACC_TRACK_SAVED_MASK = (EPT_READABLE_MASK | EPT_EXECUTABLE_MASK) << ACC_TRACK_SAVED_SHIFT

FORMAT_NAMES = ("ept", "npt", "shadow")
KERNELS = ("5.12-rc4", "5.12", "5.13", "6.1", "6.12", "6.18")


class Access(enum.Enum):
    """What a guest instruction wants of a page."""

    READ = "read"
    WRITE = "write"
    EXEC = "exec"


@dataclass(frozen=True, slots=True)
class SpteFormat:
    """One CPU format as one kernel version uses it; get it from :func:`spte_format`.

    ``user`` is the kernel's ``shadow_user_mask``, which is the R bit for EPT; ``nx`` is 0 for EPT
    and ``exec`` is 0 elsewhere; ``present`` is what every present SPTE carries whatever its
    permissions (``shadow_present_mask``).  ``mmu_present`` is 0 for kernels without that bit.
    ``removed`` is ``REMOVED_SPTE`` (``FROZEN_SPTE`` from 6.11).  ``mmio_gen_low`` and
    ``mmio_gen_high`` are (first, last) bit numbers; ``mmio_fixed`` is ``shadow_mmio_value``, what
    every MMIO SPTE has set, of which 5.12 looks at the bits of ``mmio_mask`` only.
    ``software_accessed`` says that the accessed bit is valid without hardware A/D bits.
    ``has_ad_bits`` is ``kvm_ad_enabled``: the CPU keeps accessed and dirty bits.
    """

    name: str
    kernel: str
    present: int
    user: int
    exec: int
    nx: int
    accessed: int
    dirty: int
    host_writable: int
    mmu_writable: int
    mmu_present: int
    acc_track: int
    memtype: int
    memtype_wb: int
    nonpresent: int
    removed: int
    mmio_mask: int
    mmio_value: int
    mmio_fixed: int
    mmio_access: int
    mmio_gen_low: tuple[int, int]
    mmio_gen_high: tuple[int, int]
    software_accessed: bool
    has_ad_bits: bool = True
    writable: int = PT_WRITABLE_MASK
    large: int = PT_PAGE_SIZE_MASK
    address: int = BASE_ADDR_MASK
    ad_type: int = TDP_AD_MASK
    ad_disabled: int = TDP_AD_DISABLED
    ad_wrprot_only: int = TDP_AD_WRPROT_ONLY
    acc_track_saved: int = ACC_TRACK_SAVED_MASK
    acc_track_saved_shift: int = ACC_TRACK_SAVED_SHIFT

    def is_shadow_present(self, spte: int) -> bool:
        """``is_shadow_present_pte``: KVM counts the entry as mapping a page or a page table.

        Bit 11 from 5.13 on; before, everything that is not zero, not MMIO and not removed.
        """
        if self.mmu_present:
            return bool(spte & self.mmu_present)
        return spte != 0 and spte != self.removed and not self.is_mmio(spte)

    def is_large(self, spte: int) -> bool:
        """``is_large_pte``: bit 7."""
        return bool(spte & PT_PAGE_SIZE_MASK)

    def is_last(self, spte: int, level: int) -> bool:
        """``is_last_spte``: a present entry with this value at ``level`` (1 = 4 KiB) is a leaf."""
        return level == 1 or bool(spte & PT_PAGE_SIZE_MASK)

    def is_frozen(self, spte: int) -> bool:
        """``is_removed_spte`` up to 6.10, ``is_frozen_spte`` from 6.11."""
        return spte == self.removed

    def is_mmio(self, spte: int) -> bool:
        """``is_mmio_spte``: KVM will emulate the access without looking for a memslot."""
        return spte & self.mmio_mask == self.mmio_value

    def pfn(self, spte: int) -> int:
        """``spte_to_pfn``: the 4 KiB frame that the entry points to."""
        return (spte & BASE_ADDR_MASK) >> PAGE_SHIFT

    def is_writable(self, spte: int) -> bool:
        """``is_writable_pte``: the hardware writable bit."""
        return bool(spte & PT_WRITABLE_MASK)

    def is_executable(self, spte: int) -> bool:
        """``is_executable_pte``: the X bit of EPT is set, or NX is clear."""
        return spte & (self.exec | self.nx) == self.exec

    def is_readable(self, spte: int) -> bool:
        """The hardware lets reads through: R of EPT, P elsewhere."""
        return bool(spte & PT_PRESENT_MASK)

    def is_mmu_writable(self, spte: int) -> bool:
        """``is_mmu_writable_spte``: a write fault may make it writable without ``mmu_lock``."""
        return bool(spte & self.mmu_writable)

    def is_host_writable(self, spte: int) -> bool:
        """The memslot and the host mapping let the guest write."""
        return bool(spte & self.host_writable)

    def ad_enabled(self, spte: int) -> bool:
        """``spte_ad_enabled``: this present SPTE uses hardware A/D bits."""
        return spte & TDP_AD_MASK != TDP_AD_DISABLED

    def ad_need_write_protect(self, spte: int) -> bool:
        """``spte_ad_need_write_protect``: dirty logging needs write protection for this SPTE."""
        return bool(spte & TDP_AD_MASK)

    def is_access_track(self, spte: int) -> bool:
        """``is_access_track_spte``: no A/D bits, and made inaccessible to see the next access."""
        return not self.ad_enabled(spte) and not spte & self.acc_track

    def is_accessed(self, spte: int) -> bool:
        """``is_accessed_spte`` of a present SPTE."""
        if self.software_accessed or self.ad_enabled(spte):
            return bool(spte & self.accessed)
        return not self.is_access_track(spte)

    def mark_for_access_track(self, spte: int) -> int:
        """``mark_spte_for_access_track``: no accessed bit, or without A/D bits no access at all.

        R and X are saved; W comes back by way of the MMU-writable bit.
        """
        if self.ad_enabled(spte):
            return spte & ~self.accessed
        if self.is_access_track(spte):
            return spte
        saved = self.acc_track_saved >> self.acc_track_saved_shift
        spte |= (spte & saved) << self.acc_track_saved_shift
        return spte & ~(self.acc_track | self.accessed)

    def restore_acc_track(self, spte: int) -> int:
        """``restore_acc_track_spte``: R and X as they were saved."""
        saved = (spte & self.acc_track_saved) >> self.acc_track_saved_shift
        return spte & ~(self.acc_track | self.acc_track_saved) | saved

    def granted(self, spte: int) -> int:
        """What an entry gave when it was last accessible: nobody flushes for access tracking."""
        if not self.is_access_track(spte):
            return spte
        spte = self.restore_acc_track(spte)
        return spte | PT_WRITABLE_MASK if self.is_mmu_writable(spte) else spte

    def is_walkable(self, spte: int) -> bool:
        """Hardware takes it for present: it is to KVM, and not access-tracked."""
        return self.is_shadow_present(spte) and not self.is_access_track(spte)

    def is_dirty(self, spte: int) -> bool:
        """``is_dirty_spte`` of a present SPTE; without A/D bits writable means dirty."""
        if self.ad_enabled(spte):
            return bool(spte & self.dirty)
        return bool(spte & PT_WRITABLE_MASK)

    def leaf(
        self,
        pfn: int,
        level: int,
        *,
        write: bool,
        execute: bool,
        accessed: bool = True,
        dirty: bool = True,
        host_writable: bool = True,
        mmu_writable: bool = True,
    ) -> int:
        """The leaf that ``make_spte`` builds for a direct map.

        ``write=False`` with ``mmu_writable=True`` is the same SPTE after write protection for dirty
        logging.  As in the kernel a page that is not host-writable gets neither of the two other
        write bits, one that is not MMU-writable no W bit, and only a writable one is dirty.
        ValueError if ``level`` is below 1 or ``pfn`` does not fit.  No alignment of huge pages is
        demanded: small geometries have huge pages of fewer than 512 pages.
        """
        spte = self._address(pfn) | self.mmu_present | self.present | self.user | self.memtype_wb
        spte |= 0 if self.has_ad_bits else TDP_AD_DISABLED
        if level < 1:
            raise ValueError(f"level {level} is not 1 or more")
        if level > 1:
            spte |= PT_PAGE_SIZE_MASK
        if accessed:
            spte |= self.accessed
        spte |= self.exec if execute else self.nx
        if host_writable:
            spte |= self.host_writable
            if mmu_writable:
                spte |= self.mmu_writable
                if write:
                    spte |= PT_WRITABLE_MASK
                    if dirty:
                        spte |= self.dirty
        return spte

    def nonleaf(self, pfn: int) -> int:
        """``make_nonleaf_spte``: the entry that links the page table page in frame ``pfn``.

        All permissions and the accessed bit, if there is one, are set.  ValueError if ``pfn`` does
        not fit.
        """
        return (
            self._address(pfn)
            | self.mmu_present
            | self.present
            | PT_WRITABLE_MASK
            | self.user
            | self.exec
            | (self.accessed if self.has_ad_bits else TDP_AD_DISABLED)
        )

    def split_child(self, huge: int, level: int, offset: int, *, executable: bool = True) -> int:
        """``make_huge_page_split_spte``: the leaf at ``level`` mapping one part of ``huge``.

        ``offset`` is that part's distance from the start of the huge page, in 4 KiB pages.  A 4 KiB
        leaf becomes executable (``executable``, the NX mitigation is on and the table's role allows
        it); other levels keep the bit of ``huge``.
        """
        spte = huge + (offset << PAGE_SHIFT)
        if level == 1:
            spte &= ~PT_PAGE_SIZE_MASK
            if executable:
                spte = self._modify(spte, self.exec, self.nx)
        return spte

    def _modify(self, spte: int, bits: int, clear: int) -> int:
        """``modify_spte_protections``: of an access-tracked SPTE those that it will have again."""
        if not self.is_access_track(spte):
            return (spte | bits) & ~clear
        return self.mark_for_access_track((self.restore_acc_track(spte) | bits) & ~clear)

    def huge(self, small: int, offset: int, *, executable: bool) -> int:
        """``make_huge_spte``: the huge leaf of which ``small`` maps one part.

        ``offset`` is that part's distance from the start of the huge page, in 4 KiB pages; all but
        the frame and, with the NX mitigation, execution, is taken over.
        """
        spte = small - (offset << PAGE_SHIFT) | PT_PAGE_SIZE_MASK
        return spte if executable else self._modify(spte, self.nx, self.exec)

    def mmio(self, gfn: int, generation: int = 0, access: int = 7) -> int:
        """``make_mmio_spte``: "``gfn`` has no memslot", valid for one memslot generation.

        ``generation`` has as many bits as the format stores; the kernel drops higher ones too.
        ``access`` is the kernel's ``ACC_*`` (exec 1, write 2, user 4).  ValueError if ``gfn`` does
        not fit below the reserved bit.
        """
        if gfn < 0 or gfn >= 1 << 39:
            raise ValueError(f"gfn {gfn:#x} does not fit bits 50:12 of an MMIO SPTE")
        low, high = self.mmio_gen_low, self.mmio_gen_high
        low_bits = low[1] - low[0] + 1
        high_bits = high[1] - high[0] + 1
        spte = (generation & ((1 << low_bits) - 1)) << low[0]
        spte |= (generation >> low_bits & ((1 << high_bits) - 1)) << high[0]
        return spte | self.mmio_fixed | gfn << PAGE_SHIFT | access & self.mmio_access

    def mmio_gfn(self, spte: int) -> int:
        """``get_mmio_spte_gfn``."""
        return (spte & BASE_ADDR_MASK & ~self.mmio_fixed) >> PAGE_SHIFT

    def mmio_generation(self, spte: int) -> int:
        """``get_mmio_spte_generation``."""
        low, high = self.mmio_gen_low, self.mmio_gen_high
        low_bits = low[1] - low[0] + 1
        generation = spte >> low[0] & ((1 << low_bits) - 1)
        return generation | (spte >> high[0] & ((1 << (high[1] - high[0] + 1)) - 1)) << low_bits

    def _address(self, pfn: int) -> int:
        address = pfn << PAGE_SHIFT
        if address & ~BASE_ADDR_MASK:
            raise ValueError(f"pfn {pfn:#x} does not fit bits 51:12 of an SPTE")
        return address

    def allows(self, spte: int, kind: Access) -> bool:
        """May the hardware access memory through this leaf?  A/D bits play no part.

        EPT: W without R is a misconfiguration, which allows nothing.  NPT: nested accesses are user
        accesses, so U must be set.  MMIO SPTEs carry a reserved bit (or that misconfiguration) and
        always fault.  Bits that only KVM reads, like MMU-present, play no part.
        """
        if self.is_mmio(spte):
            return False
        if self.name == "ept":
            rwx = spte & EPT_RWX_MASK
            if rwx & 3 == 2:
                return False
            return bool(rwx & _EPT_BIT[kind])
        if not spte & PT_PRESENT_MASK or (self.name == "npt" and not spte & PT_USER_MASK):
            return False
        if kind is Access.WRITE:
            return bool(spte & PT_WRITABLE_MASK)
        return kind is Access.READ or not spte & PT64_NX_MASK


_EPT_BIT = {Access.READ: 1, Access.WRITE: 2, Access.EXEC: 4}


@cache
def spte_format(name: str, kernel: str, *, ad_bits: bool = True) -> SpteFormat:
    """The format ``name`` (:data:`FORMAT_NAMES`) of ``kernel`` (:data:`KERNELS`).

    Without ``ad_bits`` the CPU keeps no accessed and dirty bits, as some have it with EPT.
    ValueError, naming the known ones, for others.
    """
    if name not in FORMAT_NAMES:
        raise ValueError(f"unknown SPTE format {name!r}: known are {', '.join(FORMAT_NAMES)}")
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: known are {', '.join(KERNELS)}")
    ept = name == "ept"
    if not ad_bits and not ept:
        raise ValueError(f"SPTE format {name} always has A/D bits; only ept can do without")
    # In 6.18 the masks stay without them, as bits of software's.
    masks = ad_bits or kernel == "6.18"
    old = kernel in ("5.12-rc4", "5.12")
    nonpresent = 1 << 63 if kernel in ("6.12", "6.18") else 0
    suppress_ve = nonpresent and EPT_SUPPRESS_VE_BIT
    mmio_fixed = EPT_MISCONFIG_WX_VALUE if ept else MMIO_RESERVED_BIT | PT_PRESENT_MASK
    if old:
        # 5.12 marks MMIO with A/D type 3, whatever the vendor's value is.
        mmio_fixed |= TDP_AD_MASK
        mmio_mask = mmio_value = TDP_AD_MASK
    else:
        mmio_mask = EPT_RWX_MASK | suppress_ve if ept else mmio_fixed
        mmio_value = mmio_fixed
    high_bits = ept and not old
    return SpteFormat(
        name=name,
        kernel=kernel,
        present=suppress_ve if ept else PT_PRESENT_MASK,
        user=EPT_READABLE_MASK if ept else PT_USER_MASK,
        exec=EPT_EXECUTABLE_MASK if ept else 0,
        nx=0 if ept else PT64_NX_MASK,
        accessed=(EPT_ACCESS_BIT if ept else PT_ACCESSED_MASK) if masks else 0,
        dirty=(EPT_DIRTY_BIT if ept else PT_DIRTY_MASK) if masks else 0,
        host_writable=1 << (10 if old else 57 if high_bits else 9),
        mmu_writable=1 << (11 if old else 58 if high_bits else 10),
        mmu_present=0 if old else 1 << 11,
        acc_track=EPT_RWX_MASK if ept else 0,
        memtype=EPT_MT_MASK | EPT_IPAT_BIT if ept else 0,
        memtype_wb=MT_WRITE_BACK << EPT_MT_SHIFT | EPT_IPAT_BIT if ept else 0,
        nonpresent=nonpresent,
        removed=1 << 59 if old else nonpresent | 0x5A0,
        mmio_mask=mmio_mask,
        mmio_value=mmio_value,
        mmio_fixed=mmio_fixed,
        mmio_access=0 if ept else PT_WRITABLE_MASK | PT_USER_MASK,
        mmio_gen_low=(3, 11 if old else 10),
        mmio_gen_high=(54 if old else 52, 62),
        software_accessed=kernel == "6.18",
        has_ad_bits=ad_bits,
    )
