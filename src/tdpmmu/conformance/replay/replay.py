"""The replay itself: every SPTE change of a trace against what the model does in its place."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

from tdpmmu.arch.spte import SpteFormat
from tdpmmu.conformance.replay import calls as kinds
from tdpmmu.conformance.replay.calls import Call, Calls, Seen
from tdpmmu.conformance.replay.driver import Driver, Running, Stuck
from tdpmmu.conformance.replay.inputs import (
    Changed,
    FaultInput,
    Fixed,
    Requested,
    Traced,
    What,
    replayed,
)
from tdpmmu.conformance.replay.names import Names
from tdpmmu.conformance.replay.result import Divergence, Result, count
from tdpmmu.conformance.replay.untraced import Untraced
from tdpmmu.conformance.replay.vm import THREADS, make_vm
from tdpmmu.trace.fields import FastPageFault, SpteChange, SpteRequested

MAX_DIVERGENCES = 20


class Replay:
    """One trace, one VM, one kernel's model."""

    def __init__(
        self, found: Calls, fmt: SpteFormat, kernel: type[Any], result: Result, ratio: int
    ) -> None:
        self.result = result
        self._format = fmt
        self._calls = found.calls
        self._pages = _slot_size(found.calls)
        self._vcpus = _vcpu_numbers(found.calls)
        self.kvm = make_vm(
            fmt,
            vcpus=len(self._vcpus),
            pages=self._pages,
            root_level=found.root_level,
            recovery_ratio=ratio,
        )
        self.mmu = replayed(kernel)(self.kvm)
        self.mmu.inputs = {}
        self.mmu.host_levels = {}
        self._untraced = Untraced(fmt, result.untraced)
        self._driver = Driver(self.kvm.layout.memory(), THREADS, self._untraced.returned)
        self._names = Names(fmt)
        self._hardware = fmt.accessed | fmt.dirty
        self._running: dict[int, Running] = {}
        self._broken: set[int] = set()
        self._unmap_offset: int | None = None

    def run(self) -> None:
        """Replay all of it."""
        for line, call, seen in _in_order(self._calls):
            if seen is None:
                self._finish(call, line)
            else:
                self._compare(call, line, seen)

    # --- one event ------------------------------------------------------------------------------

    def _compare(self, call: Call, line: int, seen: Seen) -> None:
        result = self.result
        change = isinstance(seen, SpteChange)
        if change:
            result.changes += 1
        if id(call) in self._broken:
            return
        try:
            traced = self._next(call, seen)
        except Stuck as stuck:
            self._diverge(call, line, self._show(seen), f"waits: {stuck}")
            return
        if traced is None:
            self._diverge(call, line, self._show(seen), "returns without another change")
            return
        what = traced.what
        if isinstance(seen, SpteChange) and isinstance(what, Changed):
            agrees = self._same(seen, what)
        elif isinstance(seen, SpteRequested) and isinstance(what, Requested):
            agrees = seen.level == what.level and seen.gfn == what.gfn
            self._other("levels asked for (kvm_mmu_spte_requested)", agrees)
        elif isinstance(seen, FastPageFault) and isinstance(what, Fixed):
            agrees = seen.address >> 12 == what.gfn and self._same_bits(seen.old, seen.new, what, 1)
            self._other("fast page faults", agrees)
        else:
            agrees = False
        if not agrees:
            self._diverge(call, line, self._show(seen), self._show_model(what))
            return
        if isinstance(what, Changed):
            result.agree += 1
            if not result.divergences:
                result.prefix += 1
            self._untraced.traced(what)
        self._running[id(call)].answer(None)

    def _next(self, call: Call, seen: Seen) -> Traced | None:
        """The model's next tracepoint of the kind that is to be compared."""
        again = False
        while True:
            running = self._running.get(id(call))
            if running is None:
                running = self._running[id(call)] = self._driver.start(self._body(call))
            traced = self._driver.next_traced(running)
            if traced is None:
                if call.kind != kinds.RECOVER or again:
                    return None
                # The worker has begun another round.
                del self._running[id(call)]
                again = True
                continue
            if _optional(traced.what, seen):
                running.answer(None)
                continue
            return traced

    def _same(self, seen: SpteChange, what: Changed) -> bool:
        """Bit for bit, tables by name; only hardware may have set accessed and dirty bits."""
        if (seen.as_id, seen.gfn, seen.level) != (what.as_id, what.gfn, what.level):
            return False
        if not self._same_bits(seen.old, seen.new, what, seen.level):
            return False
        if not self._same_table(seen.old, seen.new, seen.level):
            self._names.unlinked(seen.old, seen.level)
        return True

    def _same_bits(self, old_seen: int, new_seen: int, what: Changed | Fixed, level: int) -> bool:
        old = self._names.same(old_seen, what.old, level, bind=False)
        new = self._names.same(new_seen, what.new, level, bind=True)
        if old is None or new is None:
            return False
        if old or new:
            if old & ~self._hardware or old & what.old or new & ~old or new & what.new:
                return False
            count(self.result.explained, "accessed and dirty bits set by hardware")
            memory = self._driver.memory
            if memory[what.sptep.chunk][what.sptep.offset] == what.new:
                memory[what.sptep.chunk][what.sptep.offset] = what.new | new
        return True

    def _same_table(self, old: int, new: int, level: int) -> bool:
        fmt = self._format
        return (
            fmt.is_shadow_present(new)
            and not fmt.is_last(new, level)
            and fmt.pfn(old) == fmt.pfn(new)
        )

    def _finish(self, call: Call, line: int) -> None:
        """The kernel's call is over: so must the model's be, without another change."""
        if id(call) in self._broken or call.cut:
            return
        running = self._running.get(id(call))
        if running is None:
            if not self._worth_running(call):
                return
            running = self._running[id(call)] = self._driver.start(self._body(call))
        try:
            while (traced := self._driver.next_traced(running)) is not None:
                if isinstance(traced.what, Changed):
                    self._diverge(call, line, "no further change", self._show_model(traced.what))
                    return
                running.answer(None)
        except Stuck as stuck:
            self._diverge(call, line, "no further change", f"waits: {stuck}")

    def _worth_running(self, call: Call) -> bool:
        """Whether a call that changed nothing says that the model must not, either."""
        if call.kind == kinds.FAULT:
            count(self.result.inputs, "guest faults that came to nothing (retried before the lock)")
            return False
        return call.kind not in (kinds.UNKNOWN, kinds.RECOVER)

    # --- calls ----------------------------------------------------------------------------------

    def _body(self, call: Call) -> Coroutine[Any, Any, Any]:
        """The model's call."""
        mmu, inputs = self.mmu, self.result.inputs
        count(inputs, call.kind)
        if call.kind == kinds.FAULT:
            return self._fault(call)
        if call.kind == kinds.RECOVER:
            return mmu.recover_nx_lpages()  # type: ignore[no-any-return]
        if call.kind == kinds.RELEASE:
            return mmu.release()  # type: ignore[no-any-return]
        if call.kind == kinds.LOG_ON:
            return mmu.set_dirty_logging(0, 0, True, 0)  # type: ignore[no-any-return]
        if call.kind == kinds.LOG_OFF:
            return mmu.set_dirty_logging(0, 0, False, 0)  # type: ignore[no-any-return]
        if call.kind == kinds.GET_LOG:
            return mmu.get_dirty_log(0, 0, 0)  # type: ignore[no-any-return]
        if call.kind == kinds.ZAP_ALL:
            return mmu.zap_all_fast()  # type: ignore[no-any-return]
        if call.kind == kinds.UNMAP:
            return mmu.unmap_gfns(*self._gfns(call))  # type: ignore[no-any-return]
        return _nothing()

    def _fault(self, call: Call) -> Coroutine[Any, Any, Any]:
        vcpu = self.kvm.vcpus[self._vcpus[call.vcpu]]
        self.mmu.inputs[vcpu.number] = self._fault_input(call)
        return self.mmu.guest_faults(  # type: ignore[no-any-return]
            vcpu, call.gfn, call.access, call.as_id, call.present
        )

    def _fault_input(self, call: Call) -> FaultInput:
        requested = call.requested
        if requested is None:
            return FaultInput()
        level = requested.level
        if level == 1 and not (requested.gfn ^ requested.pfn) & 0x1FF:
            level = 2
        count(self.result.inferred, f"host mapping level {level}")
        return FaultInput(requested.pfn, level)

    def _gfns(self, call: Call) -> tuple[int, int]:
        """The gfns behind a notifier's range."""
        start, end = call.start >> 12, (call.end + 4095) >> 12
        if self._unmap_offset is None:
            first = next((s for _, s in call.seen if isinstance(s, SpteChange)), None)
            if first is None:
                return 0, 0
            count(self.result.inferred, "host address of the memslot")
            self._unmap_offset = start - first.gfn
        return max(0, start - self._unmap_offset), max(0, end - self._unmap_offset)

    # --- reporting ------------------------------------------------------------------------------

    def _other(self, what: str, agrees: bool) -> None:
        agree, of = self.result.others.get(what, (0, 0))
        self.result.others[what] = (agree + agrees, of + 1)

    def _diverge(self, call: Call, line: int, kernel: str, model: str) -> None:
        self._broken.add(id(call))
        running = self._running.get(id(call))
        where: tuple[str, ...] = ()
        guards: tuple[str, ...] = ()
        if running is not None:
            where = running.place()
            guards = tuple(f"{op.describe()} -> {_value(value)}" for op, value in running.trail)
        if len(self.result.divergences) < MAX_DIVERGENCES:
            text = f"{call.kind} of {call.record.task}-{call.pid}, from line {call.record.line}"
            self.result.divergences.append(Divergence(line, text, kernel, model, where, guards))
        else:
            self.result.more_divergences += 1
        if running is not None:
            self._driver.drop(running)

    def _show(self, seen: Seen) -> str:
        if isinstance(seen, SpteChange):
            old = self._names.show(seen.old, seen.level)
            new = self._names.show(seen.new, seen.level)
            return f"gfn {seen.gfn:#x} level {seen.level}: {old} -> {new}"
        if isinstance(seen, FastPageFault):
            return f"fast page fault of {seen.address:#x}: {seen.old:#x} -> {seen.new:#x}"
        return f"asks for gfn {seen.gfn:#x} at level {seen.level}"

    def _show_model(self, what: What) -> str:
        if isinstance(what, Changed):
            return f"gfn {what.gfn:#x} level {what.level}: {what.old:#x} -> {what.new:#x}"
        if isinstance(what, Fixed):
            return f"fast page fault of gfn {what.gfn:#x}: {what.old:#x} -> {what.new:#x}"
        return f"asks for gfn {what.gfn:#x} at level {what.level}"


