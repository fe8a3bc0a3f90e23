"""What is simulated: a guest, the host's knobs, and what the guest and the host do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tdpmmu.arch.spte import Access

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bytes = npt.NDArray[np.uint8]

READ, WRITE, EXEC = 0, 1, 2
"""Values of ``Touches.access``."""

ACCESSES = (Access.READ, Access.WRITE, Access.EXEC)
"""The same, by value."""

MAX_UINT = (1 << 32) - 1
"""The largest value of a module parameter that is an unsigned int."""

LEVELS = {"4K": 1, "2M": 2, "1G": 3}
"""The host's mapping of guest memory, as the MMU counts levels."""

MODES = ("bitmap", "manual", "initially-set")
"""``KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2``: off, on, and with all pages set at first."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM.

    ``memory_bytes`` must be a multiple of 2 MiB.  ``backing`` is the host's mapping: "4K", "2M" or
    "1G".  ``mapped``: all memory is mapped by the MMU before time begins; else the guest faults it
    in.  ``host_present``: the host has allocated it.  ``cpu``: "ept" or "npt".

    ``small_bytes`` of memory come after that, which the host backs by 4K pages whatever it does
    with the rest: where KVM's selftests have the guest's code and page tables.
    """

    memory_bytes: int
    vcpus: int
    backing: str = "2M"
    mapped: bool = True
    host_present: bool = True
    cpu: str = "ept"
    small_bytes: int = 0

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0 or self.memory_bytes % (2 << 20):
            raise ValueError(f"memory must be a multiple of 2 MiB, not {self.memory_bytes} bytes")
        if self.small_bytes < 0 or self.small_bytes % (2 << 20):
            raise ValueError(f"small must be a multiple of 2 MiB, not {self.small_bytes} bytes")
        if self.small_bytes and self.mapped:
            raise ValueError(
                "what the host backs by 4K pages besides cannot be mapped at the start"
            )
        if self.memory_bytes > 1 << 48:
            raise ValueError("memory must not be more than 256 TiB, what four levels map")
        if not 1 <= self.vcpus <= 4096:
            raise ValueError(f"a guest has 1 to 4096 vCPUs, not {self.vcpus}")
        if self.backing not in LEVELS:
            raise ValueError(f"backing must be {', '.join(LEVELS)}, not {self.backing!r}")
        if self.cpu not in ("ept", "npt"):
            raise ValueError(f"cpu must be ept or npt, not {self.cpu!r}")

    @property
    def pages(self) -> int:
        """All memory, in 4 KiB pages."""
        return self.memory_bytes + self.small_bytes >> 12

    @property
    def main_pages(self) -> int:
        """Those before what ``small_bytes`` adds."""
        return self.memory_bytes >> 12


@dataclass(frozen=True, slots=True)
class Knobs:
    """What the operator sets.

    ``ratio`` and ``period_ms`` are ``nx_huge_pages_recovery_ratio`` and ``_period_ms`` (0: an hour
    divided by the ratio).  ``preemption``: CONFIG_PREEMPTION, so that who holds a lock lets it go
    when others queue for it.  ``dirty_log`` is one of :data:`MODES`.  ``host_cpus``: how many CPUs
    the threads share, 0 for one for each of them.  ``tick_hz``: CONFIG_HZ, 0 without
    ticks.  ``noise``: whether CPUs are interrupted by other things, too.
    ``nodes``: NUMA nodes that CPUs and memory are divided among; 0: no line is far from anybody.
    ``near_wait_ns``, ``far_wait_ns``: what a line of one's own node's memory, and one that comes
    from another node, waits for CPUs that are not simulated.
    """

    nx_huge_pages: bool = True
    ratio: int = 60
    period_ms: int = 0
    preemption: bool = True
    eager_split: bool = True
    dirty_log: str = "bitmap"
    pml: bool = False
    host_cpus: int = 0
    tick_hz: int = 0
    noise: bool = False
    nodes: int = 0
    near_wait_ns: int = 0
    far_wait_ns: int = 0

    def __post_init__(self) -> None:
        if self.ratio < 0 or self.period_ms < 0:
            raise ValueError("ratio and period_ms must not be negative")
        if max(self.ratio, self.period_ms) > MAX_UINT:
            raise ValueError(f"ratio and period_ms must not be more than {MAX_UINT}")
        if self.host_cpus < 0 or self.tick_hz < 0 or self.nodes < 0:
            raise ValueError("host_cpus, tick_hz and nodes must not be negative")
        if min(self.near_wait_ns, self.far_wait_ns) < 0:
            raise ValueError("near_wait and far_wait must not be negative")
        if self.near_wait_ns + self.far_wait_ns and not self.nodes:
            raise ValueError("near_wait and far_wait are about NUMA: expected nodes, too")
        if self.dirty_log not in MODES:
            raise ValueError(f"dirty_log must be {', '.join(MODES)}, not {self.dirty_log!r}")


@dataclass(frozen=True, slots=True)
class Touches:
    """What one vCPU does, in order: ``think_ns`` of other work, then one page is touched.

    ``access`` holds :data:`READ`, :data:`WRITE` or :data:`EXEC`; latencies are kept by ``tag``, 0
    without one.  With a tag a touch that hits and is interrupted counts, too.
    """

    think_ns: Ints
    gfn: Ints
    access: Bytes
    tag: Bytes | None = None


@dataclass(frozen=True, slots=True)
class Unmap:
    """The host takes pages away (migration between nodes, say): a notifier's range."""

    gfn: int
    pages: int


@dataclass(frozen=True, slots=True)
class SplitHuge:
    """The host splits the huge pages of a range: from then on it maps them by 4K pages."""

    gfn: int
    pages: int


@dataclass(frozen=True, slots=True)
class SwapOut:
    """The host swaps pages out, 4K pages of transparent huge pages that it splits first."""

    gfn: int
    pages: int


@dataclass(frozen=True, slots=True)
class Collapse:
    """khugepaged makes the next 4K pages, so many of them, huge again."""

    pages: int


@dataclass(frozen=True, slots=True)
class DirtyLog:
    """Dirty logging of all memory is switched on or off."""

    on: bool


@dataclass(frozen=True, slots=True)
class GetDirtyLog:
    """``KVM_GET_DIRTY_LOG``, and in the manual modes ``KVM_CLEAR_DIRTY_LOG`` of all it said."""


@dataclass(frozen=True, slots=True)
class Migrate:
    """The guest is migrated away: dirty logging on, all memory sent, then what was written since.

    ``bandwidth`` in bytes a second.  It has converged when no more than ``stop_below`` bytes are
    left, and is given up after ``max_passes``; the run ends with it.
    """

    bandwidth: int
    stop_below: int
    max_passes: int = 30

    def __post_init__(self) -> None:
        if self.bandwidth <= 0 or self.stop_below < 0 or self.max_passes < 1:
            raise ValueError("bandwidth and max_passes must be more than 0, stop_below not less")


HostEvent = Unmap | SplitHuge | SwapOut | Collapse | DirtyLog | GetDirtyLog | Migrate


class Workload(Protocol):
    """What the guest and the host do."""

    def touches(self, vcpu: int, rng: np.random.Generator) -> Iterator[Touches]:
        """What a vCPU touches; after the end it halts.

        (As soon as it would be entered again: until an interrupt or an IPI comes it runs on.)
        """

    def host_events(self, rng: np.random.Generator) -> Iterator[tuple[int, HostEvent]]:
        """``(at_ns, event)`` in order of time."""
