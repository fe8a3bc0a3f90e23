"""``tdpmmu check --all-kernels``: from which kernel to which is a scenario bad?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question
    from tdpmmu.worlds.explore.exploration import Budget


def print_all(
    question_for: Callable[[str], Question], budget: Budget, *, as_json: bool = False
) -> int:
    """Ask every kernel; 0 if the newest holds, 1 if any is violated, 3 if a budget ran out."""
    from tdpmmu.cli.searching import run
    from tdpmmu.cli.verdicts import to_json
    from tdpmmu.scenarios.question import HOLDS, VIOLATED, heeded
    from tdpmmu.versions.registry import KERNELS

    answers: list[dict[str, Any]] = []
    for name in KERNELS:
        try:
            verdict = heeded(run(question_for(name), budget, first=False, reduce=True))
        except UsageError as error:
            answers.append({"kernel": name, "verdict": "impossible", "sentence": str(error)})
        else:
            answers.append(to_json(verdict))
        if not as_json:
            said = answers[-1]
            figures = ""
            if "states" in said:
                figures = f" ({said['states']:,} states, {said['seconds']:.1f} s)"
            print(f"{name:9s} {said['sentence']}{figures}")
    if not any(answer["verdict"] != "impossible" for answer in answers):
        raise UsageError(answers[0]["sentence"])
    statuses = [answer["verdict"] for answer in answers]
    bad = [a["kernel"] for a in answers if a["verdict"] == VIOLATED]
    good = [a["kernel"] for a in answers if a["verdict"] == HOLDS]
    summary = {"first_bad": bad[0] if bad else None, "first_good": None}
    if bad:
        names = [answer["kernel"] for answer in answers]
        later = [name for name in good if names.index(name) > names.index(bad[0])]
        summary["first_good"] = later[0] if later else None
    elif good:
        summary["first_good"] = good[0]
    if as_json:
        import json

        print(json.dumps({"kernels": answers, **summary}, indent=2))
    else:
        print(f"\nfirst bad: {summary['first_bad'] or 'none'}")
        after = " after it" if bad else ""
        print(f"first good{after}: {summary['first_good'] or 'none'}")
    if bad:
        return 1
    return 0 if all(status in (HOLDS, "impossible") for status in statuses) else 3
