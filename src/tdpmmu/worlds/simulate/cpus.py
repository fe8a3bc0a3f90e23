"""The host's CPUs: which thread runs on which, who waits for one, and when one is taken away.

A run queue for each CPU, as CFS and EEVDF have them.  A thread that wakes up goes to an idle CPU,
its last one if that is idle, else to the shortest queue; a CPU that falls idle takes from the
longest one.  Threads of one CPU get equal shares: when ``sched_slice`` is over and somebody waits
who has had less, ``need_resched`` is set, and a guest that runs is made to leave by the interrupt.

Who spins (for a lock, for IPIs to be answered) keeps its CPU; who sleeps gives it back.  Weights,
the tick's granularity, wakeup preemption and caches that are cold after a move are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdpmmu.arch.requests import WaitIpi
from tdpmmu.kernel.locks import Acquire, SpinAcquire
from tdpmmu.machine.op import Op
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.ledger import CPU, NOISE, Ledger
from tdpmmu.worlds.simulate.ops import NeedResched, RunGuest, SendAll
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.worlds.simulate.clock import Clock

NO_CPU = -1

MUTEXES = frozenset({"slots_lock"})
"""Locks that the model has as spinlocks and the kernel as mutexes: who waits for one sleeps."""


class HostCpu:
    """One CPU: who runs, since when, who waits in order of arrival, and who must be let in."""

    __slots__ = ("charged", "least", "number", "queue", "resched", "runs", "slice_end", "timer")

    def __init__(self, number: int) -> None:
        self.number = number
        self.runs: SimThread | None = None
        self.queue: list[SimThread] = []
        self.resched = False
        self.charged = 0
        self.slice_end = 0
        self.least = 0
        self.timer = 0

    def charge(self, now: int) -> None:
        """``update_curr``: the time until now was that of the thread that runs."""
        if self.runs is not None:
            self.runs.vruntime += max(0, now - self.charged)
            self.charged = max(now, self.charged)
        here = [thread.vruntime for thread in self.queue]
        if self.runs is not None:
            here.append(self.runs.vruntime)
        if here:
            self.least = max(self.least, min(here))


class Cpus:
    """All CPUs that the threads of a VM run on."""

    def __init__(
        self, clock: Clock, costs: Costs, ledger: Ledger, limit: int, preemption: bool
    ) -> None:
        """``limit``: how many there are; 0 for one for each thread."""
        self._preemption = preemption
        self._clock = clock
        self._costs = costs
        self._ledger = ledger
        self.cpus: list[HostCpu] = []
        self.limit = limit
        clock.handlers[NeedResched] = self._need_resched

    def make_room(self, thread: SimThread) -> None:
        """One more CPU for a new thread, unless there are as many as there may be."""
        if not self.limit or len(self.cpus) < self.limit:
            self.cpus.append(HostCpu(len(self.cpus)))
        thread.last_cpu = thread.number % len(self.cpus)

    def of(self, thread: SimThread) -> HostCpu:
        """The CPU that a thread runs on."""
        return self.cpus[thread.cpu]

    # --- on and off -----------------------------------------------------------------------------

    def get(self, thread: SimThread) -> bool:
        """A thread that has woken up wants a CPU; false if it waits for one now."""
        now = thread.now
        last = self.cpus[thread.last_cpu]
        idle = last if last.runs is None else None
        if idle is None and self.limit:
            idle = next((cpu for cpu in self.cpus if cpu.runs is None), None)
        if idle is not None:
            self._move(thread, idle)
            self._run(thread, idle, now)
            return True
        shortest = min(self.cpus, key=lambda cpu: (len(cpu.queue), cpu is not last, cpu.number))
        shortest.charge(now)
        self._move(thread, shortest)
        self._wait(thread, shortest, now)
        return False

    def _move(self, thread: SimThread, cpu: HostCpu) -> None:
        """What a thread is ahead of others by goes with it; being behind is no credit."""
        ahead = max(0, thread.vruntime - self.cpus[thread.last_cpu].least)
        thread.vruntime = cpu.least + ahead
        thread.last_cpu = cpu.number

    def _run(self, thread: SimThread, cpu: HostCpu, now: int) -> None:
        cpu.runs, cpu.charged, cpu.resched = thread, now, False
        cpu.slice_end = now + self._costs.sched_slice
        thread.cpu = cpu.number

    def _wait(self, thread: SimThread, cpu: HostCpu, now: int) -> None:
        thread.waits_since = now
        cpu.queue.append(thread)
        self._arm(cpu, now)

    def release(self, thread: SimThread, now: int) -> None:
        """It sleeps, or is over: the CPU goes to the next one."""
        if thread.cpu == NO_CPU:
            return
        cpu = self.of(thread)
        cpu.charge(now)
        thread.cpu = NO_CPU
        cpu.runs, cpu.resched = None, False
        following = self._next(cpu)
        if following is None:
            return
        self._move(following, cpu)
        began = now + self._costs.context_switch
        self._run(following, cpu, began)
        ns = began - following.waits_since
        following.queued += ns
        self._ledger.waited(following.kind, CPU, ns)
        following.now = began
        self._clock.push(following)
        self._arm(cpu, began)

    def _next(self, cpu: HostCpu) -> SimThread | None:
        """Who has had least; an idle CPU takes from the longest queue (``newidle_balance``)."""
        queue = cpu.queue
        if not queue and self.limit:
            queue = max(self.cpus, key=lambda other: (len(other.queue), -other.number)).queue
        if not queue:
            return None
        least = min(range(len(queue)), key=lambda at: queue[at].vruntime)
        return queue.pop(least)

    # --- being taken away -----------------------------------------------------------------------

    def _arm(self, cpu: HostCpu, now: int) -> None:
        """While somebody waits, the end of the slice is looked at."""
        if not cpu.queue or cpu.resched or cpu.runs is None:
            return
        if cpu.slice_end < now:
            slices = -(-(now - cpu.slice_end) // self._costs.sched_slice)
            cpu.slice_end += slices * self._costs.sched_slice
        cpu.timer += 1
        timer = cpu.timer
        self._clock.at(cpu.slice_end, lambda at: self._slice_over(cpu, timer, at))

    def _slice_over(self, cpu: HostCpu, timer: int, now: int) -> None:
        runs = cpu.runs
        if timer != cpu.timer or runs is None or not cpu.queue:
            return
        cpu.charge(now)
        if min(thread.vruntime for thread in cpu.queue) >= runs.vruntime:
            cpu.slice_end += self._costs.sched_slice
            self._arm(cpu, now)
            return
        cpu.resched = True
        self._interrupt(runs, now)

    def need_resched(self, thread: SimThread) -> bool:
        """``need_resched()`` of a thread that runs."""
        cpu = self.of(thread)
        return cpu.resched and bool(cpu.queue)

    def give_way(self, thread: SimThread, now: int) -> None:
        """``schedule()`` of a thread that stays runnable."""
        cpu = self.of(thread)
        thread.waits_since = now
        self.release(thread, now)
        thread.now = now
        cpu.queue.append(thread)
        self._arm(cpu, cpu.charged)

    def preempted(self, thread: SimThread) -> bool:
        """``preempt_schedule``: outside of locks a preemptible kernel gives way at any time."""
        if not self._preemption or thread.taken.keys() - MUTEXES or thread.entering or thread.guest:
            return False
        if not self.need_resched(thread):
            return False
        self.give_way(thread, thread.now)
        return True

    def _need_resched(self, thread: SimThread, op: Op) -> bool:
        self._clock.complete(thread, self.need_resched(thread), 0)
        return True

    def steal(self, cpu: HostCpu, now: int, ns: int) -> None:
        """A CPU does something else for a while; who spins or sleeps does not notice."""
        thread = cpu.runs
        if thread is None or thread.spinning:
            return
        if thread.guest:
            thread.stolen += ns
            self._ledger.stalled(NOISE, ns)
            self._interrupt(thread, now)
        else:
            thread.now += ns
            thread.disturbed += ns
            self._clock.push(thread)

    def _interrupt(self, thread: SimThread, now: int) -> None:
        """It makes a guest leave."""
        if thread.guest:
            thread.kicked_at = now
            self._clock.bring_forward(thread, now)

    # --- what keeps a CPU -----------------------------------------------------------------------

    def stands_still(self, thread: SimThread) -> None:
        """A thread waits for somebody: with its CPU, or without."""
        assert thread.op is not None
        if self._sleeps(thread.op):
            self.release(thread, thread.now)
        else:
            thread.spinning = True

    def _sleeps(self, op: Op) -> bool:
        """Whether a thread that waits in this operation does so without a CPU."""
        if isinstance(op, SpinAcquire):
            return op.lock.name in MUTEXES
        return not isinstance(op, Acquire | RunGuest | WaitIpi | SendAll)