def _optional(what: What, seen: Seen) -> bool:
    """Whether the trace may lack this event of the model, for it does not have that kind."""
    if isinstance(what, Requested):
        return not isinstance(seen, SpteRequested)
    return False


async def _nothing() -> None:
    return None


def _value(value: Any) -> str:
    return f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _slot_size(calls: Iterable[Call]) -> int:
    """Enough gfns for all that was mapped, in whole huge pages."""
    last = max((call.gfn for call in calls if call.requested is not None), default=0)
    return (last // 512 + 1) * 512


def _vcpu_numbers(calls: Iterable[Call]) -> dict[int, int]:
    """The kernel's vCPU ids, numbered from 0."""
    ids = sorted({call.vcpu for call in calls if call.kind == kinds.FAULT})
    return {vcpu: number for number, vcpu in enumerate(ids)}


def _in_order(calls: Iterable[Call]) -> list[tuple[int, Call, Seen | None]]:
    """Every event and, after a call's last one, its end, in the order of the trace."""
    points: list[tuple[int, int, Call, Seen | None]] = []
    for call in calls:
        points += [(line, 0, call, seen) for line, seen in call.seen]
        points.append((call.last, 1, call, None))
    points.sort(key=lambda point: point[:2])
    return [(line, call, seen) for line, _, call, seen in points]
