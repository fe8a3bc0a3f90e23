"""The kernel's KVM tracepoints in its own words, from what the model knows (mmutrace.h, trace.h).

What no model has is printed as 0 (instruction pointers) or made up from the page's number (the
addresses of pages), the same in every run.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.hardware import Hardware, VcpuCells
from tdpmmu.arch.spte import PAGE_SHIFT, PT_WRITABLE_MASK
from tdpmmu.arch.table import Header, TablePage
from tdpmmu.events.records import GuestAccess
from tdpmmu.machine.op import Step
from tdpmmu.render.x86 import PADDING_PFN, X86

KVM = 0xFFFFC90000400000
"""The address of ``struct kvm``."""

_SP = 0xFFFF888100000000
_SP_SIZE = 0xB8
_RCU_HEAD = 0xA8
"""Where ``rcu_head`` is in ``struct kvm_mmu_page``, as in the recorded traces."""

_DIRECT_MAP = 0xFFFF888000000000
_ACC_ALL = 7
_PFERR = {"read": 0, "write": 1 << 1, "exec": 1 << 4}
_PFERR_PRESENT, _PFERR_USER, _PFERR_GUEST_FINAL = 1 << 0, 1 << 2, 1 << 32
_EPT_ACCESS = {"read": 1 << 0, "write": 1 << 1, "exec": 1 << 2}
_EPT_GVA = 3 << 7
"""Exit qualification: the guest's address is valid, and this is the access to its translation."""


def sp_address(page: TablePage) -> int:
    """The address of a page's ``struct kvm_mmu_page``."""
    return _SP + page.number * _SP_SIZE


def rcu_head(page: TablePage) -> int:
    """The address of its ``rcu_head``."""
    return sp_address(page) + _RCU_HEAD


