"""Questions put ahead of the search, and answered beside it: the same states, in the same order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from toys import CHOICES, EVERYTHING, LOCKING, WITH_RCU, random_program

from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.question import Question, ask
from tdpmmu.scenarios.zoo import entries
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore.engine import COMPILED, PLAIN, Budget, Explorer, explore
from tdpmmu.worlds.explore.progress import check_progress

pytest.importorskip("numba")

from test_compiled import same

from tdpmmu.worlds.explore.fast import ahead, questions
from tdpmmu.worlds.explore.fast.learner import Learner


def compare(make: Callable[[], Machine], **options: Any) -> Explorer:
    """Search without, with questions ahead, and with answers beside."""
    found = [explore(make(), loop=PLAIN, **options)]
    found += [explore(make(), loop=COMPILED, ahead=how, **options) for how in (1, 2)]
    for explorer in found:
        check_progress(explorer)
    for explorer in found[1:]:
        same(found[0], explorer)
    return found[-1]


@pytest.mark.parametrize("kinds", [CHOICES, LOCKING, EVERYTHING, WITH_RCU])
def test_random_programs(kinds: tuple[str, ...]) -> None:
    for seed in range(15):
        options = [{}, {"first": True}, {"reduce": False}, {"budget": Budget(states=40)}][seed % 4]
        compare(random_program(seed, kinds).build, **options)


ZOO = [one for one in entries() if one.id in ("z1", "z4", "z6", "z13", "z20", "z33", "z61")]


@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.id)
def test_zoo(one: Any) -> None:
    for side in (BUG, FIXED):
        made = question(one.id, side)
        if len(explore(made.build().machine, budget=Budget(states=4_000)).order) < 4_000:
            compare(lambda made=made: made.build().machine)  # type: ignore[misc]


def test_it_puts_questions_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others rest on: nearly all questions are put that way, and every state is held."""
    answered = []
    real = questions.Questions._answer

    def answer(self: questions.Questions, asked: list[list[int]]) -> None:
        answered.append(len(asked))
        real(self, asked)

    monkeypatch.setattr(questions.Questions, "_answer", answer)
    found = compare(lambda: question("z1", FIXED).build().machine)
    assert found.compiled is not None
    journal = len(found.compiled.journal) // (ahead.QUESTION + found.compiled.known.chunks)
    assert sum(answered) > journal  # of two searches


def test_tokens() -> None:
    asked: Question = question("z2", BUG)
    one, two = (ask(asked, workers=workers) for workers in (1, 2))
    assert one.tokens == two.tokens != {}
    assert one.sentence() == two.sentence()


def test_what_the_code_raises_ends_both_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Learner.walk
    left = iter(range(60))

    def walk(self: Learner, *question: Any) -> None:
        if next(left, None) is None:
            raise RuntimeError("no more")
        real(self, *question)

    monkeypatch.setattr(Learner, "walk", walk)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no more"):
        explore(question("z1", FIXED).build().machine, loop=COMPILED, ahead=2)
    assert threading.active_count() == before
