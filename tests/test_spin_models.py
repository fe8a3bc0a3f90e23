"""The Promela models of the benchmark say what the explorer says, on both sides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from spin import running
from spin.questions import Question, nx_recovery, zoo

QUICK = "-O0"
"""Here the compiler takes longer than the search."""

QUESTIONS: dict[str, tuple[str, Callable[..., Question]]] = {
    "nx harm": (
        "generation",
        lambda fixed, *more: nx_recovery("S", fixed, "NO_FLUSH_OWED", *more),
    ),
    "nx discipline": (
        "hx>=8",
        lambda fixed, *more: nx_recovery("S", fixed, *more, prop="flush-owed"),
    ),
    "z2": ("held[hv]", lambda fixed, *more: zoo("z2", fixed, *more)),
    "z36": ("spte", lambda fixed, *more: zoo("z36", fixed, *more)),
}
"""With a word of the assertion that fails on the side with the bug."""

pytestmark = pytest.mark.skipif(bool(running.missing()), reason="needs spin and gcc")


@pytest.mark.parametrize(
    ("name", "tlb"),
    [
        ("nx harm", "MAY_HOLD"),
        ("nx harm", "CHOICES"),
        ("nx discipline", "CHOICES"),
        ("z2", "MAY_HOLD"),
        ("z2", "CHOICES"),
        ("z36", "CHOICES"),
    ],
)
def test_the_same_verdict(name: str, tlb: str) -> None:
    word, make = QUESTIONS[name]
    for fixed in (False, True):
        question = make(fixed, tlb, "TURNS")
        ours = running.tdpmmu(question, "--no-explain")
        theirs = running.spin(question, flags=QUICK)
        assert ours.verdict == theirs.verdict == ("holds" if fixed else "violated")
        assert (question.prop in ours.properties) != fixed
        if not fixed:
            failed = theirs.said.split("assertion violated")[1].splitlines()[0]
            assert word in failed


def test_an_operation_at_a_time_says_the_same() -> None:
    for fixed in (False, True):
        question = zoo("z36", fixed, "MAY_HOLD")
        assert (
            running.spin(question, flags=QUICK).verdict
            == running.tdpmmu(question, "--no-explain").verdict
        )


def test_a_run_out_of_memory_is_not_finished() -> None:
    question = nx_recovery("M", True, "MAY_HOLD", "TURNS")
    assert running.spin(question, memory=100, flags=QUICK).verdict == running.UNFINISHED


def test_the_bug_is_found_behind_a_second_page() -> None:
    question = nx_recovery("M", False, "MAY_HOLD", "TURNS", "NO_FLUSH_OWED")
    assert running.spin(question, flags=QUICK).verdict == running.VIOLATED
