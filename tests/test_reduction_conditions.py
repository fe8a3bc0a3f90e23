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
from telling import GO_ROUND, PROGRAMS, TAME
from test_each_reduction import WITHOUT_ONE
from test_explorer import final_states, violated

from tdpmmu.kernel.locks import (
    Acquire,
    NeedBreak,
    Release,
    SpinAcquire,
    SpinRelease,
    Unchanged,
    UnderEitherMode,
    UnderSpinOrWrite,
    UnderWriteLock,
    Visitors,
)
from tdpmmu.kernel.rcu import Barrier, Call, Rcu, ReadLock, ReadUnlock, Snapshot
from tdpmmu.machine import op
from tdpmmu.machine.op import BOTH, LEFT, RIGHT, Choose, Read, WaitUntil, Write
from tdpmmu.worlds.explore import turn, urgency
from tdpmmu.worlds.explore.acts import Acts
from tdpmmu.worlds.explore.engine import Explorer
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.reductions import ALL, NONE, Reductions
from tdpmmu.worlds.explore.reference import explore_histories
from tdpmmu.worlds.explore.search import explore
from tdpmmu.worlds.explore.turn import Turns

MACHINES = PROGRAMS | TAME | GO_ROUND

Outcome = tuple[set[str], set[Any]]


def search(name: str, reduce: Reductions = ALL, loop: str = "plain") -> Explorer:
    """Search a program to the end."""
    found = explore(MACHINES[name](), loop=loop, reduce=reduce)
    assert found.result.exhausted
    check_progress(found)
    return found


def outcome(name: str, found: Explorer) -> Outcome:
    """What can come of it: broken properties, and states in which all have ended."""
    return violated(found), set() if name in TAME else final_states(found)


@cache
def expected(name: str) -> Outcome:
    """The same, as the plain explorer says."""
    if name in GO_ROUND:
        return outcome(name, search(name, NONE))
    plain = explore_histories(MACHINES[name]())
    assert plain.exhausted
    return plain.violated, set() if name in TAME else plain.final


@pytest.mark.parametrize("name", MACHINES)
def test_the_same_with_each_reduction(name: str) -> None:
    for reduce in (ALL, *WITHOUT_ONE, NONE):
        assert outcome(name, search(name, reduce)) == expected(name), sorted(reduce)


@pytest.mark.parametrize("name", MACHINES)
def test_the_same_in_compiled_code(name: str) -> None:
    assert outcome(name, search(name, loop="compiled")) == expected(name)


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
LOCKED = "self.visitors.visit(step)\n        return True"
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
    Without("a fast page fault", UnderEitherMode, "allows", "step.broken.append(self)", "pass"),
    Without("an unexpected rival", UnderEitherMode, "allows", LOCKED, "return True"),
    Without("rivals", UnderEitherMode, "nobody_writes", " and self.visitors.no_rivals(step)", ""),
    Without(
        "a list that anybody reads",
        UnderSpinOrWrite,
        "nobody_looks",
        "self.alive is None or step[self.alive]",
        "False",
    ),
    Without(
        "a list that anybody reads twice",
        UnderSpinOrWrite,
        "nobody_writes",
        "self.allows(step, True)",
        "True",
    ),
    Without(
        "a spinlock without the read lock",
        UnderSpinOrWrite,
        "allows",
        " and self.lock.held_read(step)",
        "",
    ),
    Without(
        "the read lock without a spinlock",
        UnderSpinOrWrite,
        "allows",
        "self.spin.held_write(step) and ",
        "",
    ),
    Without("what never changes", Unchanged, "allows", "step.broken.append(self)", "pass"),
    # RCU.
    *moves("a late section", ReadLock, BOTH, LEFT),
    *moves("the end of a section", ReadUnlock, BOTH, RIGHT),
    Without("a callback waits for a section", ReadUnlock, "mover", "not awaited and ", ""),
    Without(
        "grace periods under no lock",
        Rcu,
        "nobody_else_calls",
        "self.called_under_lock.trusted and ",
        "",
    ),
    Without(
        "grace periods under no lock",
        Rcu,
        "grace_period_starts",
        "not self.may_call(step)",
        "False",
    ),
    Without("srcu", Rcu, "invisible", " and self.unused.trusted", ""),
    Without("srcu", Rcu, "grace_period_starts", "if self.unused is not None", "if False"),
    *moves("a callback", Call, BOTH, RIGHT),
    *moves("barrier under a lock", Call, LEFT),
    *moves("a section before a barrier", Barrier, BOTH, LEFT),
    *moves("a section before a grace period", Snapshot, BOTH, LEFT),
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
    right = expected(without.program)
    monkeypatch.setattr(without.owner, without.method, without.function())
    assert outcome(without.program, search(without.program)) != right


@pytest.mark.parametrize("without", LESS, ids=str)
def test_what_would_take_longer(without: Without, monkeypatch: pytest.MonkeyPatch) -> None:
    right, least = expected(without.program), search(without.program).result
    monkeypatch.setattr(without.owner, without.method, without.function())
    found = search(without.program)
    assert outcome(without.program, found) == right
    assert found.result.states > least.states or found.result.mistrusted > least.mistrusted
