"""A remote flush of a herd: all vCPUs are asked at once, and IPIs are sent in the compiled loop.

Only where nothing else takes CPUs away: ticks and other threads are left to the way operation by
operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.arch.hardware import EXITING, VcpuCells
from tdpmmu.arch.requests import NeedsIpi, RequestFlush, SendIpi
from tdpmmu.machine.op import Op
from tdpmmu.simulation.herd import loop
from tdpmmu.worlds.simulate.ops import AskAll, SendAll
from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.simulation.herd.herd import Herd
    from tdpmmu.worlds.simulate.clock import Clock


class Broadcast:
    """The operations of a flush, and who is sending just now."""

    def __init__(self, herd: Herd, clock: Clock, calm: bool) -> None:
        self._herd = herd
        self._clock = clock
        self._calm = calm
        self._sender: SimThread | None = None
        self._targets: tuple[VcpuCells, ...] = ()
        price = clock.price
        self._asking = price.of(RequestFlush) + price.of(NeedsIpi)
        self._sending = price.of(SendIpi)
        clock.handlers[AskAll] = self._ask
        clock.handlers[SendAll] = self._send

    def _ask(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, AskAll)
        vcpus: tuple[VcpuCells, ...] = op.vcpus
        herd, clock = self._herd, self._clock
        price = len(vcpus) * self._asking
        if self._sender is not None or not self._calm or not herd.quiet_until(thread, price):
            clock.complete(thread, None, 0)
            return True
        memory, running = thread.step.memory, herd.cpus[:-1, loop.RUNS] != 0
        runs = running.tolist()
        kick = []
        for vcpu in vcpus:
            if runs[vcpu.number]:
                cells = memory[vcpu.mode.chunk]
                cells[vcpu.request.offset], cells[vcpu.mode.offset] = True, EXITING
                kick.append(vcpu)
            else:
                RequestFlush(herd.kvm.hardware, vcpu).apply(thread.step, 0)
                if NeedsIpi(herd.kvm.hardware, vcpu).apply(thread.step, 0):
                    kick.append(vcpu)
        clock.ledger.counts["FlushRequested"] += sum(runs)
        asked = herd.cpus[:-1, loop.BUSY]
        asked[running] = np.where(asked[running] == loop.OTHERS, loop.OTHERS, loop.FLUSH)
        clock.complete(thread, tuple(kick), price)
        return True

    def _send(self, thread: SimThread, op: Op) -> bool:
        assert isinstance(op, SendAll)
        herd, clock = self._herd, self._clock
        self._sender, self._targets = thread, op.vcpus
        herd.begin_sending(thread, [vcpu.number for vcpu in op.vcpus], self._sending)
        assert clock.herding is not None
        clock.herding.not_after((thread.now, thread.number))
        return False

    def send_to(self, at: int, now: int) -> None:
        """An IPI to a vCPU that does not run its guest just now."""
        assert self._sender is not None
        self._clock.turn_of(self._sender)
        self._clock.send_to(self._sender, SendIpi(self._targets[at]), now)

    def sent(self) -> tuple[SimThread, tuple[VcpuCells, ...]]:
        """All are on their way: who has sent them, and whom it has to wait for."""
        sender = self._sender
        assert sender is not None
        self._sender = None
        self._clock.turn_of(sender)
        for at, vcpu in enumerate(self._targets):
            if sender.step[vcpu.ipi]:
                return sender, self._targets[at:]
        return sender, ()
