"""The herd: arrays of all guests, and what Python does between two runs of the compiled loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.requests import NeedsIpi, RequestFlush, RequestReload
from tdpmmu.arch.spte import (
    PT64_NX_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    SpteFormat,
)
from tdpmmu.machine.op import Op
from tdpmmu.simulation.herd import loop
from tdpmmu.simulation.herd.broadcast import Broadcast
from tdpmmu.simulation.herd.guest import CHUNK, HerdGuest
from tdpmmu.simulation.herd.patterns import Patterns
from tdpmmu.simulation.herd.rehearsal import Bounce, rehearse, small
from tdpmmu.simulation.vcpu import PML_FULL
from tdpmmu.worlds.simulate.ledger import FAULT, REFAULT, REFILL
from tdpmmu.worlds.simulate.ops import FOREVER
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.simulation.machine import Simulation
    from tdpmmu.worlds.simulate.clock import Clock

PAGE = 4096

Ints = npt.NDArray[np.int64]


class Herd:
    """All guests of one VM.  The clock lets it ``go`` when the next touch of any is due."""

    def __init__(self, run: Simulation, clock: Clock) -> None:
        self.kvm, self.costs, self.ledger = run.kvm, run.costs, clock.ledger
        self.patterns = Patterns(run, clock)
        self.caches = run.caches
        self.guests: list[HerdGuest] = []
        self._run = run
        self._clock = clock
        vcpus = run.guest.vcpus
        self.cpus: Ints = np.zeros((vcpus + 1, loop.COLUMNS), dtype=np.int64)
        self.cpus[:, loop.NUMBER] = np.arange(vcpus + 1)
        self.cpus[:, loop.SINCE] = -1
        self.cpus[:, loop.KICKED] = FOREVER
        self.cpus[:, loop.EPOCH] = 1
        self.touches: Ints = np.zeros((vcpus, CHUNK, 2), dtype=np.int64)
        slots = 2
        while slots < 2 * self.costs.tlb_entries:
            slots *= 2
        self._tlb: Ints = np.zeros((vcpus, slots), dtype=np.int64)
        self._order: Ints = np.zeros(vcpus + 1, dtype=np.int64)
        self._sends: Ints = np.zeros(vcpus, dtype=np.int64)
        self._bounced: Ints = np.zeros(4 * vcpus, dtype=np.int64)
        self._bounce: Bounce | None = None
        self._log: Ints = np.zeros((loop.LOG, loop.LOG_COLUMNS), dtype=np.int64)
        self._masks = masks(run.format)
        self._control = self._first_control()
        self.first = FOREVER, 0
        for kind in (RequestFlush, RequestReload, NeedsIpi):
            clock.handlers[kind] = self._ask
        self.words = self._control.data
        knobs = run.knobs
        self._broadcast = Broadcast(
            self, clock, not (knobs.host_cpus or knobs.tick_hz or knobs.noise)
        )

    def _first_control(self) -> Ints:
        run, kvm, costs = self._run, self.kvm, self.costs
        control: Ints = np.zeros(loop.CONTROL, dtype=np.int64)
        control[loop.LEVELS] = kvm.geometry.levels
        control[loop.ACCESS_NS] = costs.access
        for level in (1, 2, 3):
            control[loop.REFILL + level] = costs.refill(level)
        control[loop.PAGES] = run.guest.pages
        control[loop.HUGE_LEVEL] = kvm.config.huge_level
        control[loop.BLOCK] = kvm.memory.block
        control[loop.STRIDE] = kvm.memory.blocks * kvm.memory.block
        control[loop.ENTRIES] = costs.tlb_entries
        return control

    def guest(self, number: int, thread: SimThread) -> HerdGuest:
        """That vCPU's guest, which is the next one."""
        guest = HerdGuest(self, self.kvm.vcpus[number], thread)
        self.guests.append(guest)
        return guest

    def interrupt(self, number: int, when: int) -> None:
        """An IPI will arrive then, or something else."""
        self.cpus[number, loop.KICKED] = when
        self.guests[number].ask()

    def flush_tlb(self, number: int) -> None:
        """A guest's TLB is empty."""
        self.cpus[number, loop.HELD] = 0
        self.cpus[number, loop.EPOCH] += 1

    def _ask(self, thread: SimThread, op: Op) -> bool:
        """A request for a vCPU, or a look at its mode that changes it."""
        self.guests[op.vcpu.number].ask()  # type: ignore[attr-defined]
        self._clock.complete(thread, op.apply(thread.step, 0), self._clock.price(op))
        return True

    # --- flushes --------------------------------------------------------------------------------

    def quiet_until(self, thread: SimThread, ns: int) -> bool:
        """Whether nothing happens in that time but what the thread does, and touches that hit."""
        end = thread.now + ns + 1
        if not self._clock.only_guests_until(end):
            return False
        rows = self.kvm.rows.array
        quiet: bool = loop.quiet(
            self._control, self._masks, self.cpus, self.touches, rows, -1, end, False
        )
        return quiet

    def hits_until(self, end: int) -> int:
        """Until when, up to ``end``, guests do nothing but touch what hits."""
        rows = self.kvm.rows.array
        when: int = loop.hits_until(self._control, self._masks, self.cpus, self.touches, rows, end)
        return when

    def begin_sending(self, thread: SimThread, to: list[int], ns: int) -> None:
        """IPIs from that thread, one after the other, each of which takes it so long."""
        words = self.words
        if self._bounce is None:
            run = self._run
            alone = type(run)(
                run.kernel, *small(run), run.costs, run.workload, run.seed, bulk=False
            )
            self._bounce = rehearse(run, alone)
            words[loop.BOUNCE] = self._bounce.ns
        self._sends[: len(to)] = to
        words[loop.SENT_SO_FAR], words[loop.SENDS], words[loop.SEND_NS] = 0, len(to), ns
        words[loop.DELIVER_NS] = self.costs.ipi_deliver
        sender = self.cpus[-1]
        sender[loop.RUNS], sender[loop.DUE], sender[loop.NUMBER] = 1, thread.now, thread.number

    # --- the clock's side -----------------------------------------------------------------------

    def go(self, limit: tuple[int, int], until: int) -> tuple[SimThread, int, Any] | None:
        """All touches before ``limit`` (time and number of a thread), and those at ``until``.

        Who leaves its guest earlier than that, when and why, or who has sent its IPIs, when, and
        whom it has to wait for; afterwards ``first`` is who is next.
        """
        words, clock, ledger = self.words, self._clock, self.ledger
        lock = self.kvm.mmu_lock.name
        words[loop.LIMIT], words[loop.LIMIT_NUMBER] = limit
        words[loop.UNTIL] = until
        words[loop.OPEN] = self.patterns.open
        words[loop.LINE_OWNER], words[loop.LINE_FREE] = clock.locks.line(lock)
        words[loop.CALM] = self._bounce is not None and not clock.waiting
        out: tuple[SimThread, int, Any] | None = None
        while out is None:
            words[loop.SAMPLE] = ledger.next_sample
            stop = self._loop()
            when, who = words[loop.WHEN], words[loop.WHO]
            self._turn_is(when, who)
            self._absorb(lock)
            if stop == loop.DONE:
                break
            if stop == loop.SAMPLES:
                self._settle_bytes()
                ledger.sample(when)
            elif stop == loop.DRAIN:
                self._drain()
            elif stop == loop.SEND:
                self._broadcast.send_to(words[loop.SENT_SO_FAR], when)
                words[loop.SENT_SO_FAR] += 1
                self.cpus[-1, loop.DUE] = when + words[loop.SEND_NS]
            else:
                out = self._attend(stop, who, when)
                if out is not None:
                    self._turn_is(words[loop.AFTER], words[loop.NEXT])
        self._settle_bytes()
        return out

    def _turn_is(self, when: int, who: int) -> None:
        self.first = when, int(self.cpus[who, loop.NUMBER])

    def _absorb(self, lock: str) -> None:
        """What the loop has done that others can see."""
        words, clock = self.words, self._clock
        if not words[loop.APPLIED]:
            return
        words[loop.APPLIED] = 0
        clock.turns += 1
        clock.locks.move_line(words[loop.LINE_OWNER], lock, words[loop.LINE_FREE])
        for number in self._bounced[: words[loop.BOUNCED]].tolist():
            self.guests[number].bounced()
        if words[loop.IPIS]:
            for number in np.flatnonzero(self.cpus[:, loop.IPI]).tolist():
                self.guests[number].told()

    def _loop(self) -> int:
        kvm, run = self.kvm, self._run
        rows, blocks = kvm.rows, kvm.blocks
        stop: int = loop.run(
            self._control,
            self._masks,
            self.cpus,
            self._order,
            self.touches,
            self._tlb,
            rows.array,
            rows.disallowed,
            run.regions.array,
            blocks.rows,
            blocks.array,
            self.patterns.table,
            run.dirty.bits,
            self._log,
            self._sends,
            self._bounced,
        )
        return stop

    def _attend(self, stop: int, who: int, when: int) -> tuple[SimThread, int, Any] | None:
        """To one guest: None if it runs on; or to who has sent IPIs."""
        if stop == loop.SENT:
            self.cpus[-1, loop.RUNS] = 0
            sender, rest = self._broadcast.sent()
            return sender, when, rest
        guest, words = self.guests[who], self.words
        self._clock.turn_of(guest.thread)
        why: str | None
        if stop == loop.KICK:
            why = guest.kick(when)
        elif stop == loop.PASSED:
            when = words[loop.TOUCHED]
            why = PML_FULL if guest.passed(when) else None
        else:
            fresh = guest.since < 0
            pattern = words[loop.PATTERN]
            why = guest.look(when)
            if why is not None and pattern >= 0 and fresh:
                cell = words[loop.CELL]
                self.patterns.record(guest, pattern, words[loop.LEVEL], cell, when)
        return None if why is None else (guest.thread, when, why)

    # --- bookkeeping ----------------------------------------------------------------------------

    def _settle_bytes(self) -> None:
        words, ledger = self.words, self.ledger
        if words[loop.SMALL] or words[loop.HUGE]:
            ledger.small_bytes += words[loop.SMALL] * PAGE
            ledger.huge_bytes += words[loop.HUGE] * (PAGE << 9)
            words[loop.SMALL] = words[loop.HUGE] = 0

    def settle(self) -> None:
        """Count what was not counted one by one."""
        words, ledger = self.words, self.ledger
        self._drain()
        self.patterns.settle()
        ledger.counts["GuestAccess"] += words[loop.ACCESSES]
        for cause, word in (
            (REFILL, loop.REFILLED),
            (REFAULT, loop.REFAULTED),
            (FAULT, loop.FAULTED),
        ):
            ledger.stalled(cause, words[word])
        if self._bounce is not None:
            for kind, n in self._bounce.counts.items():
                ledger.counts[kind] += n * words[loop.BOUNCES]
            for cause, ns in self._bounce.stalls.items():
                ledger.stalled(cause, ns * words[loop.BOUNCES])

    def _drain(self) -> None:
        """The log of faults goes into the ledger."""
        lines = self._log[: self.words[loop.LOGGED]]
        self.words[loop.LOGGED] = 0
        for ns, since, vcpu, gfn, tag, held_at, held_ns in lines.tolist():
            self.ledger.latency(ns, since, vcpu, gfn, tag)
            if held_ns >= 0:
                self.ledger.held(self.kvm.mmu_lock.name, "read", "vcpu", vcpu, held_at, held_ns)


def masks(fmt: SpteFormat) -> npt.NDArray[np.uint64]:
    """An encoding, as the loop has it."""
    if fmt.name == "ept":
        need, shut = [1, 3, 4], [0, 0, 0]
    else:
        base = PT_PRESENT_MASK | PT_USER_MASK
        need, shut = [base, base | PT_WRITABLE_MASK, base], [0, 0, PT64_NX_MASK]
    if fmt.has_ad_bits:
        # A write that sets the dirty bit leaves a trace.
        need[1] |= fmt.dirty
    entry = [
        fmt.mmu_present,
        fmt.large,
        fmt.nonpresent,
        fmt.removed,
        fmt.mmio_mask,
        fmt.mmio_value,
    ]
    return np.array([*entry, *need, *shut], dtype=np.uint64)
