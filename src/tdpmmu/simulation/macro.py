"""Faults that have been seen before: their effect and cost at once, without running the code.

What a fault does depends only on what it reads.  The first fault of a *pattern* (how the walk ends,
what is asked for, what the tables on the way say, where the lock's line is) runs operation by
operation, and if nobody else did anything meanwhile, and all that came of it is one leaf where
there was nothing, it is remembered: how long it took, what it counted, how long it held the lock.
The next one is done in one step if nothing can happen before its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tdpmmu.arch.spte import BASE_ADDR_MASK
from tdpmmu.kernel.locks import NOBODY

if TYPE_CHECKING:
    from tdpmmu.simulation.bulk_guest import BulkGuest
    from tdpmmu.simulation.machine import Simulation
    from tdpmmu.worlds.simulate.clock import Clock

SIMPLE = frozenset(
    {
        "FaultFixed",
        "GuestAccess",
        "GuestEntered",
        "GuestLeft",
        "LockReleased",
        "LockTaken",
        "MightSleep",
        "SpteChanged",
    }
)
"""Kinds of events of a fault that does nothing but install a leaf."""


@dataclass(slots=True)
class Macro:
    """A pattern: it takes ``ns``, the lock is held from ``lock_at`` on for ``lock_ns``."""

    ns: int
    counts: dict[str, int]
    bits: int
    lock_at: int
    lock_ns: int
    line_at: int
    applied: int = 0


@dataclass(slots=True)
class Recording:
    """A fault on its way, that may become a macro."""

    key: Hashable
    now: int
    turns: int
    counts: Counter[str]
    level: int
    cell: int
    waited: int
    holds: list[tuple[str, str, int, int]] = field(default_factory=list)


class Macros:
    """All patterns seen in one run; None for those that are not simple."""

    def __init__(self, run: Simulation, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        self._known: dict[Hashable, Macro | None] = {}
        kvm = run.kvm
        self._lock = kvm.mmu_lock
        self._pages = kvm.geometry.pages
        self._fields = tuple(
            (cell.chunk, cell.offset)
            for cell in (kvm.mmu_notifier_count, kvm.mmu_lock.writer, kvm.memslots[0])
        )

    # --- patterns -------------------------------------------------------------------------------

    def _key(self, guest: BulkGuest, gfn: int, access: int, level: int, row: int) -> Hashable:
        """The pattern, None if the fault cannot be simple just now."""
        run, thread, vcpu = self._run, guest.thread, guest.vcpu
        memory = run.memory
        (a, b), (c, d), (e, f) = self._fields
        count, writer, slots = memory[a][b], memory[c][d], memory[e][f]
        if count or writer != NOBODY or self._clock.locks.contended(self._lock.name):
            return None
        step = thread.step
        if step[vcpu.request] or step[vcpu.reload] or step[vcpu.apic_reload] or step[vcpu.ipi]:
            return None
        if thread.kicked_at >= 0 or run.host_is_absent(gfn):
            return None
        mine, free = self._clock.locks.line(thread, self._lock.name)
        if free > thread.now:
            return None
        page = run.kvm.hardware.page_by_number[row]
        return (
            level,
            access,
            step[page.nx_huge_page_disallowed],
            run.mmu.host_pfn_mapping_level(slots.slots[0], gfn),
            (gfn >> 18) + 1 << 18 > run.guest.pages,
            slots.generation,
            mine,
        )

    def try_one(
        self, guest: BulkGuest, now: int, gfn: int, access: int, level: int, row: int
    ) -> int:
        """The time at which a fault that begins now is over; -1: run it.

        The walk has found nothing in that row, a table of ``level``.
        """
        run, clock, thread = self._run, self._clock, guest.thread
        if level > 2:
            return -1
        key = self._key(guest, gfn, access, level, row)
        if key is None:
            return -1
        at = row * 512 + (gfn >> 9 * (level - 1) & 511)
        if key not in self._known:
            thread.holds = []
            guest.recording = Recording(
                key, now, clock.turns, clock.ledger.counts.copy(), level, at, thread.locked
            )
            return -1
        macro = self._known[key]
        if macro is None or not clock.quiet_until(now + macro.ns + 1):
            return -1
        run.kvm.rows.flat[at] = macro.bits | self._frame(gfn, level)
        macro.applied += 1
        ledger = clock.ledger
        ledger.held(
            self._lock.name,
            "read",
            thread.kind,
            thread.number,
            now + macro.lock_at,
            macro.lock_ns,
        )
        ledger.stalled(run.what.sort(thread.number, gfn), macro.ns)
        if level == 1:
            ledger.small_bytes += 4096
        else:
            ledger.huge_bytes += 4096 << 9
        if macro.line_at >= 0:
            clock.locks.move_line(thread, self._lock.name, now + macro.line_at)
        return now + macro.ns

    def _frame(self, gfn: int, level: int) -> int:
        first = gfn >> 9 * (level - 1) << 9 * (level - 1)
        return self._run.pfn(first) << 12

    # --- recording ------------------------------------------------------------------------------

    def over(self, guest: BulkGuest, now: int) -> None:
        """The guest is entered again after a fault that was watched."""
        recording, thread = guest.recording, guest.thread
        assert recording is not None
        guest.recording = None
        holds, thread.holds = thread.holds, None
        clock = self._clock
        if clock.turns != recording.turns or thread.locked != recording.waited:
            return
        counts = Counter(clock.ledger.counts)
        counts.subtract(recording.counts)
        counts = Counter({kind: n for kind, n in counts.items() if n})
        gfn = guest.fault_gfn
        spte = self._run.kvm.rows.flat[recording.cell]
        frame = self._frame(gfn, recording.level)
        simple = (
            set(counts) <= SIMPLE
            and counts["SpteChanged"] == 1
            and spte & BASE_ADDR_MASK == frame
            and holds is not None
        )
        if not simple:
            self._known[recording.key] = None
            return
        assert holds is not None
        _, _, since, ns = next(hold for hold in holds if hold[0] == self._lock.name)
        _, free = clock.locks.line(thread, self._lock.name)
        line_at = free - recording.now if free > recording.now else -1
        self._known[recording.key] = Macro(
            now - recording.now,
            dict(counts),
            spte & ~BASE_ADDR_MASK,
            since - recording.now,
            ns,
            line_at,
        )

    def settle(self) -> None:
        """Count what was not counted one by one."""
        counts = self._clock.ledger.counts
        for macro in self._known.values():
            if macro is not None:
                for kind, n in macro.counts.items():
                    counts[kind] += n * macro.applied
                macro.applied = 0
