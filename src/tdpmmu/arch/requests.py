"""Roots, flushes and requests: what makes a vCPU's CPU forget, and how it is asked to.

A remote flush is a request for each vCPU, an IPI to those that may be in the guest, and waiting
until they have left it; each is an operation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.arch.hardware import (
    EXITING,
    IN_GUEST,
    OUTSIDE,
    Entry,
    Hardware,
    VcpuCells,
    covers,
    forget,
)
from tdpmmu.events.records import FlushCompleted, FlushRequested, VcpuFlushed
from tdpmmu.machine.op import BOTH, LEFT, NEITHER, RIGHT, Op, Step


@dataclass(frozen=True, slots=True)
class FlushOwnTlb(Op):
    """``kvm_vcpu_flush_tlb_all`` / ``_current``: this CPU forgets what it holds."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.owes] = False
        if step[self.vcpu.held]:
            step[self.vcpu.held] = frozenset()
        step.emit(VcpuFlushed(self.vcpu.number))

    def mover(self, step: Step) -> str:
        # Outside guest mode nothing refills it.  If a flush is due it is of no use to anybody.
        return BOTH if step[self.vcpu.owes] or not step[self.vcpu.held] else RIGHT

    def describe(self) -> str:
        return "flush own TLB"


@dataclass(frozen=True, slots=True)
class FlushOwnAddress(Op):
    """``flush_tlb_gva`` (INVLPGA): one address and all paging-structure entries of this CPU."""

    hardware: Hardware
    vcpu: VcpuCells
    address: int

    def apply(self, step: Step, alternative: int) -> None:
        spte_format = self.hardware.format
        held = step[self.vcpu.held]
        left = frozenset(
            entry
            for entry in held
            if spte_format.is_last(entry[3], entry[2])
            and not covers(self.hardware.geometry, entry, self.address)
        )
        if left != held:
            step[self.vcpu.held] = left

    def mover(self, step: Step) -> str:
        return BOTH if step[self.vcpu.owes] or not step[self.vcpu.held] else RIGHT

    def describe(self) -> str:
        return f"flush address {self.address:#x} from own TLB"


@dataclass(frozen=True, slots=True)
class Park(Op):
    """This vCPU has done its part."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.parked] = True
        if step[self.vcpu.request]:
            step[self.vcpu.request] = False
            step[self.vcpu.owes] = False
            step[self.vcpu.held] = frozenset()

    def mover(self, step: Step) -> str:
        return LEFT

    def describe(self) -> str:
        return "done with its accesses"


@dataclass(frozen=True, slots=True)
class LoadRoot(Op):
    """Point the CPU at a root (``kvm_mmu_load_pgd``)."""

    vcpu: VcpuCells
    roots: tuple[int, ...]

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.loaded] = self.roots

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return f"load root {self.roots}"


@dataclass(frozen=True, slots=True)
class RequestFlush(Op):
    """``kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu)``."""

    hardware: Hardware
    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        if step[self.vcpu.parked]:
            # It would have to flush before its next entry, and there is none.
            if step[self.vcpu.held]:
                step[self.vcpu.held] = frozenset()
        else:
            step[self.vcpu.request] = True
            forget(step, self.hardware, self.vcpu)
        step.emit(FlushRequested(self.vcpu.number))

    def mover(self, step: Step) -> str:
        # Setting it later only keeps the entries usable longer.  See also NeedsIpi.
        return BOTH if self.hardware.exclusive(step) else RIGHT

    def describe(self) -> str:
        return f"KVM_REQ_TLB_FLUSH for vCPU{self.vcpu.number}"


@dataclass(frozen=True, slots=True)
class TestAndClearRequest(Op):
    """``kvm_check_request(KVM_REQ_TLB_FLUSH, vcpu)``."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        if not step[self.vcpu.request]:
            return False
        step[self.vcpu.request] = False
        return True

    def mover(self, step: Step) -> str:
        # Only this vCPU clears it: what is not set was not set before.  What is set may be taken
        # at once, since its TLB is of no use until it has flushed.
        return LEFT

    def describe(self) -> str:
        return "kvm_check_request(KVM_REQ_TLB_FLUSH)"


@dataclass(frozen=True, slots=True)
class ExitRequested(Op):
    """``kvm_vcpu_exit_request``: was a request made since the last check?

    A mode of ``exiting`` says the same: it is set only after a request.
    """

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        vcpu = self.vcpu
        made = step[vcpu.request] or step[vcpu.reload] or step[vcpu.apic_reload]
        requested = bool(made or step[vcpu.mode] == EXITING)
        step[self.vcpu.checked] = not requested
        return requested

    def mover(self, step: Step) -> str:
        # Only this vCPU clears a request: none now is none before, one now stays.
        return LEFT

    def describe(self) -> str:
        return "kvm_vcpu_exit_request()"


@dataclass(frozen=True, slots=True)
class RequestReload(Op):
    """``kvm_make_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, vcpu)`` (``..._RELOAD`` to 5.17)."""

    hardware: Hardware
    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.reload] = True
        forget(step, self.hardware, self.vcpu)

    def describe(self) -> str:
        return f"KVM_REQ_MMU_FREE_OBSOLETE_ROOTS for vCPU{self.vcpu.number}"


@dataclass(frozen=True, slots=True)
class TestAndClearReload(Op):
    """``kvm_check_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, vcpu)``."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        if not step[self.vcpu.reload]:
            return False
        step[self.vcpu.reload] = False
        return True

    def mover(self, step: Step) -> str:
        # Only this vCPU clears it: what is not set was not set before.
        return NEITHER if step[self.vcpu.reload] else LEFT

    def describe(self) -> str:
        return "kvm_check_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)"


@dataclass(frozen=True, slots=True)
class CurrentRoot(Op):
    """``vcpu->arch.mmu->root.hpa``, by page number; -1 without a root."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> int:
        loaded = step[self.vcpu.loaded]
        return loaded[0] if loaded else -1

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return "vcpu->arch.mmu->root"


