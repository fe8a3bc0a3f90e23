"""Programs of a few lines, in each of which one condition of the reduction matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from test_each_reduction import flipping, idling
from test_rcu_movers import late_section, section_that_is_waited_for
from toys import make_machine, written

from tdpmmu.kernel.locks import RwLock, SpinLock
from tdpmmu.kernel.rcu import Rcu
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import Read, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine


def locks_in_a_ring(kind: type[SpinLock | RwLock], count: int) -> Machine:
    """Each thread takes a lock, and the next one inside it."""
    layout = Layout()
    chunk = layout.chunk("locks")
    ring = [kind(layout, f"lock{i}", chunk=chunk) for i in range(count)]

    async def spins(one: SpinLock, other: SpinLock) -> None:
        await one.lock()
        await other.lock()
        await other.unlock()
        await one.unlock()

    async def writes(one: RwLock, other: RwLock) -> None:
        await one.write_lock()
        await other.write_lock()
        await other.write_unlock()
        await one.write_unlock()

    body: Any = spins if kind is SpinLock else writes
    pairs = [(ring[i], ring[(i + 1) % count]) for i in range(count)]
    return make_machine(layout, [lambda pair=pair: body(*pair) for pair in pairs])


def srcu_section() -> Machine:
    """A reader looks at a flag before its section begins; nobody waits for such, it is assumed."""
    layout = Layout()
    srcu = Rcu(layout, "srcu", 2, chunk=layout.chunk("srcu"), sleepable=True)
    x, y = layout.cell("x", 0), layout.cell("y", 0)

    async def reads() -> None:
        a = await Read(x)
        await srcu.read_lock()
        b = await Read(y)
        await srcu.read_unlock()
        assert a or not b

    async def waits() -> None:
        await Write(x, 1)
        await srcu.synchronize()
        await Write(y, 1)

    return make_machine(layout, [reads, waits])


SPEAKS = "await Say(0)"

UNTIL_SET = ("then", HARM, "x", 0)
"""Nobody may speak before ``x`` is set."""

PROGRAMS: dict[str, Callable[[], Machine]] = {
    # Where a turn ends.
    "two writes": written("await Write(x, 1); await Write(x, 2)", "a = await Read(x)").build,
    "two reads": written(
        "await Write(x, 1); await Write(y, 1)", "a = await Read(x); b = await Read(y)"
    ).build,
    "two sections": written(
        "await spin0.lock(); await Write(g_spin, 1); await spin0.unlock(); "
        "await spin0.lock(); await Write(g_spin, 2); await spin0.unlock()",
        "await spin0.lock(); a = await Read(g_spin); await spin0.unlock()",
    ).build,
    "two sections for write": written(
        "await rw.write_lock(); await Write(g_write, 1); await rw.write_unlock(); "
        "await rw.write_lock(); await Write(g_write, 2); await rw.write_unlock()",
        "await rw.read_lock(); a = await Read(g_write); await rw.read_unlock()",
    ).build,
    "before a section": written(
        "await Write(x, 1); await spin0.lock(); b = await Read(g_spin); await spin0.unlock()",
        "a = await Read(x); await spin0.lock(); await Write(g_spin, 5); await spin0.unlock()",
    ).build,
    "after a section": written(
        "await spin0.lock(); await Write(g_spin, 5); await spin0.unlock(); await Write(x, 1)",
        "await spin0.lock(); a = await Read(g_spin); await spin0.unlock(); b = await Read(x)",
    ).build,
    "after a section for write": written(
        "await rw.write_lock(); await Write(g_write, 5); await rw.write_unlock(); "
        "await Write(x, 1)",
        "await rw.read_lock(); a = await Read(g_write); await rw.read_unlock(); b = await Read(x)",
    ).build,
    # Who waits with a lock keeps it from others.
    "waits in line with a lock": written(
        "await spin0.lock(); await spin1.lock(); await spin1.unlock(); await spin0.unlock()",
        "await spin1.lock(); await WaitUntil(x, 1); await spin1.unlock()",
        "await spin0.lock(); await Write(x, 1); await spin0.unlock()",
    ).build,
    # T0 waits for T1's lock inside a section that T1 waits for, as a callback does.
    "barrier under a lock": written(
        "await rcu.read_lock(); await spin0.lock(); await spin0.unlock(); await rcu.read_unlock()",
        "await spin0.lock(); await rcu.barrier(); await spin0.unlock()",
        "await rcu.call(Reclaim(0, freed))",
    ).build,
    "grace period under a lock": written(
        "await rcu.read_lock(); await spin0.lock(); await spin0.unlock(); await rcu.read_unlock()",
        "await spin0.lock(); await rcu.synchronize(); await spin0.unlock()",
    ).build,
    # Only one of two outcomes has to wait.
    "one outcome waits": written(
        f"a = await Choose('?', (1, 0)); if a: await WaitUntil(x, 1); else: {SPEAKS}",
        "await Write(x, 1)",
        ghost=UNTIL_SET,
    ).build,
    # Two ways come to the same point, and only one of them was clean.
    "two ways to one point": written(
        "a = await Choose('?', (0, 1)); "
        "if a: await rw.assert_held_write(); else: await rw.held_for_write(); a = 0; "
        "for _ in range(9): await rw.held_for_write()",
    ).build,
    # Which turns come first.
    "two owners": written(
        *(f"await spin0.lock(); await Write(g_spin, {k}); await spin0.unlock()" for k in (1, 2)),
    ).build,
    # Locks that nest in more than one order.
    "two spinlocks": lambda: locks_in_a_ring(SpinLock, 2),
    "three spinlocks": lambda: locks_in_a_ring(SpinLock, 3),
    "two rwlocks": lambda: locks_in_a_ring(RwLock, 2),
    # Somebody queues, which the owner sees, and others while the lock is free.
    "joins the queue": written(
        "await rw.write_lock(); a = await rw.needbreak(); await rw.write_unlock()",
        "await rw.read_lock(); await rw.read_unlock()",
        queued=True,
    ).build,
    # Guards: what each of them shuts out, and whom.
    "no lock": written(
        "await spin0.lock(); await Write(g_spin, 1); await Write(g_spin, 2); await spin0.unlock()",
        "a = await Read(g_spin)",
    ).build,
    "a read without the lock": written(
        "await rw.write_lock(); await Write(g_write, 1); await Write(g_write, 2); "
        "await rw.write_unlock()",
        "a = await Read(g_write)",
    ).build,
    "two reads without the lock": written(
        "await rw.write_lock(); await Write(g_published, 1); await rw.write_unlock()",
        "a = await Read(g_published); b = await Read(g_published)",
    ).build,
    "a read without the lock, which may be": written(
        "await rw.write_lock(); await Write(g_published, 1); await Write(g_published, 2); "
        "await rw.write_unlock()",
        "a = await Read(g_published)",
    ).build,
    "a write without the lock": written(
        "await rw.write_lock(); a = await Read(g_published); b = await Read(g_published); "
        "await rw.write_unlock()",
        "await Write(g_published, 1)",
    ).build,
    "a write under the read lock": written(
        "await rw.read_lock(); a = await Read(g_write); b = await Read(g_write)",
        "await rw.read_lock(); await Write(g_write, 1)",
    ).build,
    "rivals": written(
        *["await rw.read_lock(); a = await Read(g_either); await Write(g_either, a + 1)"] * 2,
    ).build,
    "an unexpected rival": written(
        "await rw.read_lock(); a = await Read(g_either); b = await Read(g_either)",
        "await rw.read_lock(); await Write(g_either, 1)",
        mask=1,
    ).build,
    "a rival without the lock": written(
        "await rw.read_lock(); a = await Read(g_either); b = await Read(g_either)",
        "await Write(g_either, 1)",
        mask=1,
    ).build,
    "an owner and a rival without the lock": written(
        "await rw.write_lock(); a = await Read(g_either); b = await Read(g_either)",
        "await Write(g_either, 1)",
    ).build,
    "a spinlock without the read lock": written(
        "await rw.write_lock(); a = await Read(g_both); b = await Read(g_both); "
        "await rw.write_unlock()",
        "await spin1.lock(); await Write(g_both, 1); await spin1.unlock()",
    ).build,
    "the read lock without a spinlock": written(
        "await rw.read_lock(); await spin1.lock(); a = await Read(g_both); b = await Read(g_both)",
        "await rw.read_lock(); await Write(g_both, 1)",
    ).build,
    "a fast page fault": written(
        "await rw.write_lock(); a = await Read(g_fast); b = await Read(g_fast)",
        "await rcu.read_lock(); await Write(g_fast, 1); await rcu.read_unlock()",
    ).build,
    "a list that anybody reads": written(
        "await rw.write_lock(); await Write(g_listed, 1); await Write(g_listed, 2)",
        "a = await Read(g_listed)",
    ).build,
    "a list that anybody reads twice": written(
        "await rw.write_lock(); await Write(g_listed, 1)",
        "a = await Read(g_listed); b = await Read(g_listed)",
    ).build,
    "what never changes": written(
        "a = await Read(g_fixed); b = await Read(g_fixed)", "await Write(g_fixed, 1)"
    ).build,
    # Operations that wait, and that choose.
    "the choice of a moment": written(
        "a = await Choose('?', (0, 1)); await Write(x, 1)", "a = await Read(x)"
    ).build,
    "waits for a moment": written(
        "await WaitUntil(x, 1); await Write(y, 1)",
        "await Write(x, 1); await Write(x, 2); a = await Read(y)",
    ).build,
    "queued for a free lock": written(
        "await rw.read_lock(); await rw.read_unlock(); await Write(x, 1)",
        "await rw.write_lock(); await rw.write_unlock()",
        "a = await Read(x); b = await rw.needbreak()",
        queued=True,
    ).build,
}

TAME: dict[str, Callable[[], Machine]] = {
    "a late section": written(
        "a = await Read(x); await rcu.read_lock(); b = await Read(freed); assert a or not b",
        "await Write(x, 1); await rcu.call(Reclaim(0, freed))",
    ).build,
    "the end of a section": written(
        "await rcu.read_lock(); await Write(y, 1); await spin0.lock(); await rcu.read_unlock(); "
        "await Write(x, 1); await spin0.unlock()",
        "await WaitUntil(y, 1); await rcu.call(Reclaim(0, freed)); a = await Read(freed); "
        "b = await Read(x); assert b or not a",
    ).build,
    "a callback": written(
        "await spin0.lock(); await rcu.call(Reclaim(0, freed)); await Write(x, 1)",
        "a = await Read(freed); b = await Read(x); assert b or not a",
    ).build,
    "a section before a grace period": written(
        "await Write(x, 1); await rcu.synchronize()",
        "await WaitUntil(x, 1); await rcu.read_lock()",
    ).build,
    "a section before a barrier": written(
        "await Write(x, 1); await rcu.barrier()",
        "await WaitUntil(x, 1); await rcu.read_lock(); await rcu.call(Reclaim(0, freed))",
    ).build,
    "grace periods under no lock": lambda: late_section(writer_locks=False),
    "a callback waits for a section": section_that_is_waited_for,
    "srcu": srcu_section,
}
"""With RCU, which frees early with reductions: the same is broken, but not all ends are reached."""

GO_ROUND: dict[str, Callable[[], Machine]] = {
    "goes round alone": idling,
    "go round together": flipping,
    "progress by one way": written(
        "while True:\n        a = await Choose('?', (1, 0))"
        "\n        await (Emit(PROGRESS) if a else rw.held_for_write())"
        "\n        for a in range(9): await rw.held_for_write()"
    ).build,
}
"""What the plain explorer cannot see the end of."""
