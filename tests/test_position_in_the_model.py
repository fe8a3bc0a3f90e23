"""Positions of the model: no await inside a call; outer frames that have not moved."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import tdpmmu


def calls_with_awaits(source: str) -> list[int]:
    """Lines of calls that await something among their arguments."""
    return [
        call.lineno
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]
        if any(isinstance(inner, ast.Await) for inner in ast.walk(argument))
    ]


def test_no_line_of_the_model_awaits_inside_a_call() -> None:
    assert calls_with_awaits("async def f():\n  g(1)\n  g(x=[await h()])") == [3]
    rooms = ["kernel", "mmu", "versions", "arch", "scenarios"]
    package = Path(tdpmmu.__file__).parent
    files = [path for room in rooms for path in (package / room).rglob("*.py")]
    assert len(files) > 100
    found = {path.name: calls_with_awaits(path.read_text()) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("stale", [False, True])
def test_frames_that_have_not_moved(stale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of outer frames is what they would say again; if it is not, that is noticed."""
    from tdpmmu.scenarios.zoo.run import BUG, question
    from tdpmmu.worlds.explore.engine import PLAIN, Budget, explore
    from tdpmmu.worlds.explore.position import table
    from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition

    real = table.position_key
    kept = wrong = 0

    def both(coro: Any, op: Any, outer: Any = None) -> Any:
        nonlocal kept, wrong
        if stale and outer:
            outer[0] = (*outer[0][:2], (*outer[0][2], "stale"))
        kept += bool(outer)
        key = real(coro, op, outer)
        wrong += key != real(coro, op)
        return key

    monkeypatch.setattr(table, "position_key", both)
    try:
        explore(question("z1", BUG).build().machine, loop=PLAIN, budget=Budget(states=300))
    except UnsupportedPosition:
        assert stale
    assert kept > 50
    assert bool(wrong) is stale
