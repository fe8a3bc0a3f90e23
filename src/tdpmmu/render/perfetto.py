"""A run of the model as a timeline for the Perfetto UI: operation N lasts from N to N+1 us.

Tracks, from the top: what the run shows; a track for each thread, with the kernel's functions as
slices around its operations; for each vCPU one for what it does and one for what its TLB may hold;
one for each lock, with who holds it; and those of the VM: its pages as counters, SPTE changes,
flushes, and the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from tdpmmu.arch.hardware import Entry, VcpuCells
from tdpmmu.events import records as ev
from tdpmmu.kernel.locks import Acquire
from tdpmmu.machine.op import Step
from tdpmmu.machine.state import State
from tdpmmu.render import spte
from tdpmmu.render.calls import Calls
from tdpmmu.render.interleaving import Scene, Violation, summary
from tdpmmu.render.names import KernelNames
from tdpmmu.render.pages import PageCounts
from tdpmmu.render.record import RecordLike
from tdpmmu.render.stale import moments
from tdpmmu.render.words import Words
from tdpmmu.timeline.builder import Timeline
from tdpmmu.timeline.locks import LockTracks

MICROSECOND = 1000
"""A step, in the timeline's nanoseconds."""

_OF_A_VCPU = (
    ev.FlushLost,
    ev.FlushRequested,
    ev.VcpuFlushed,
    ev.MmioEmulated,
    ev.EmulatedWrite,
    ev.GuestFlushed,
)
_SAID_BY_STATES = (ev.LockTaken, ev.LockReleased, ev.GuestEntered, ev.GuestLeft, ev.TlbFilled)


def write_timeline(
    file: IO[bytes], records: Sequence[RecordLike], scene: Scene, violation: Violation, title: str
) -> None:
    """Write the timeline; PerfettoMissing without the ``perfetto`` package."""
    run = _Run(Timeline(file, title), scene, violation)
    if records:
        run.start(records, violation.sentence)
    for record in records:
        run.take(record)
    run.finish(records, violation)


