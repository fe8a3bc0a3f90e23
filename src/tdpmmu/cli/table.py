"""``tdpmmu check`` without arguments: the review thread as a table of verdicts."""

from __future__ import annotations

import json
import time
from typing import Any

from tdpmmu.cli.tasks import run_tasks
from tdpmmu.cli.verdicts import to_json
from tdpmmu.distribute.engines import PROCESSES
from tdpmmu.scenarios.question import HOLDS, VIOLATED, ask
from tdpmmu.scenarios.thread_table import Row, rows
from tdpmmu.worlds.explore.exploration import Budget


def _answer(task: tuple[Row, Budget]) -> dict[str, Any]:
    row, budget = task
    verdict = ask(row.question(), budget=budget)
    answer = to_json(verdict)
    answer["expected"] = row.expected
    answer["configuration"] = row.configuration()
    answer["why"] = row.why
    return answer


def print_table(budget: Budget, as_json: bool) -> int:
    """Explore every row, on all cores; 0 if each expectation is met by exploration."""
    began = time.monotonic()
    tasks = [(row, budget) for row in rows()]
    answers = run_tasks(_answer, tasks, "questions", engine=PROCESSES, workers=0)
    if as_json:
        print(json.dumps(answers, indent=2))
    else:
        _print(answers, time.monotonic() - began)
    return 1 if any(_surprises(answer) for answer in answers) else 0


def _surprises(answer: dict[str, Any]) -> bool:
    expected = answer["expected"]
    if answer["verdict"] not in (HOLDS, VIOLATED):
        return True
    return expected is not None and answer["verdict"] != expected


def _merged(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out a ranged row which says the same as the bare-metal row before it."""
    shown: list[dict[str, Any]] = []
    for answer in answers:
        if shown and answer["configuration"] == shown[-1]["configuration"] + " ranged":
            same = answer["kernel"] == shown[-1]["kernel"] and (
                answer["patches"] == shown[-1]["patches"]
            )
            if same and _properties(answer) == _properties(shown[-1]):
                shown[-1] = dict(shown[-1], both_flushes=True)
                continue
        shown.append(answer)
    return shown


def _properties(answer: dict[str, Any]) -> list[str]:
    return [found["property"] for found in answer["violations"]]


def _print(answers: list[dict[str, Any]], seconds: float) -> None:
    print("kernel + patches; configuration; verdict, states, seconds")
    before = ""
    for answer in _merged(answers):
        name = " + ".join([answer["kernel"], *answer["patches"]])
        if name != before:
            print(f"\n{name}")
            before = name
        expected = answer["expected"]
        mark = "open" if expected is None else "as expected"
        if _surprises(answer):
            mark = f"NOT as expected ({expected or 'an exhaustive verdict'})"
        both = "  both flush modes" if answer.get("both_flushes") else ""
        print(
            f"  {answer['configuration']:32s} {answer['verdict']:9s} "
            f"{answer['states']:>8,} {answer['seconds']:>6.1f} s  {mark}{both}"
        )
        for found in answer["violations"]:
            print(f"      {found['kind']}: {found['property']}: {found['sentence']}")
        if answer["why"]:
            print(f"      ({answer['why']})")
    surprises = sum(_surprises(answer) for answer in answers)
    expected = sum(answer["expected"] is not None for answer in answers)
    print(
        f"\n{len(answers)} questions in {seconds:.0f} s: {expected - surprises} of {expected} "
        "expected verdicts met by exploration; the rest are open questions"
    )
    print("under sequential consistency; vCPUs stay on their CPUs; see docs/the-thread.md")