def role(header: Header, invalid: bool) -> int:
    """``role.word`` of a page with NX, CR0.WP and A/D bits."""
    word = header.role_level | header.direct << 7 | header.access << 8 | invalid << 11 | 3 << 12
    return word | header.guest_mode << 17 | header.as_id << 24


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as ``kvm_page_fault`` and ``kvm_exit`` print it."""

    address: int
    code: int
    reason: str
    info1: int
    info2: int


class KvmEvents:
    """Prints the events of one machine, in x86's numbers."""

    def __init__(self, hardware: Hardware, x86: X86) -> None:
        self._hardware = hardware
        self._format = hardware.format
        self._x86 = x86
        self._ept = hardware.format.name == "ept"

    def page(self, page: TablePage, header: Header, step: Step) -> str:
        """``KVM_MMU_PAGE_PRINTK``: what all events of page table pages start with."""
        unsync = getattr(page, "unsync", None)
        direct = " direct" if header.direct else ""
        invalid = " invalid" if step[page.invalid] else ""
        state = "unsync" if unsync is not None and step[unsync] else "sync"
        return (
            f"sp gen 0 gfn {self._x86.gfn(header.gfn):x} l{header.role_level} 8-byte q0{direct} "
            f"{_access(header.access)}{invalid} nxe ad root {step[page.root_count]} {state}"
        )

    def get_page(self, page: TablePage, header: Header, step: Step) -> str:
        """``kvm_mmu_get_page`` of a new page."""
        return f"kvm_mmu_get_page: {self.page(page, header, step)} new"

    def padding(self, root: TablePage, header: Header) -> list[str]:
        """The tables from x86's root down to that of a model with fewer levels, each linked."""
        lines = []
        for level in range(self._x86.levels, header.level, -1):
            below = PADDING_PFN + root.number * self._x86.levels + level - 2
            child = root.pfn if level == header.level + 1 else below
            empty, link = self._format.nonpresent, self._format.nonleaf(child)
            lines.append(
                f"kvm_mmu_get_page: sp gen 0 gfn 0 l{level} 8-byte q0 direct wux nxe ad root "
                f"{int(level == self._x86.levels)} sync new"
            )
            lines.append(self.spte_changed(header.as_id, 0, level, empty, link))
        return lines

    def prepare_zap_page(self, page: TablePage, header: Header, step: Step) -> str:
        """``kvm_mmu_prepare_zap_page``."""
        return f"kvm_mmu_prepare_zap_page: {self.page(page, header, step)}"

    def spte_changed(self, as_id: int, gfn: int, level: int, old: int, new: int) -> str:
        """``kvm_tdp_mmu_spte_changed``."""
        x86 = self._x86
        return (
            f"kvm_tdp_mmu_spte_changed: as id {as_id} gfn {x86.gfn(gfn):x} level {level} "
            f"old_spte {x86.spte(old, level):x} new_spte {x86.spte(new, level):x}"
        )

    def set_spte(self, page: TablePage, index: int, gfn: int, level: int, spte: int) -> str:
        """``kvm_mmu_set_spte``, or ``mark_mmio_spte`` for an MMIO SPTE."""
        fmt, x86 = self._format, self._x86
        new = x86.spte(spte, level)
        sptep = (page.pfn << PAGE_SHIFT) + index * 8
        if fmt.is_mmio(spte):
            return (
                f"mark_mmio_spte: sptep:{_DIRECT_MAP + sptep:016x} gfn {x86.gfn(gfn):x} "
                f"access {spte & _ACC_ALL:x} gen {fmt.mmio_generation(spte):x}"
            )
        reading = (
            ("r" if fmt.present or spte & 1 else "-")
            + ("w" if spte & PT_WRITABLE_MASK else "-")
            + ("x" if fmt.is_executable(spte) else "-")
            + ("u" if spte & fmt.user else "-")
        )
        return (
            f"kvm_mmu_set_spte: gfn {x86.gfn(gfn):x} spte {new:x} ({reading}) level {level} "
            f"at {sptep:x}"
        )

    def split_huge_page(self, gfn: int, level: int, huge: int) -> str:
        """``kvm_mmu_split_huge_page``."""
        spte = self._x86.spte(huge, level)
        return (
            f"kvm_mmu_split_huge_page: gfn {self._x86.gfn(gfn):x} spte {spte:x} "
            f"level {level} errno 0"
        )

    def fast_page_fault(self, vcpu: int, page: TablePage, gfn: int, old: int, new: int) -> str:
        """``fast_page_fault`` that fixed a write to a present 4 KiB page."""
        code = "P|W" if self._ept else "P|W|U|0x100000000"
        old, new = self._x86.spte(old, 1), self._x86.spte(new, 1)
        sptep = _DIRECT_MAP + (page.pfn << PAGE_SHIFT)
        return (
            f"fast_page_fault: vcpu {vcpu} gva {self._x86.gfn(gfn) << PAGE_SHIFT:x} "
            f"error_code {code} sptep {sptep:016x} old {old:#x} new {new:x} spurious 0 fixed 1"
        )

    def entry(self, vcpu: int) -> str:
        """``kvm_entry``."""
        return f"kvm_entry: vcpu {vcpu}, rip 0x0"

    def exit(self, vcpu: int, fault: Fault | None) -> str:
        """``kvm_exit`` for a fault, else for an interrupt."""
        reason = "EXTERNAL_INTERRUPT" if self._ept else "interrupt"
        info1 = info2 = 0
        if fault is not None:
            reason, info1, info2 = fault.reason, fault.info1, fault.info2
        return (
            f"kvm_exit: vcpu {vcpu} reason {reason} rip 0x0 info1 {info1:#018x} "
            f"info2 {info2:#018x} intr_info 0x00000000 error_code 0x00000000"
        )

    def page_fault(self, vcpu: int, fault: Fault) -> str:
        """``kvm_page_fault``: the address and the error code (EPT: the exit qualification)."""
        return (
            f"kvm_page_fault: vcpu {vcpu} rip 0x0 address {fault.address:#018x} "
            f"error_code {fault.code:#x}"
        )

    def fault(self, access: GuestAccess, vcpu: VcpuCells, step: Step) -> Fault:
        """What the CPU reports of a guest access that faults in this state."""
        fmt = self._format
        found = self._hardware.walk(step, step[vcpu.loaded][0], access.gfn)
        address = self._x86.gfn(access.gfn) << PAGE_SHIFT
        present = _PFERR_PRESENT if found is not None else 0
        if vcpu.paging is not None:
            code = _PFERR[access.kind] | present
            return Fault(address, code, "PF excp", code, address)
        if self._ept:
            code = _EPT_ACCESS[access.kind] | _EPT_GVA
            if found is not None:
                tests = (fmt.is_readable, fmt.is_writable, fmt.is_executable)
                code |= sum(test(found[2]) << 3 + i for i, test in enumerate(tests))
            return Fault(address, code, "EPT_VIOLATION", code, 0)
        code = _PFERR[access.kind] | _PFERR_USER | _PFERR_GUEST_FINAL | present
        return Fault(address, code, "npf", code, address)


def _access(access: int) -> str:
    """``role.access`` as the kernel prints it: write, user, execute."""
    flags = ((2, "w"), (4, "u"), (1, "x"))
    return "".join(letter if access & bit else "-" for bit, letter in flags)
