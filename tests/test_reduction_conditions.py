"""What each condition of the reduction is for: a program in which it matters.

All of them end alike with the reduction and without it, one condition is then taken away from the
explorer or from an operation, and the program must notice.  What can come of a program is what the
plain explorer says (:mod:`~tdpmmu.worlds.explore.reference`), which knows nothing of any of this.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from test_each_reduction import WITHOUT_ONE, flipping, idling
from test_explorer import final_states, violated
from toys import make_machine, written

from tdpmmu.kernel.locks import (
    Acquire,
    NeedBreak,
    Release,
    RwLock,
    SpinAcquire,
    SpinLock,
    SpinRelease,
    UnderWriteLock,
    Visitors,
)
from tdpmmu.machine import op
from tdpmmu.machine.ghost import HARM
from tdpmmu.machine.op import BOTH, LEFT, RIGHT, Choose, Read, WaitUntil, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore import turn, urgency
from tdpmmu.worlds.explore.acts import Acts
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.reductions import ALL, NONE
from tdpmmu.worlds.explore.reference import explore_histories
from tdpmmu.worlds.explore.search import explore
from tdpmmu.worlds.explore.turn import Turns

# --- programs -------------------------------------------------------------------------------------


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

Outcome = tuple[set[str], set[Any]]


def outcome(found: Explorer) -> Outcome:
    """What can come of it: broken properties, and states in which all have ended."""
    assert found.result.exhausted
    check_progress(found)
    return violated(found), final_states(found)


@cache
def expected(name: str) -> Outcome:
    """The same, as the plain explorer says."""
    if name in GO_ROUND:
        return outcome(explore(GO_ROUND[name](), loop="plain", reduce=NONE))
    plain = explore_histories(PROGRAMS[name]())
    assert plain.exhausted
    return plain.violated, plain.final


@pytest.mark.parametrize("name", PROGRAMS | GO_ROUND)
def test_the_same_with_each_reduction(name: str) -> None:
    machine = (PROGRAMS | GO_ROUND)[name]
    for reduce in (ALL, *WITHOUT_ONE, NONE):
        found = outcome(explore(machine(), loop="plain", reduce=reduce))
        assert found == expected(name), sorted(reduce)


@pytest.mark.parametrize("name", PROGRAMS | GO_ROUND)
def test_the_same_in_compiled_code(name: str) -> None:
    machine = (PROGRAMS | GO_ROUND)[name]
    assert outcome(explore(machine(), loop="compiled", reduce=ALL)) == expected(name)


# --- one condition taken away ---------------------------------------------------------------------


def changed(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The same function with one piece of its source replaced."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} does not say {old!r} once"
    future = "from __future__ import annotations\n"
    code = compile(future + source.replace(old, new), "<changed>", "exec")
    made: dict[str, Any] = {}
    exec(code, {**vars(op), **function.__globals__}, made)
    return made[function.__name__]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Without:
    """A function with a piece of its source replaced, and the program that must notice.

    ``old`` empty: the whole of a mover.
    """

    program: str
    owner: Any
    method: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.method}: {self.new or f'no {self.old}'}"

    def function(self) -> Callable[..., Any]:
        if not self.old:
            return lambda *_: self.new
        return changed(getattr(self.owner, self.method), self.old, self.new)


def moves(program: str, owner: type[op.Op], *movers: str) -> list[Without]:
    """An operation that moves otherwise."""
    return [Without(program, owner, "mover", "", mover) for mover in movers]


CLOSES = "if after and mover in (NEITHER, RIGHT):"
GOES_ON = "after = after or mover in (NEITHER, LEFT)"
TRUSTED = " or not self.lock.layout.lock_order.trusted"
ROUND = "(early and not any(outcome.round for outcome in outcomes))"
RIVALS = " and not self.mask & step[self.alive] & ~(1 << step.thread)"

UNSOUND = [
    # Turns.
    Without("before a section", Turns, "_run", CLOSES, "if after and mover == NEITHER:"),
    Without("two writes", Turns, "_run", CLOSES, "if after and mover == RIGHT:"),
    Without("barrier under a lock", Turns, "_run", "and deed.may_block", "and False"),
    Without("waits in line with a lock", Turns, "_run", "True, stuck=idle", "True, stuck=True"),
    Without("waits in line with a lock", Turns, "_run", "idle and deed.chooses", "idle"),
    Without("two sections", Turns, "_run", GOES_ON, "after = after or mover == NEITHER"),
    Without("two writes", Turns, "_run", GOES_ON, "after = after or mover == LEFT"),
    Without("two ways to one point", turn, "_shows_the_same", "_shown(parts) ==", "True or"),
    Without("one outcome waits", Turns, "choices", "all(outcome.stuck", "any(outcome.stuck"),
    Without("progress by one way", turn, "_shown", "for event in part.events", "for event in ()"),
    Without("two owners", Turns, "choices", "self.acts.early(", "not self.acts.early("),
    Without("go round together", urgency, "check_urgency", "_may_go_round(explorer)", "False"),
    Without("no lock", Acts, "_note", "raise Mistrust", "Mistrust"),
    Without("two spinlocks", Acts, "_note", "self.leads(inner, outer)", "False"),
    Without(
        "three spinlocks",
        Acts,
        "leads",
        "+= self.inside.get(outer, ())",
        "+= {to} & self.inside.get(outer, set())",
    ),
    # Locks.
    Without("joins the queue", Acquire, "mover", "self.lock.queued or ", "False or "),
    Without("two rwlocks", Acquire, "mover", TRUSTED, ""),
    *moves("two sections for write", Acquire, BOTH, LEFT),
    Without("two sections for write", Release, "mover", "else LEFT", "else BOTH"),
    Without("after a section for write", Release, "mover", "else LEFT", "else RIGHT"),
    Without("queued for a free lock", Release, "mover", "NEITHER if self.lock.queued", "LEFT if 1"),
    *moves("joins the queue", NeedBreak, LEFT, BOTH),
    *moves("two spinlocks", SpinAcquire, RIGHT),
    *moves("two owners", SpinAcquire, BOTH, LEFT),
    *moves("two sections", SpinRelease, BOTH),
    *moves("after a section", SpinRelease, RIGHT),
    # Guards.
    Without(
        "a read without the lock, which may be",
        UnderWriteLock,
        "nobody_looks",
        "not self.lockless_reads and ",
        "",
    ),
    Without("two reads without the lock", UnderWriteLock, "nobody_writes", "return", "return 1 or"),
    Without("a read without the lock", UnderWriteLock, "allows", "return not", "return True or"),
    Without(
        "a write under the read lock", UnderWriteLock, "allows", "not write and (self", "(self"
    ),
    Without("rivals", Visitors, "no_rivals", RIVALS, ""),
    Without("an unexpected rival", Visitors, "no_rivals", "self.trusted and ", ""),
    Without("an unexpected rival", Visitors, "visit", "step.broken.append(self)", "pass"),
    Without("a write under the read lock", op, "reading", "guard.trusted and ", ""),
    Without("no lock", op, "writing", "guard.trusted and ", ""),
    Without("two reads without the lock", op, "reading", " and guard.nobody_writes(step)", ""),
    Without("rivals", op, "writing", " and guard.nobody_looks(step)", ""),
    # Operations that others see.
    *moves("two reads", Read, RIGHT, BOTH, LEFT),
    *moves("two writes", Write, RIGHT, BOTH, LEFT),
    *moves("waits for a moment", WaitUntil, RIGHT, BOTH, LEFT),
]

LESS = [
    Without("goes round alone", Turns, "choices", ROUND, "early"),
    Without("two owners", Acts, "early", "(LEFT, BOTH)", "(LEFT, BOTH, RIGHT)"),
    Without("two writes", Acts, "early", "(LEFT, BOTH)", "(LEFT, BOTH, NEITHER)"),
    *moves("the choice of a moment", Choose, BOTH, LEFT),
]


@pytest.mark.parametrize("without", UNSOUND, ids=str)
def test_what_would_be_wrong(without: Without, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = (PROGRAMS | GO_ROUND)[without.program]
    monkeypatch.setattr(without.owner, without.method, without.function())
    assert outcome(explore(machine(), loop="plain", reduce=ALL)) != expected(without.program)


@pytest.mark.parametrize("without", LESS, ids=str)
def test_what_would_take_longer(without: Without, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = (PROGRAMS | GO_ROUND)[without.program]
    least = explore(machine(), loop="plain", reduce=ALL)
    monkeypatch.setattr(without.owner, without.method, without.function())
    found = explore(machine(), loop="plain", reduce=ALL)
    assert outcome(found) == expected(without.program)
    assert len(found.result.mistrusted) > len(least.result.mistrusted) or (
        found.result.states > least.result.states
    )
