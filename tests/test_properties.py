"""Every property is broken by a kernel that is broken on purpose, and by no other."""

from __future__ import annotations

import pytest
from mutations import MUTATIONS, Mutation

from tdpmmu.properties.catalogue import GRAPH, WATCHERS
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.question import HOLDS, VIOLATED, Question, ask
from tdpmmu.scenarios.token import decode, reproduce
from tdpmmu.scenarios.zoo import entries
from tdpmmu.versions.registry import KERNELS
from tdpmmu.worlds.explore.exploration import Budget

BUDGET = Budget(states=200_000)


def name(mutation: Mutation) -> str:
    return f"{mutation.cls.__name__}-{mutation.kernel}-{'+'.join(sorted(mutation.breaks))}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name)
def test_a_mutation_breaks_what_it_should_and_nothing_else(mutation: Mutation) -> None:
    verdict = ask(mutation.question(), budget=BUDGET)
    assert verdict.status == VIOLATED
    assert {found.prop for found in verdict.violations} == mutation.breaks
    assert set(verdict.tokens) == mutation.breaks
    assert verdict.exploration.exhausted


def test_every_property_is_broken_by_some_mutation() -> None:
    known = {prop.name for prop in (*WATCHERS, *GRAPH)}
    broken = {prop for mutation in MUTATIONS for prop in mutation.breaks}
    assert broken | {entry.prop for entry in entries()} == known


def test_almost_every_property_is_broken_alone_by_some_mutation() -> None:
    # A table whose flush comes too late for RCU is freed at that moment: the harm is never far.
    alone = {
        prop for mutation in MUTATIONS if len(mutation.breaks) == 1 for prop in mutation.breaks
    }
    known = {prop for mutation in MUTATIONS for prop in mutation.breaks}
    assert known - alone == {"flush-before-rcu-unlock"}


def test_labels_tell_harm_from_discipline() -> None:
    kinds = {prop.name: prop.kind for prop in (*WATCHERS, *GRAPH)}
    for mutation in MUTATIONS:
        if len(mutation.breaks) > 1:
            verdict = ask(mutation.question(), budget=BUDGET)
            order = [kinds[found.prop] for found in verdict.violations]
            assert order == sorted(order, key=lambda kind: kind != "harm")
            assert all(kinds[found.prop] == found.kind for found in verdict.violations)


@pytest.mark.parametrize("kinds", ["harm", "discipline"])
def test_a_check_runs_with_either_set_of_properties(kinds: str) -> None:
    mutation = next(m for m in MUTATIONS if m.breaks == {"stale-translation", "flush-owed"})
    asked = mutation.question()
    verdict = ask(
        Question(asked.scenario, asked.mmu_class, asked.kernel, asked.patches, properties=kinds),
        budget=BUDGET,
    )
    wanted = {"harm": {"stale-translation"}, "discipline": {"flush-owed"}}
    assert {found.prop for found in verdict.violations} == wanted[kinds]


@pytest.mark.parametrize("mutation", MUTATIONS[::4], ids=name)
def test_tokens_of_mutations_replay_to_the_same_sentence(mutation: Mutation) -> None:
    asked = mutation.question()
    verdict = ask(asked, budget=BUDGET)
    for found in verdict.violations:
        done = reproduce(decode(verdict.tokens[found.prop]), asked.attach)
        assert done.sentence == found.sentence


@pytest.mark.parametrize("kernel", ["5.12", "6.18"])
@pytest.mark.parametrize("roots", [1, 2])
def test_the_kernels_themselves_hold(kernel: str, roots: int) -> None:
    verdict = ask(Question(NxRecovery(roots=roots), KERNELS[kernel], kernel), budget=BUDGET)
    assert verdict.status == HOLDS
    assert verdict.exploration.exhausted
    assert not verdict.exploration.unseen
    assert verdict.exploration.liveness == "checked"
