"""Positions of the model: no await inside a call."""

from __future__ import annotations

import ast
from pathlib import Path

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
