"""A run of the model as the text that a kernel's tracefs prints.

What the kernel has a tracepoint for is that event.  Functions of the kernel that threads enter are
lines of the function tracer; flushes, zaps of the recovery worker and freed pages are probes, as in
the traces of real kernels that come with tdpmmu.  The rest are markers: the event's name and its
fields.  Gfns and pfns are x86's (see :mod:`tdpmmu.render.x86`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from tdpmmu.arch.spte import PAGE_SHIFT
from tdpmmu.arch.table import Allocate, FreeUnused, Header, TablePage
from tdpmmu.events import records as ev
from tdpmmu.kernel.locks import Acquire
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import State
from tdpmmu.render.calls import OUTERMOST, Call, Calls
from tdpmmu.render.first_tables import first_tables
from tdpmmu.render.ftrace_text import FtraceText, Task
from tdpmmu.render.interleaving import Scene
from tdpmmu.render.kvm_events import KVM, Fault, KvmEvents, rcu_head, role, sp_address
from tdpmmu.render.lock_lines import LockLines
from tdpmmu.render.names import KernelNames
from tdpmmu.render.record import RecordLike
from tdpmmu.render.spte_lines import SpteLines
from tdpmmu.render.x86 import X86

FIRST_PID = 1000
"""The process id of the task that sets up; the threads' come after it."""

FLUSH = "kvm_flush_remote_tlbs"
FLUSH_RANGE = ("kvm_flush_remote_tlbs_with_address", "kvm_flush_remote_tlbs_range")
ZAP_SP = ("kvm_tdp_mmu_zap_sp", "kvm_tdp_mmu_zap_possible_nx_huge_page")

_SAID_OTHERWISE = (
    ev.PageLinked,
    ev.NxPageAccounted,
    ev.NxPageUnaccounted,
    ev.Refcount,
    ev.MightSleep,
    ev.Yielded,
    ev.ThreadDone,
)
"""Events without a line of their own: others, or lines of functions, say the same."""


def ftrace(
    records: Sequence[RecordLike], scene: Scene, comments: Iterable[str], verdict: str
) -> str:
    """The whole file: the first page tables at time 0, then operation N at N microseconds.

    ``comments`` go to its top, ``verdict`` is a marker at its end.
    """
    run = _Run(scene)
    if records:
        run.set_up(records[0].before)
    run.mark(1, "STEP run")
    for record in records:
        run.take(record)
    last = records[-1].number if records else 1
    run.mark(last, verdict)
    run.mark(last, "DONE run")
    about = [
        "A run of tdpmmu's model of KVM, not of a kernel.",
        "Times: one microsecond for each operation of the run; the tables it begins with are at 0.",
        "Gfns and pfns: the model's tables are small; each index of a gfn takes x86's 9 bits here.",
        "Sizes of functions, rip and all addresses are made up.",
        *comments,
    ]
    return run.text.text(len(scene.threads), about)


