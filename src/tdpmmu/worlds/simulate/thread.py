"""A thread in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from tdpmmu.events.records import Event
from tdpmmu.machine.op import Op
from tdpmmu.machine.state import Cell
from tdpmmu.worlds.live import LiveStep, Memory
from tdpmmu.worlds.simulate.scan import Scan

Hear = Callable[["SimThread", Event], None]
"""Called with every event, and who caused it."""


class SimStep(LiveStep):
    """Events are told at once.  Who may touch what is the explorer's business."""

    __slots__ = ("hear", "owner")

    def __init__(self, memory: Memory, owner: SimThread, hear: Hear) -> None:
        super().__init__(memory, owner.number)
        self.owner = owner
        self.hear = hear

    def emit(self, event: Event) -> None:
        self.hear(self.owner, event)

    def touch(self, cell: Cell, write: bool) -> None:
        """Neither lifetimes nor guards are looked at."""


class SimThread:
    """One thread: where it stands, and its own time.

    ``now`` is when the operation ``op`` begins, or when the thread last did something if it waits.
    ``locked``, ``flushing``, ``queued`` (it could run, and had no CPU) and ``disturbed`` (by the
    host's noise, outside of the guest) are the nanoseconds that
    it has stood still so far, by cause.
    ``holds`` are locks given back (name, mode, since, ns), if somebody wants to know.  ``guest``:
    it runs its guest.  ``kicked_at``: when an IPI arrives, -1 without.  ``ticket`` tells its entry
    in the clock's heap from older ones.

    ``cpu`` is the one that it runs on, -1 without; ``last_cpu`` the one where it ran or waits;
    ``vruntime`` what it has had of it.  ``spinning``: it keeps it, but has no entry in the heap.
    ``entering``: interrupts are off on the way into the guest.  ``stolen``: how long the interrupt
    takes that makes the guest leave.  ``scan``: where in a page table it is.
    """

    __slots__ = (
        "body",
        "cpu",
        "disturbed",
        "entering",
        "flushing",
        "guest",
        "holds",
        "kicked_at",
        "kind",
        "last_cpu",
        "locked",
        "now",
        "number",
        "op",
        "queued",
        "result",
        "scan",
        "spinning",
        "step",
        "stolen",
        "taken",
        "ticket",
        "vruntime",
        "waits_since",
    )

    def __init__(self, number: int, kind: str, memory: Memory, hear: Hear) -> None:
        self.number = number
        self.kind = kind
        self.now = 0
        self.ticket = 0
        self.op: Op | None = None
        self.body: Coroutine[Op, Any, Any] | None = None
        self.result: Any = None
        self.step = SimStep(memory, self, hear)
        self.scan = Scan()
        self.holds: list[tuple[str, str, int, int]] | None = None
        self.taken: dict[str, int] = {}
        self.locked = 0
        self.flushing = 0
        self.waits_since = 0
        self.guest = False
        self.kicked_at = -1
        self.cpu = -1
        self.last_cpu = number
        self.vruntime = 0
        self.queued = 0
        self.disturbed = 0
        self.stolen = 0
        self.spinning = False
        self.entering = False

    def start(self, body: Coroutine[Op, Any, Any]) -> None:
        """Go to the first operation."""
        self.body = body
        self.send(None)

    def send(self, result: Any) -> None:
        """The operation is done: on to the next one."""
        assert self.body is not None
        try:
            self.op = self.body.send(result)
        except StopIteration as stop:
            self.op = None
            self.result = stop.value
