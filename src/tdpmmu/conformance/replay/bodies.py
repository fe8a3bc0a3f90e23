"""The model's call for each of the kernel's, with what that found outside the MMU."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any

from tdpmmu.arch.guest import GuestPaging
from tdpmmu.arch.spte import Access, SpteFormat
from tdpmmu.conformance.replay.calls import Armed, Call, Kind, PageGot
from tdpmmu.conformance.replay.guest_tables import GuestMemory
from tdpmmu.conformance.replay.huge_after import huge_after
from tdpmmu.conformance.replay.inputs import FaultInput, replayed
from tdpmmu.conformance.replay.result import Result, count
from tdpmmu.conformance.replay.threads import Threads
from tdpmmu.conformance.replay.vm import make_vm
from tdpmmu.mmu.direct_map import PTE_PREFETCH_NUM
from tdpmmu.mmu.kvm import Memslot
from tdpmmu.mmu.mmio import MMIO
from tdpmmu.mmu.roots import NO_TDP_MMU
from tdpmmu.trace.fields import SetSpte, SpteChange

_HUGE = 512
_ON = frozenset({"force", "1", "Y", "y"})
"""Values of ``nx_huge_pages``; ``auto`` means off, as the lab's CPU does not need it."""


class Bodies:
    """A VM of the model, and how to call into it."""

    def __init__(
        self, found: Threads, fmt: SpteFormat, kernel: type[Any], result: Result, ratio: int
    ) -> None:
        calls = found.calls
        self._result = result
        self._format = fmt
        self._vcpus = _vcpu_numbers(calls)
        self._slots_told = any(call.kind is Kind.SLOT_CREATE for call in calls)
        self._offset: int | None = 0 if self._slots_told else None
        self.kvm = make_vm(
            fmt,
            vcpus=len(self._vcpus),
            slots=() if self._slots_told else self._guess_slots(calls),
            root_level=found.root_level,
            recovery_ratio=ratio,
            options=frozenset(
                ({MMIO} if any(call.mmio for call in calls) else set())
                | ({NO_TDP_MMU} if found.legacy else set())
            ),
        )
        self.mmu = replayed(kernel)(self.kvm)
        count(result.inferred, "memslot published before its probe", found.published_early)
        self.mmu.inputs = {}
        self.mmu.host_levels = {}
        self.mmu.host_split = set()
        self.mmu.prefetched = {}
        self.mmu.writable_as_found = set()
        self._calls = calls
        self._paging = found.paging
        self._legacy = found.legacy
        threads = {call.pid: call.vcpu for call in calls if call.kind in (Kind.FAULT, Kind.LOAD)}
        vcpus = {pid: self.kvm.vcpus[self._vcpus[vcpu]] for pid, vcpu in threads.items()}
        self.guest = GuestMemory(self.kvm, found.walks.found, vcpus, result)

    def body(self, call: Call) -> Coroutine[Any, Any, Any]:
        """The model's call."""
        mmu: Any = self.mmu
        count(self._result.inputs, call.kind.value)
        match call.kind:
            case Kind.FAULT:
                made = self._fault(call)
            case Kind.LOAD:
                self._set_root(call)
                made = mmu.guest_loads(self.kvm.vcpus[self._vcpus[call.vcpu]], call.as_id)
            case Kind.RECOVER:
                made = mmu.recover_nx_lpages()
            case Kind.UNMAP:
                made = mmu.unmap_pages(*self._host_pages(call))
            case Kind.AGE:
                made = mmu.age_hva_range(*self._host_pages(call))
            case Kind.LOG_ON:
                mmu.log_initially_set = call.slot is not None and not call.protects
                made = mmu.set_dirty_logging(*self._slot_of(call), True, 0)
            case Kind.LOG_OFF:
                self._collapsed(call)
                made = mmu.set_dirty_logging(*self._slot_of(call), False, 0)
            case Kind.GET_LOG:
                made = mmu.get_dirty_log(*self._logged_gfn(call), 0)
            case Kind.CLEAR_LOG:
                made = mmu.clear_dirty_log(0, self._cleared(call), 0)
            case Kind.SLOT_CREATE:
                assert call.slot is not None
                made = mmu.create_memslot(call.slot)
            case Kind.SLOT_DELETE:
                made = mmu.delete_memslot(*self._slot_of(call))
            case Kind.ZAP_ALL:
                self._parameter(call, "nx_huge_pages").close()
                made = mmu.zap_all_under_slots_lock()
            case Kind.PARAMETER:
                made = self._parameter(call, "nx_huge_pages_recovery_ratio")
            case Kind.RELEASE:
                made = mmu.release()
            case Kind.UNKNOWN:
                made = _nothing()
        return made  # type: ignore[no-any-return]

    def _parameter(self, call: Call, which: str) -> Coroutine[Any, Any, Any]:
        """Set a parameter that the model has, if this is about that one."""
        name, text = call.parameter or ("", "")
        config = self.kvm.config
        if name == which == "nx_huge_pages":
            self.kvm.config = replace(config, nx_huge_pages=text in _ON)
        elif name == which and text.isdigit():
            self.kvm.config = replace(config, recovery_ratio=int(text))
        return _nothing()

    # --- faults ---------------------------------------------------------------------------------

    def _fault(self, call: Call) -> Any:
        vcpu = self.kvm.vcpus[self._vcpus[call.vcpu]]
        self.mmu.inputs[vcpu.number] = self._fault_input(call)
        self._find_prefetched(call)
        return self.mmu.guest_faults(vcpu, call.gfn, call.access, call.as_id, call.present)

    def _find_prefetched(self, call: Call) -> None:
        """The frames around a fault are there if they are mapped with it."""
        first = call.page // PTE_PREFETCH_NUM * PTE_PREFETCH_NUM
        for gfn in range(first, first + PTE_PREFETCH_NUM):
            self.mmu.prefetched.pop(gfn, None)
        for _, seen in call.seen:
            if isinstance(seen, SetSpte) and seen.gfn != call.page and seen.level == 1:
                count(self._result.inferred, "frames that are prefetched")
                self.mmu.prefetched[seen.gfn] = self._format.pfn(seen.spte)

    def _set_root(self, call: Call) -> None:
        """A guest that pages: its root table is what the root shadows."""
        levels = self.kvm.geometry.levels
        for _, seen in call.seen:
            if self._paging and isinstance(seen, PageGot) and seen.level == levels:
                vcpu = self.kvm.vcpus[self._vcpus[call.vcpu]]
                vcpu.paging = GuestPaging(seen.gfn, levels)

    def _fault_input(self, call: Call) -> FaultInput:
        requested = call.requested
        if requested is None or call.mmio:
            return FaultInput(slot=not call.mmio, reserved=call.reserved)
        return FaultInput(
            requested.pfn, self._host_level(call), self._writable(call), reserved=call.reserved
        )

    def _host_level(self, call: Call) -> int | None:
        """What the fault says of the host's mapping; None: nothing."""
        requested = call.requested
        assert requested is not None
        inferred = self._result.inferred
        region = requested.gfn // _HUGE
        if requested.level > 1:
            self.mmu.host_split.discard(region)
            count(inferred, f"host mapping level {requested.level}, asked for")
            return requested.level
        if call.access is not Access.EXEC and not self._logged(call):
            count(inferred, "host mapping level 1, asked for although nothing forbids more")
            return 1
        if region in self.mmu.host_split and self._logged(call):
            count(inferred, "host mapping level 1, after an unmap")
            return 1
        level = 1 if (requested.gfn ^ requested.pfn) % _HUGE else 2
        count(inferred, f"host mapping level {level}, by the alignment of gfn and pfn")
        return level

    def _collapsed(self, call: Call) -> None:
        """Where the kernel makes room for a huge page, the host has one."""
        fmt = self._format
        for _, seen in call.seen:
            if isinstance(seen, SpteChange) and seen.level == 2 and fmt.is_shadow_present(seen.old):
                region = seen.gfn // _HUGE
                if self.mmu.host_levels.get(region) != 2:
                    count(self._result.inferred, "host mapping level 2, by what log-off collapses")
                    self.mmu.host_levels[region] = 2

        if self._legacy:
            for region in huge_after(self._calls, call, self._unmapped_regions):
                if self.mmu.host_levels.get(region) != 2:
                    count(
                        self._result.inferred, "host mapping level 2 at log-off, by a later fault"
                    )
                    self.mmu.host_levels[region] = 2

    def _unmapped_regions(self, unmap: Call) -> set[int]:
        """The 2 MiB regions that a notifier's range touches, in the memslots as they are."""
        start, end = unmap.start >> 12, (unmap.end + 4095) >> 12
        cell = self.kvm.memslots[0]
        found: set[int] = set()
        for slot in self.kvm.layout.memory()[cell.chunk][cell.offset].slots:
            hva = slot.hva if self._slots_told else slot.hva + (self._offset or 0)
            first, last = max(start, hva), min(end, hva + slot.npages)
            offset = slot.base_gfn - hva
            if first < last:
                found.update(range((first + offset) // _HUGE, (last + offset - 1) // _HUGE + 1))
        return found

    def _logged(self, call: Call) -> bool:
        slot = self._slots(call.as_id, call.page)
        return slot is not None and slot.log

    def _writable(self, call: Call) -> bool | None:
        """Whether the host let the guest write, which a read need not ask for; None: as before."""
        if call.access is Access.WRITE:
            return True
        if call.leaf is None:
            return None
        writable = self._format.is_host_writable(call.leaf)
        count(self._result.inferred, "writability of the host page of a read or fetch")
        return writable

    # --- memslots -------------------------------------------------------------------------------

    def _slots(self, as_id: int, gfn: int) -> Memslot | None:
        cell = self.kvm.memslots[as_id]
        slots = self.kvm.layout.memory()[cell.chunk][cell.offset]
        found: Memslot | None = slots.find(gfn)
        return found

    def logs(self) -> bool:
        """Whether any memslot has dirty logging on."""
        memory = self.kvm.layout.memory()
        found = [memory[cell.chunk][cell.offset].slots for cell in self.kvm.memslots]
        return any(slot.log for slots in found for slot in slots)

    def _guess_slots(self, calls: Iterable[Call]) -> tuple[Memslot, ...]:
        """Without a probe: one memslot that covers all that was mapped, in each address space."""
        mapped = [call.page for call in calls if call.requested is not None and not call.mmio]
        pages = (max(mapped, default=0) // _HUGE + 1) * _HUGE
        count(self._result.inferred, "memslot, from 0 to the last gfn that was mapped")
        return tuple(Memslot(0, pages, as_id) for as_id in (0, 1))

    def _slot_of(self, call: Call) -> tuple[int, int]:
        """Address space and first gfn of the memslot that a call is about."""
        return (call.slot.as_id, call.slot.base_gfn) if call.slot is not None else (0, 0)

    def _logged_gfn(self, call: Call) -> tuple[int, int]:
        """Address space and a gfn of the memslot whose log is looked at."""
        for _, seen in call.seen:
            if isinstance(seen, Armed):
                return 0, seen.gfns[0]
            if isinstance(seen, SpteChange):
                return seen.as_id, seen.gfn
        return 0, 0

    def _cleared(self, call: Call) -> tuple[int, ...]:
        """What userspace has named, of what was set; from the probe or else from the changes."""
        armed = [gfn for _, seen in call.seen if isinstance(seen, Armed) for gfn in seen.gfns]
        if armed:
            return tuple(armed)
        count(self._result.inferred, "gfns to clear in the dirty log")
        return tuple(sorted({seen.gfn for _, seen in call.seen if isinstance(seen, SpteChange)}))

    def _host_pages(self, call: Call) -> tuple[int, int]:
        """A notifier's range; without known memslots moved to where the model's slot is."""
        start, end = call.start >> 12, (call.end + 4095) >> 12
        if self._offset is None:
            first = next((s.gfn for _, s in call.seen if isinstance(s, SpteChange)), None)
            if first is None:
                first = self._first_replaced(call)
            if first is None:
                return 0, 0
            count(self._result.inferred, "host address of the memslot")
            self._offset = start - first
        return max(0, start - self._offset), max(0, end - self._offset)

    def _first_replaced(self, unmap: Call) -> int | None:
        """The first huge page's gfn that later faults find with another frame behind it."""
        before: dict[int, int] = {}
        after: dict[int, int] = {}
        for call in self._calls:
            if call.requested is None or call.mmio:
                continue
            table = before if call.record.line < unmap.record.line else after
            block, frame = call.page // _HUGE, call.requested.pfn - call.page
            if table is before:
                before[block] = frame
            else:
                after.setdefault(block, frame)
        replaced = [block for block in after if before.get(block, after[block]) != after[block]]
        return min(replaced) * _HUGE if replaced else None


async def _nothing() -> None:
    return None


def _vcpu_numbers(calls: Iterable[Call]) -> dict[int, int]:
    """The kernel's vCPU ids, numbered from 0."""
    ids = sorted({call.vcpu for call in calls if call.kind in (Kind.FAULT, Kind.LOAD)})
    return {vcpu: number for number, vcpu in enumerate(ids)}