class _Run:
    def __init__(self, timeline: Timeline, scene: Scene, violation: Violation) -> None:
        self._timeline = timeline
        self._hardware = scene.hardware
        self._calls = Calls(KernelNames(scene.mmu_class))
        self._words = Words(
            scene.hardware,
            scene.layout,
            prop=violation.prop,
            sentence=violation.sentence,
            every=True,
        )
        self._shown = timeline.track("what the run shows")
        room = timeline.track("threads")
        self._threads = [timeline.track(name, room) for name in scene.threads]
        self._ends = [0] * len(scene.threads)
        self._vcpus: list[int] = []
        self._tlbs: list[int] = []
        room = timeline.track("vCPUs")
        for vcpu in scene.hardware.vcpus:
            self._vcpus.append(timeline.track(f"vCPU{vcpu.number}", room))
            self._tlbs.append(timeline.track(f"TLB of vCPU{vcpu.number}", room))
        self._faults: dict[int, str] = {}
        self._locks = LockTracks(timeline)
        vm = timeline.track("VM")
        self._pages = PageCounts(scene.hardware)
        self._counters = {
            level: timeline.counter(f"pages_{name}", "pages", vm)
            for level, name in ((1, "4k"), (2, "2m"), (3, "1g"))
        }
        self._sptes = timeline.track("SPTE changes", vm)
        self._flushes = timeline.track("TLB flushes", vm)
        self._others = timeline.track("other events", vm)

    def start(self, records: Sequence[RecordLike], sentence: str) -> None:
        """The moments that led to the violation, and what there is before the first operation."""
        notes = moments(records, self._hardware, sentence).notes
        for number in sorted(notes):
            for note in notes[number]:
                self._timeline.instant(self._shown, number * MICROSECOND, note)
        before = records[0].before
        self._pages.start(before)
        self._count(0)
        for vcpu in self._hardware.vcpus:
            self._hold(vcpu, before, 0)

    def finish(self, records: Sequence[RecordLike], violation: Violation) -> None:
        """What is wrong, and the end of all that goes on."""
        end = (records[-1].number if records else 0) * MICROSECOND
        self._timeline.instant(self._shown, end, summary(violation))
        self._timeline.close(end + MICROSECOND)

    def take(self, record: RecordLike) -> None:
        """One operation."""
        now = record.number * MICROSECOND
        then = now + MICROSECOND
        self._functions(record, now)
        track = self._threads[record.thread]
        told = "; ".join(phrase.text for phrase in self._words.phrases(record))
        operation = record.op.describe()
        self._timeline.begin(
            track, now, told or operation, {"step": record.number, "operation": operation}
        )
        self._timeline.end(track, then)
        self._ends[record.thread] = then
        if isinstance(record.op, Acquire) and record.result is False:
            self._locks.waits(record.op.lock.name, record.name, record.op.mode, now)
        for event in record.events:
            self._event(event, record, now, then)
        self._count(then)
        if record.after is not record.before:
            for vcpu in self._hardware.vcpus:
                self._hold(vcpu, record.after, now)

    def _functions(self, record: RecordLike, now: int) -> None:
        """The kernel's functions that the thread has left, at its last operation, and entered."""
        track = self._threads[record.thread]
        left, entered = self._calls.step(record)
        for _ in left:
            self._timeline.end(track, self._ends[record.thread])
        for call in entered:
            self._timeline.begin(track, now, call.name)

    def _event(self, event: ev.Event, record: RecordLike, now: int, then: int) -> None:
        timeline = self._timeline
        match event:
            case ev.LockTaken(lock, mode):
                self._locks.taken(lock, record.name, mode, now)
            case ev.LockReleased(lock):
                self._locks.released(lock, record.name, then)
            case ev.GuestEntered(vcpu):
                timeline.state(self._vcpus[vcpu], now, "in the guest")
            case ev.GuestLeft(vcpu):
                timeline.state(self._vcpus[vcpu], then, self._faults.pop(vcpu, ""))
            case ev.SpteChanged():
                self._pages.take(event, record.after)
                self._instant(self._sptes, event, record, now)
            case ev.FlushCompleted():
                self._instant(self._flushes, event, record, now)
            case ev.GuestAccess(vcpu, gfn, kind):
                if event.fault:
                    self._faults[vcpu] = f"fault: {kind} of gfn {gfn:#x}"
                self._instant(self._vcpus[vcpu], event, record, now)
            case ev.FaultFixed(vcpu):
                self._instant(self._vcpus[vcpu], event, record, now)
                timeline.state(self._vcpus[vcpu], then, "")
            case _ if isinstance(event, _OF_A_VCPU):
                self._instant(self._vcpus[event.vcpu], event, record, now)
            case _ if not isinstance(event, _SAID_BY_STATES):
                self._instant(self._others, event, record, now)

    def _instant(self, track: int, event: ev.Event, record: RecordLike, now: int) -> None:
        phrase = self._words.event(event, record)
        if phrase is not None:
            details: dict[str, int | str] = {"thread": record.name, "step": record.number}
            if isinstance(event, ev.SpteChanged):
                details |= {"old": f"{event.old:#x}", "new": f"{event.new:#x}"}
            self._timeline.instant(track, now, phrase.text, details)

    def _count(self, time: int) -> None:
        for level, counter in self._counters.items():
            self._timeline.count(counter, time, self._pages.leaves[level])

    def _hold(self, vcpu: VcpuCells, state: State, now: int) -> None:
        """What a vCPU's CPU may hold in this state."""
        step = Step(state, 0)
        held = sorted(step[vcpu.held])
        live: set[Entry] = set()
        for root in {entry[0] for entry in held}:
            live |= self._hardware.reachable(step, root)
        fmt = self._hardware.format
        leaves = [entry for entry in held if fmt.is_last(entry[3], entry[2])]
        stale = [entry for entry in held if entry not in live]
        name = ""
        if held:
            name = f"leaves: {len(leaves)}, tables: {len(held) - len(leaves)}"
            name += f", stale: {len(stale)}" if stale else ""
        details = {
            "may hold": "; ".join(spte.held(self._hardware, one) for one in held),
            "stale": "; ".join(spte.held(self._hardware, one) for one in stale) or "none",
        }
        self._timeline.state(self._tlbs[vcpu.number], now, name, details)