@dataclass(frozen=True, slots=True)
class SetMode(Op):
    """``vcpu->mode = ...``."""

    hardware: Hardware
    vcpu: VcpuCells
    mode: str

    def apply(self, step: Step, alternative: int) -> None:
        step[self.vcpu.mode] = self.mode
        step[self.vcpu.checked] = False
        if self.mode == OUTSIDE:
            if step[self.vcpu.ipi]:
                step[self.vcpu.ipi] = False
            forget(step, self.hardware, self.vcpu)

    def mover(self, step: Step) -> str:
        # The sooner it enters, the more it may hold; a flush that would have found it outside then
        # kicks it.  That is so only if it looks for requests before it enters (see VmEnter).
        if self.mode == IN_GUEST and not self.hardware.entry_protocol.trusted:
            return RIGHT
        return LEFT

    def urgent(self, step: Step) -> bool:
        # A request is pending: all it can do is look at it and turn back.
        return self.mode == IN_GUEST and step[self.vcpu.owes] and step[self.vcpu.request]

    def describe(self) -> str:
        return f"vcpu->mode = {self.mode}"


@dataclass(frozen=True, slots=True)
class NeedsIpi(Op):
    """``kvm_request_needs_ipi`` for a request that is waited for: was the vCPU not outside?

    Asking one vCPU after the other is one moment if the asker shuts vCPUs out of the MMU: what a
    vCPU then does touches nothing but itself, so it can as well do it before or after all were
    asked.
    """

    hardware: Hardware
    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> bool:
        mode = step[self.vcpu.mode]
        if mode == IN_GUEST:
            step[self.vcpu.mode] = EXITING
        return bool(mode != OUTSIDE)

    def mover(self, step: Step) -> str:
        if step[self.vcpu.parked]:
            return BOTH
        hardware = self.hardware
        if not hardware.exclusive(step):
            return NEITHER
        first = next(vcpu for vcpu in hardware.vcpus if not step[vcpu.parked])
        return NEITHER if first is self.vcpu else LEFT

    def describe(self) -> str:
        return f"kvm_request_needs_ipi(vCPU{self.vcpu.number})"


@dataclass(frozen=True, slots=True)
class SendIpi(Op):
    """Half of ``smp_call_function_many``: the IPI is on its way, unless it is handled at once."""

    vcpu: VcpuCells

    def apply(self, step: Step, alternative: int) -> None:
        if step[self.vcpu.mode] != OUTSIDE:
            step[self.vcpu.ipi] = True

    def mover(self, step: Step) -> str:
        # Sent earlier, it finds the vCPU where it was seen.
        return LEFT

    def describe(self) -> str:
        return f"IPI to vCPU{self.vcpu.number}"


@dataclass(frozen=True, slots=True)
class WaitIpi(Op):
    """The other half: wait until that CPU has taken it, so has left guest mode."""

    hardware: Hardware
    vcpu: VcpuCells

    def alternatives(self, step: Step) -> int:
        return 0 if step[self.vcpu.ipi] else 1

    def waits_for_kick(self, step: Step) -> int | None:
        # With vCPUs shut out of the MMU, all that the kicked one can do is leave the guest.
        if self.hardware.exclusive(step) and step[self.vcpu.in_guest] and step[self.vcpu.ipi]:
            return self.vcpu.thread
        return None

    def apply(self, step: Step, alternative: int) -> None:
        return None

    def mover(self, step: Step) -> str:
        return LEFT if self.hardware.exclusive(step) else RIGHT

    def describe(self) -> str:
        return f"wait for vCPU{self.vcpu.number} to leave the guest"


@dataclass(frozen=True, slots=True)
class FlushDone(Op):
    """``kvm_flush_remote_tlbs`` returns."""

    start: int = 0
    end: int = -1

    def apply(self, step: Step, alternative: int) -> None:
        step.emit(FlushCompleted(self.start, self.end))

    def mover(self, step: Step) -> str:
        return BOTH

    def describe(self) -> str:
        return "flush completed"


@dataclass(frozen=True, slots=True)
class HypercallFlush(Op):
    """``HvFlushGuestPhysicalAddressList`` / ``...Space``: the hypervisor flushes all CPUs for us.

    It drops what translates any gfn of ``[start, end)``, non-leaves that lead there included;
    ``end`` -1 means everything.
    """

    hardware: Hardware
    start: int
    end: int

    def apply(self, step: Step, alternative: int) -> None:
        geometry = self.hardware.geometry
        for vcpu in self.hardware.vcpus:
            held = step[vcpu.held]
            if self.end < 0 or vcpu.paging is not None:
                # An address under guest paging is not a gfn: there is nothing to compare.
                left: frozenset[Entry] = frozenset()
            else:
                left = frozenset(
                    entry
                    for entry in held
                    if entry[1] >= self.end or entry[1] + geometry.pages(entry[2]) <= self.start
                )
            if left != held:
                step[vcpu.held] = left
            if step[vcpu.in_guest]:
                self.hardware.fill(step, vcpu)
            step.emit(VcpuFlushed(vcpu.number))
        step.emit(FlushCompleted(self.start, self.end))

    def describe(self) -> str:
        return (
            "hypercall: flush everything"
            if self.end < 0
            else f"hypercall: flush gfns [{self.start:#x}, {self.end:#x})"
        )
