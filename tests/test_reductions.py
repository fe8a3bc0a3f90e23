"""What is found does not depend on whether needless orders are left out.

One thing is looked at with allowance: ``no-progress``.  Its fairness is weak: a thread that waits
for a lock, which is free now and then, may starve.  Without reduction whoever goes round holds the
lock at some moment that can be told from others, so it may starve the host; with reduction it does
not.  Real rwlocks and spinlocks are queues, which is what reduction has it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from mutations import HOST, MUTATIONS, PAIR, TINY, Mutation, TakesLocksInWrongOrder
from toys import make_machine

from tdpmmu.kernel.locks import SpinLock
from tdpmmu.machine.state import Layout
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.question import HOLDS, VIOLATED, Question, Verdict, ask
from tdpmmu.scenarios.thread_table import Row, rows
from tdpmmu.versions.registry import KERNELS, PATCHES, apply
from tdpmmu.worlds.explore.exploration import Budget
from tdpmmu.worlds.explore.search import explore

BUDGET = Budget(states=1_500_000)

STARVATION = {"no-progress"}


def broken(verdict: Verdict) -> set[str]:
    return {found.prop for found in verdict.violations}


def compare(question: Question, *, starves: bool = False) -> tuple[Verdict, Verdict]:
    """Ask with reduction and without; both must say the same, starvation aside."""
    reduced = ask(question, budget=BUDGET)
    full = ask(question, budget=BUDGET, reduce=False)
    assert reduced.exploration.exhausted
    assert full.exploration.exhausted
    missed = broken(full) - broken(reduced)
    assert missed <= (STARVATION if starves else set()), "reduction hides something"
    assert broken(reduced) <= broken(full), "reduction invents something"
    if not missed:
        assert reduced.status == full.status
    assert reduced.exploration.states <= full.exploration.states
    return reduced, full


# --- the table of the review thread, shrunk ---


def shrunk(row: Row) -> NxRecovery:
    """The smallest scenario with the row's roots, legacy pages, kind of flush and victim.

    5.12 needs three levels where the SMM root's vCPU maps: with two its pool of page tables is too
    small.  Without the unmap, which multiplies states by thirty; that has a test of its own.
    """
    scenario = row.scenario
    if scenario.victim == "legacy":
        return replace(scenario, levels=2, gfns=1, vcpus=0)
    levels = 3 if scenario.roots == 2 and row.kernel != "6.18" else 2
    legacy = 0 if levels == 3 else scenario.legacy
    return replace(scenario, levels=levels, gfns=1, unmap=False, legacy=legacy)


def table() -> list[Row]:
    """Rows that are still different when shrunk."""
    found: dict[object, Row] = {}
    for row in rows():
        scenario = shrunk(row)
        found.setdefault((row.kernel, row.patches, scenario), replace(row, scenario=scenario))
    return list(found.values())


def name(row: Row) -> str:
    return f"{'+'.join([row.kernel, *row.patches])} {row.configuration()}"


# A walk that yields again at once needs no other thread's help to go on for ever: in three levels
# that is too many states without reduction.  So are the two roots of the read-lock variants.
TOO_MANY = ("no-forward-progress", "read-lock-freeze", "read-lock-cmpxchg")
TABLE = [
    row
    for row in table()
    if not (row.scenario.levels == 3 and any(patch in TOO_MANY for patch in row.patches))
]


@pytest.mark.parametrize("row", TABLE, ids=name)
def test_rows_of_the_table(row: Row) -> None:
    # A retried fault can starve recovery of tdp_mmu_pages_lock where tables are linked under it.
    compare(row.question(), starves="read-lock-freeze" in row.patches)


@pytest.mark.parametrize(
    "patches", sorted({row.patches for row in rows() if row.kernel == "5.12-rc4"})
)
@pytest.mark.parametrize("flush", ["bare-metal", "ranged"])
def test_two_roots_and_an_unmap_without_faults(patches: tuple[str, ...], flush: str) -> None:
    scenario = replace(HOST, roots=2, legacy=1, flush=flush)
    mmu_class = apply(KERNELS["5.12-rc4"], *(PATCHES[patch] for patch in patches))
    compare(Question(scenario, mmu_class, "5.12-rc4", patches), starves=True)


@pytest.mark.parametrize("kernel", ["5.12", "6.18"])
def test_an_unmap_and_faults(kernel: str) -> None:
    reduced, _ = compare(Question(TINY, KERNELS[kernel], kernel), starves=True)
    assert reduced.status == HOLDS


@pytest.mark.parametrize("kernel", ["5.12", "6.18"])
def test_queued_locks(kernel: str) -> None:
    scenario = replace(TINY, unmap=False, resched="contended")
    compare(Question(scenario, KERNELS[kernel], kernel))


# --- mutations ---


def mutation_name(mutation: Mutation) -> str:
    return f"{mutation.cls.__name__}-{mutation.kernel}-{'+'.join(sorted(mutation.breaks))}"


# Two vCPUs that fault, under the read lock: more than the budget without reduction.
FEASIBLE = [mutation for mutation in MUTATIONS if mutation.scenario != PAIR]


@pytest.mark.parametrize("mutation", FEASIBLE, ids=mutation_name)
def test_mutations(mutation: Mutation) -> None:
    scenario = mutation.scenario
    reduced, full = compare(mutation.question(), starves=scenario.unmap and scenario.vcpus > 0)
    assert broken(reduced) == mutation.breaks
    assert mutation.breaks <= broken(full)


def test_what_is_too_big_without_reduction_is_found_without_it_too() -> None:
    for mutation in MUTATIONS:
        if mutation not in FEASIBLE:
            full = ask(mutation.question(), budget=BUDGET, reduce=False)
            assert full.status == VIOLATED
            assert broken(full) == mutation.breaks


# --- locks taken in different orders ---


NESTED = (
    "acquisitions are taken to move right past everything, and so two in a row are one step; "
    "a deadlock needs another thread between them"
)


def test_a_deadlock_of_two_locks() -> None:
    assert deadlocks(reduce=True)


def test_a_deadlock_of_two_locks_without_reduction() -> None:
    assert deadlocks(reduce=False)


def deadlocks(*, reduce: bool) -> bool:
    """Two threads that take two locks, each in its own order."""
    layout = Layout()
    chunk = layout.chunk("locks")
    a, b = (SpinLock(layout, name, chunk=chunk) for name in "ab")

    async def body(one: SpinLock, other: SpinLock) -> None:
        await one.lock()
        await other.lock()
        await other.unlock()
        await one.unlock()

    machine = make_machine(layout, [lambda: body(a, b), lambda: body(b, a)])
    found = explore(machine, reduce=reduce).result.violations
    return any(one.prop == "deadlock" for one in found)


def test_a_deadlock_of_mmu_lock_and_the_pages_lock() -> None:
    # Recovery reads its list under both; the host takes them the other way round.  That the order
    # is wrong is found either way.
    question = Mutation(TakesLocksInWrongOrder, "6.18", HOST, frozenset()).question()
    reduced = ask(question, budget=BUDGET)
    full = ask(question, budget=BUDGET, reduce=False)
    assert "lock-context" in broken(reduced)
    assert broken(full) == {"lock-context", "deadlock"}
    assert broken(reduced) == broken(full)
