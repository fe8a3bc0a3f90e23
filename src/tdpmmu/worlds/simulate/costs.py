"""What an operation costs: a small table, read from TOML."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Costs:
    """Nanoseconds, whole ones; ``costs.toml`` says where each comes from.

    Memory: ``read`` and ``write`` of a field of the VM, ``atomic`` on one; the same of an SPTE,
    whose line comes from memory: reads and atomics have their part of that, writes follow reads.
    ``spte_ahead``: a read where the CPU has fetched the line ahead (``scan.py``).  ``zap_leaf``:
    what a leaf that goes costs besides (``kvm_set_pfn_dirty``).  ``split_entry``: one of the SPTEs
    of a table that takes the place of a huge page.  ``list_change``: ``list_add``, ``list_del``.

    Locks: ``read_lock`` ... uncontended; ``lock_handover`` from the owner to the next in the queue;
    ``reader_bounce``: the line of an rwlock that another CPU touched last comes over, one CPU at a
    time.

    Faults: ``vm_exit`` and ``vm_entry``; ``fault`` is the handler's work besides operations;
    ``get_user_page`` finds the host's page, ``host_fault_*`` makes one of that size first.
    ``emulate``: an access that KVM does for the guest.

    TLBs: ``flush_own``; a remote flush costs ``flush_request`` for each vCPU, ``ipi_send`` for each
    kicked one, and each leaves the guest ``ipi_deliver`` after that.  ``access`` is a guest access
    that hits; ``refill_*`` the first one of a page of that size after a flush, as long as there are
    less than ``tlb_entries`` of them: what is beyond would have been missed anyway.

    NUMA: ``hop``, what a line of memory costs more for each link between the nodes.

    Noise: ``tick``, the timer's interrupt; other interruptions, ``noise_per_s`` on each CPU, of
    ``noise_shortest`` to ``noise_longest``; ``noise_usual`` is the longest within a second on the
    median.

    Sleeping: ``sched_slice``, how long a thread runs while others wait for its CPU,
    ``context_switch``, ``wakeup``, ``relax`` (``cpu_relax`` between unlock and lock),
    ``grace_period`` and ``srcu_grace_period``.

    Dirty logging: ``ioctl``; ``dirty_word``, one word of a bitmap taken; ``dirty_bit``, one set.

    ``clock_mhz`` turns nanoseconds into cycles.
    """

    read: int
    write: int
    atomic: int
    spte_read: int
    spte_ahead: int
    spte_write: int
    spte_atomic: int
    zap_leaf: int
    split_entry: int
    list_change: int
    table_alloc: int
    table_free: int
    read_lock: int
    read_unlock: int
    write_lock: int
    write_unlock: int
    lock_handover: int
    reader_bounce: int
    spin_lock: int
    spin_unlock: int
    rcu: int
    srcu: int
    grace_period: int
    srcu_grace_period: int
    vm_exit: int
    vm_entry: int
    fault: int
    get_user_page: int
    host_fault_4k: int
    host_fault_2m: int
    host_fault_1g: int
    emulate: int
    flush_own: int
    flush_request: int
    ipi_send: int
    ipi_deliver: int
    access: int
    refill_4k: int
    refill_2m: int
    refill_1g: int
    tlb_entries: int
    tick: int
    noise_per_s: int
    noise_shortest: int
    noise_usual: int
    noise_longest: int
    sched_slice: int
    hop: int
    context_switch: int
    wakeup: int
    relax: int
    ioctl: int
    dirty_word: int
    dirty_bit: int
    clock_mhz: int

    @property
    def saved_ahead(self) -> int:
        """What an access to an SPTE takes less, if the line has been fetched ahead."""
        return self.spte_read - self.spte_ahead

    def refill(self, level: int) -> int:
        """Of a translation of this level."""
        return (self.refill_4k, self.refill_2m, self.refill_1g)[level - 1]

    def host_fault(self, level: int) -> int:
        """Of a host page of this level."""
        return (self.host_fault_4k, self.host_fault_2m, self.host_fault_1g)[level - 1]

    def cycles(self, nanoseconds: int) -> int:
        """At ``clock_mhz``."""
        return nanoseconds * self.clock_mhz // 1000


class CostsError(ValueError):
    """A cost table that is not one; the message names file, line and key."""


def load_costs(path: Path | None = None) -> Costs:
    """The shipped table, with what the file at ``path`` has of its own in its place."""
    shipped = resources.files(__package__).joinpath("costs.toml").read_text()
    values = _parse("costs.toml", shipped)
    if path is not None:
        try:
            text = path.read_text()
        except OSError as error:
            raise CostsError(f"{path}: {error.strerror}; expected a TOML file") from None
        except UnicodeDecodeError:
            raise CostsError(f"{path}: not text; expected a TOML file") from None
        values |= _parse(str(path), text)
    missing = [field.name for field in fields(Costs) if field.name not in values]
    if missing:
        raise CostsError(f"costs.toml: no value for {', '.join(missing)}")
    if not 0 < values["noise_shortest"] < values["noise_usual"] < values["noise_longest"]:
        raise CostsError(f"{path}: noise_shortest < noise_usual < noise_longest, all above 0")
    if not values["spte_ahead"] <= values["spte_read"] <= values["spte_atomic"]:
        raise CostsError(f"{path}: spte_ahead <= spte_read <= spte_atomic")
    return Costs(**values)


def _parse(name: str, text: str) -> dict[str, int]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CostsError(f"{name}: {error}") from None
    known = [field.name for field in fields(Costs)]
    for key, value in table.items():
        line = next(
            (
                n
                for n, row in enumerate(text.splitlines(), 1)
                if row.split("=")[0].strip(" []\t\"'") == key
            ),
            1,
        )
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise CostsError(f"{name}:{line}: no cost is called {key!r}{hint}")
        if type(value) is not int or value < 0:
            raise CostsError(f"{name}:{line}: {key} must be whole nanoseconds, not {value!r}")
    for key in ("clock_mhz", "sched_slice", "noise_per_s"):
        if table.get(key) == 0:
            raise CostsError(f"{name}: {key} must not be 0")
    return table
