"""Verdicts, for people and for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question, Verdict


def print_verdict(
    verdict: Verdict, stats: bool, unreduced: str | None, explain: bool, width: int
) -> None:
    """The verdict, what it rests on, and the interleavings."""
    result = verdict.exploration
    print(f"{verdict.question.title()}: {verdict.sentence()}")
    for line in verdict.rests_on():
        print(f"  {line}")
    if stats:
        print(f"  shared states {result.shared:,}; positions {result.positions}")
        print(f"  segments run {result.segments_run:,}; replays {result.replays:,}")
        if result.memory:
            each = result.memory["states"] / result.states
            sizes = ", ".join(f"{k} {v / 2**20:.1f} MiB" for k, v in result.memory.items())
            print(f"  compiled loop: {each:.1f} bytes a state; {sizes}")
        if unreduced is not None:
            print(f"  states without reduction: {unreduced}")
    for found in verdict.violations:
        token = verdict.tokens[found.prop]
        if explain:
            from tdpmmu.scenarios.showing import text_of

            print()
            print(text_of(token, width=width))
        else:
            print(f"\n{found.kind}: {found.prop}: {found.sentence}")
        print(f"\nreplay with: tdpmmu explain {token}")


def to_json(verdict: Verdict, unreduced: str | None = None) -> dict[str, Any]:
    """The verdict for machines."""
    import dataclasses

    from tdpmmu.scenarios.question import MEMORY_MODEL

    question, result = verdict.question, verdict.exploration
    return {
        "scenario": question.scenario_name or question.scenario.name,
        "parameters": dataclasses.asdict(question.scenario),
        "kernel": question.kernel,
        "patches": list(question.patches),
        "properties": question.properties,
        "verdict": verdict.status,
        "sentence": verdict.sentence(),
        "memory_model": MEMORY_MODEL,
        "exhausted": result.exhausted,
        "stopped": result.stopped,
        "within": result.within,
        "bound": getattr(result, "bound", None),
        "storage": None if result.left is None else result.left.as_dict(),
        "liveness": result.liveness,
        "states": result.states,
        "states_without_reduction": unreduced,
        "turns": result.transitions,
        "depth": result.depth,
        "seconds": round(result.seconds, 3),
        "never_happened": list(result.unseen),
        "violations": [
            {
                "property": found.prop,
                "kind": found.kind,
                "sentence": found.sentence,
                "operations": found.operations,
                "token": verdict.tokens.get(found.prop),
            }
            for found in verdict.violations
        ],
    }


def exit_code(verdict: Verdict) -> int:
    """The exit code of one verdict."""
    from tdpmmu.scenarios.question import EXIT_CODES, VIOLATED
    from tdpmmu.worlds.explore.exploration import INTERRUPTED

    if verdict.exploration.stopped == INTERRUPTED:
        return 130
    if verdict.status == VIOLATED:
        return 1
    return EXIT_CODES[verdict.status]


def states_without_reduction(question: Question, verdict: Verdict) -> str:
    """The number of states without reduction, where that is feasible."""
    from tdpmmu.scenarios.question import ask
    from tdpmmu.worlds.explore.exploration import Budget

    limit = 300_000
    if verdict.exploration.states > 20_000:
        return "not counted (too many)"
    result = ask(question, budget=Budget(states=limit), reduce=False).exploration
    return f"{result.states:,}" if result.exhausted else f"more than {limit:,}"
