"""The price of each operation: its class, and what it is about, name an entry of the cost table."""

from __future__ import annotations

from tdpmmu.events.records import Event, PfnMarkedDirty
from tdpmmu.machine.op import Emit, Op
from tdpmmu.worlds.simulate.costs import Costs

FREE = ""
"""Costs nothing: what the model looks at and the kernel knows anyway, and tracepoints."""

PRICES: dict[str, str] = {
    "Read": "read",
    "Write": "write",
    "CmpXchg": "atomic",
    "Xchg": "atomic",
    "Add": "atomic",
    "IncNotZero": "atomic",
    "ListAdd": "list_change",
    "ListDel": "list_change",
    "SetAdd": "list_change",
    "SetDel": "list_change",
    "Choose": FREE,
    "WaitUntil": "wakeup",
    "ReadSpte": "spte_read",
    "WriteSpte": "spte_write",
    "XchgSpte": "spte_atomic",
    "CmpXchgSpte": "spte_atomic",
    "ClearSpteBits": "spte_atomic",
    "SetPrivate": "split_entry",
    "ReadHeader": "read",
    "Allocate": "table_alloc",
    "FreeUnused": "table_free",
    "FreeNow": "table_free",
    "AssertHeld": FREE,
    "HeldForWrite": FREE,
    "NeedBreak": "read",
    "Release": FREE,
    "SpinRelease": "spin_unlock",
    "WaitForInvalidations": "spin_lock",
    "ReadLock": FREE,
    "ReadUnlock": FREE,
    "Call": "list_change",
    "Snapshot": "read",
    "WaitGrace": FREE,
    "Barrier": FREE,
    "GetUserPage": "get_user_page",
    "TakeBack": FREE,
    "Unmap": FREE,
    "Reuse": FREE,
    "SnapshotSeq": "read",
    "FlushOwnTlb": "flush_own",
    "FlushOwnAddress": "flush_own",
    "Park": FREE,
    "LoadRoot": "write",
    "RequestFlush": "flush_request",
    "RequestReload": "flush_request",
    "RequestApicReload": "flush_request",
    "NeedsIpi": "read",
    "TestAndClearRequest": "read",
    "TestAndClearReload": "read",
    "TestAndClearApicReload": "read",
    "ExitRequested": "read",
    "CurrentRoot": "read",
    "WriteApicAccessAddr": "write",
    "SetMode": "write",
    "SendIpi": "ipi_send",
    "WaitIpi": FREE,
    "FlushDone": FREE,
    "HypercallFlush": "ioctl",
    "VmEnter": "vm_entry",
    "VmExit": "vm_exit",
    "SetDirtyBit": "dirty_bit",
    "TakeDirtyBits": "dirty_word",
    "NewDirtyBitmap": "ioctl",
    "TakePml": "read",
    "PushDirty": "dirty_bit",
    "SoftFull": "read",
    "HarvestEntry": "read",
    "TakeHarvested": "read",
    "CountLeaks": FREE,
}
"""By the operation's name."""

EVENT_PRICES: dict[type[Event], str] = {PfnMarkedDirty: "zap_leaf"}
"""What an event that is emitted by itself stands for, where that is work."""


class NoPrice(KeyError):
    """An operation that the cost table says nothing about."""


class PriceList:
    """Prices in nanoseconds, looked up once for each class of operations."""

    def __init__(self, costs: Costs, free_events: frozenset[type[Event]] = frozenset()) -> None:
        """``free_events``: those that stand for no work on this kernel."""
        self._costs = costs
        self._known: dict[type[Op], int] = {}
        self._events = {
            kind: self._cost(name) for kind, name in EVENT_PRICES.items() if kind not in free_events
        }

    def _cost(self, name: str) -> int:
        return int(getattr(self._costs, name)) if name else 0

    def __call__(self, op: Op) -> int:
        """The price of ``op``; NoPrice for one that nobody has thought of."""
        kind = op.__class__
        if kind is Emit:
            return self.of_event(op.event.__class__)  # type: ignore[attr-defined]
        price = self._known.get(kind)
        return self.of(kind) if price is None else price

    def of(self, kind: type[Op]) -> int:
        """The price of any operation of a class; NoPrice for one that nobody has thought of."""
        if kind.__name__ not in PRICES:
            raise NoPrice(f"operation {kind.__name__} has no price")
        price = self._known[kind] = self._cost(PRICES[kind.__name__])
        return price

    def of_event(self, kind: type[Event]) -> int:
        """The price of the work that an event stands for."""
        return self._events.get(kind, 0)