class _Run:
    def __init__(self, scene: Scene) -> None:
        hardware = scene.hardware
        self.text = FtraceText()
        self._scene = scene
        self._x86 = x86 = X86(hardware)
        self._events = KvmEvents(hardware, x86)
        self._pages = {page.name: page for page in hardware.page_by_number.values()}
        self._sptes = SpteLines(hardware, self._events, self._pages)
        self._calls = Calls(KernelNames(scene.mmu_class))
        self._locks = LockLines()
        self._setup = Task("setup", FIRST_PID, 0)
        self._tasks = [Task(name, FIRST_PID + 1 + i, i) for i, name in enumerate(scene.threads)]
        self._faults: dict[int, Fault] = {}
        self._zapped: dict[int, Call] = {}

    def mark(self, time: int, text: str) -> None:
        """A line written to ``trace_marker`` by whoever set up."""
        self.text.put(self._setup, time, f"tracing_mark_write: {text}")

    def set_up(self, state: State) -> None:
        """The page tables before the first operation."""
        scene = self._scene
        self.mark(0, "STEP setup")
        step = Step(state, 0)
        for line in first_tables(scene.hardware, scene.layout, self._events, step, scene.mmu_class):
            self.text.put(self._setup, 0, line)
        self.mark(0, "DONE setup")

    def take(self, record: RecordLike) -> None:
        """The lines of one operation."""
        depth = self._locks.preempt_depth(record.thread)
        lines: list[str] = []
        left, entered = self._calls.step(record)
        for call in left:
            if call.name in ZAP_SP:
                self._zapped[record.thread] = call
        for call in entered:
            lines += self._probe(call, record)
            lines.append(f"{call.name} <-{call.caller}")
        lines += self._operation(record)
        for event in record.events:
            lines += self._event(event, record)
        if record.failure is not None:
            lines.append(f"console: {record.failure}")
        for line in lines:
            self.text.put(self._tasks[record.thread], record.number, line, depth)

    # --- functions ------------------------------------------------------------------------------

    def _probe(self, call: Call, record: RecordLike) -> list[str]:
        """The probe on a function's entry, if there is one."""
        where = f"({call.name}+0x0/0x0 [kvm])"
        if call.name == FLUSH:
            return [f"flush: {where} kvm={KVM:#x}"]
        if call.name in FLUSH_RANGE:
            first, pages = _numbers(call)
            gfn, pages = self._x86.gfn(first), self._x86.pages(first, pages)
            return [f"flush_range: {where} gfn={gfn:#x} pages={pages:#x}"]
        if call.name in ZAP_SP:
            step = Step(record.before, record.thread)
            told = [f"kvm={KVM:#x}"]
            for page in (one for one in call.arguments.values() if isinstance(one, TablePage)):
                told.append(f"sp={sp_address(page):#x}")
                header: Header | None = step[page.header]
                if header is not None:
                    word = role(header, step[page.invalid])
                    told.append(f"role={word:#x} gfn={self._x86.gfn(header.gfn):#x}")
            return [f"zap_sp: {where} {' '.join(told)}"]
        return []

    def _flushed(self, thread: int) -> list[str]:
        """The returns from the flushing functions that a thread is in."""
        flushing = (FLUSH, *FLUSH_RANGE)
        inside = [call for call in self._calls.of(thread) if call.name in flushing]
        return [
            f"{'flush' if call.name == FLUSH else 'flush_range'}_ret: "
            f"({call.caller}+0x0/0x0 [kvm] <- {call.name})"
            for call in reversed(inside)
        ]

    def _operation(self, record: RecordLike) -> list[str]:
        """What the kernel traces, and the model has no event for."""
        op, after = record.op, Step(record.after, record.thread)
        if isinstance(op, Allocate) and isinstance(record.result, TablePage):
            page = record.result
            header: Header = after[page.header]
            above = self._events.padding(page, header) if op.root and header.tdp else []
            return [*above, self._events.get_page(page, header, after)]
        if isinstance(op, FreeUnused):
            return [f"tdp_mmu_free_sp <-{self._caller(record.thread)}"]
        if isinstance(op, Acquire) and record.result is False:
            return self._locks.waits(record.thread, op.lock.name, op.mode)
        return []

    def _caller(self, thread: int) -> str:
        calls = self._calls.of(thread)
        return calls[-1].name if calls else OUTERMOST

    # --- events ---------------------------------------------------------------------------------

    def _event(self, event: ev.Event, record: RecordLike) -> list[str]:
        thread = record.thread
        match event:
            case ev.SpteChanged():
                functions = [call.name for call in self._calls.of(thread)]
                return self._sptes.lines(record, event, functions)
            case ev.PageZapped(name):
                return self._zap(name, event.legacy, record)
            case ev.PageFreed(name):
                return [self._free(name, record)]
            case ev.NxPageRecovered() if thread in self._zapped:
                call = self._zapped.pop(thread)
                where = f"{call.caller}+0x0/0x0 [kvm] <- {call.name}"
                return [f"zap_sp_ret: ({where}) ret={int(event.zapped)}"]
            case ev.FlushCompleted():
                return self._flushed(thread)
            case ev.LockTaken(lock, mode):
                return self._locks.taken(thread, lock, mode)
            case ev.LockReleased(lock, mode):
                return self._locks.released(thread, lock, mode)
            case ev.GuestEntered(vcpu):
                return [self._events.entry(vcpu)]
            case ev.GuestLeft(vcpu):
                fault = self._faults.pop(vcpu, None)
                lines = [self._events.exit(vcpu, fault)]
                return lines if fault is None else [*lines, self._events.page_fault(vcpu, fault)]
            case ev.GuestAccess(vcpu) if event.fault:
                step = Step(record.before, thread)
                cells = self._scene.hardware.vcpus[vcpu]
                self._faults[vcpu] = self._events.fault(event, cells, step)
                return []
            case ev.Warned(what):
                return [f"console: WARNING: {what}"]
            case _ if isinstance(event, _SAID_OTHERWISE):
                return []
        return [f"tracing_mark_write: {self._marker(event)}"]

    def _zap(self, name: str, legacy: bool, record: RecordLike) -> list[str]:
        page = self._pages[name]
        step = Step(record.before, record.thread)
        header: Header | None = step[page.header]
        if not legacy:
            self._sptes.removed(name)
        return [] if header is None else [self._events.prepare_zap_page(page, header, step)]

    def _free(self, name: str, record: RecordLike) -> str:
        page = self._pages[name]
        header: Header | None = Step(record.before, record.thread)[page.header]
        if header is None or header.tdp:
            where = "(tdp_mmu_free_sp_rcu_callback+0x0/0x0 [kvm])"
            return f"free_sp: {where} head={rcu_head(page):#x}"
        return f"free_shadow_sp: (kvm_mmu_free_shadow_page+0x0/0x0 [kvm]) sp={sp_address(page):#x}"

    def _marker(self, event: ev.Event) -> str:
        """An event's name and fields."""
        first = getattr(event, "gfn", 0)
        words = [type(event).__name__]
        for field in fields(event):  # type: ignore[arg-type]
            value = getattr(event, field.name)
            match field.name, value:
                case "gfn", int():
                    value = f"{self._x86.gfn(value):#x}"
                case "address", int():
                    value = f"{self._x86.gfn(value) << PAGE_SHIFT:#x}" if value >= 0 else "all"
                case (("old" | "new"), int()):
                    value = f"{value:#x}"
                case "pfn", int():
                    value = f"{self._x86.pfn(value):#x}"
                case "pages", int():
                    value = f"{self._x86.pages(first, value):#x}"
                case (("gfns" | "private"), tuple()):
                    value = ",".join(f"{self._x86.gfn(one):#x}" for one in value) or "none"
                case _, bool():
                    value = int(value)
                case _, tuple():
                    value = ",".join(map(str, value)) or "none"
            words.append(f"{field.name} {'none' if value == '' else value}")
        return " ".join(words)


def _numbers(call: Call) -> tuple[int, int]:
    """The first two arguments that are numbers: first gfn and pages of a ranged flush."""
    found = [one for one in call.arguments.values() if type(one) is int]
    return (found[0], found[1]) if len(found) > 1 else (0, 0)
