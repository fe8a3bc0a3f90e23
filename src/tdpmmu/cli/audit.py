"""``tdpmmu flushes`` and ``tdpmmu audit``: is this needed?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question
    from tdpmmu.scenarios.removal import Site

NEEDED, NEEDLESS, NOT_REACHED, UNKNOWN = "needed", "needless here", "not reached", "unknown"

Scenario = Annotated[str, typer.Argument(help="nx-recovery, script, or a FILE.py.")]
Kernel = Annotated[str, typer.Option("--kernel", "-k", help="See 'tdpmmu kernels'.")]
Patches = Annotated[list[str] | None, typer.Option("--patch", "-p", help="As for check.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter of the scenario, NAME=VALUE.")
]
Seconds = Annotated[float, typer.Option("--budget", help="Seconds for each site; 0: no limit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of the scenario without one thing."""

    patch: str
    what: str
    answer: str
    why: str
    states: int
    seconds: float
    token: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line says, which worker processes can be told."""

    scenario: str
    kernel: str
    patches: tuple[str, ...]
    settings: tuple[str, ...]

    def question(self, *more: str) -> Question:
        """The question; ``more`` are patches, too."""
        from tdpmmu.cli.questions import make_question

        patches = (*self.patches, *more)
        return make_question(self.scenario, self.kernel, patches, {}, "all", self.settings)


def flushes(
    scenario: Scenario,
    kernel: Kernel = "6.18",
    patch: Patches = None,
    settings: Settings = None,
    budget: Seconds = 60,
    as_json: AsJson = False,
) -> None:
    """Take each TLB flush away in turn: needed, with a counterexample, or needless here.

    Example: tdpmmu flushes nx-recovery --kernel 6.12 --set levels=2

    Exit codes: 0 every flush has an answer, 3 some is unknown within the budget, 2 bad usage.
    """
    raise typer.Exit(_audit(("no-flush",), scenario, kernel, patch, settings, budget, as_json))


def audit(
    scenario: Scenario,
    kernel: Kernel = "6.18",
    patch: Patches = None,
    settings: Settings = None,
    budget: Seconds = 60,
    as_json: AsJson = False,
) -> None:
    """The same for every flush, lock for write, RCU and spinlock section, and no-yield zap.

    Example: tdpmmu audit nx-recovery --kernel 6.18 --set levels=2 --set roots=1

    Exit codes: 0 every site has an answer, 3 some is unknown within the budget, 2 bad usage.
    """
    from tdpmmu.scenarios.removal import KINDS

    raise typer.Exit(_audit(tuple(KINDS), scenario, kernel, patch, settings, budget, as_json))


def _audit(
    kinds: tuple[str, ...],
    scenario: str,
    kernel: str,
    patch: list[str] | None,
    settings: list[str] | None,
    budget: float,
    as_json: bool,
) -> int:
    import json

    from tdpmmu.cli.errors import UsageError
    from tdpmmu.cli.limits import check_not_negative
    from tdpmmu.cli.searching import run
    from tdpmmu.cli.tasks import run_tasks
    from tdpmmu.distribute.engines import PROCESSES
    from tdpmmu.scenarios.question import HOLDS
    from tdpmmu.scenarios.removal import sites
    from tdpmmu.worlds.explore.exploration import Budget

    check_not_negative("--budget", budget, "seconds that are not negative; 0: no limit")
    asked = _Asked(scenario, kernel, tuple(patch or ()), tuple(settings or ()))
    question = asked.question()
    verdict = run(question, Budget(), first=False, reduce=True)
    if verdict.status != HOLDS:
        raise UsageError(f"{scenario} on {kernel}: {verdict.sentence()}; audit what holds")
    places = sorted(sites(question.mmu_class, kinds), key=lambda site: kinds.index(site.kind))
    functions = _reached(question)
    todo = [site for site in places if site.function in functions]
    tasks = [(site, asked, budget) for site in todo]
    answers = run_tasks(_ask, tasks, "sites", engine=PROCESSES, workers=0)
    found = {finding.patch: finding for finding in answers}
    findings = [
        found.get(site.patch) or Finding(site.patch, _what(site), NOT_REACHED, "", 0, 0.0, "")
        for site in places
    ]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings, kernel, scenario)
    return 3 if any(finding.answer == UNKNOWN for finding in findings) else 0


def _what(site: Site) -> str:
    from tdpmmu.scenarios.removal import KINDS

    return KINDS[site.kind]


def _reached(question: Question) -> set[str]:
    """The functions that some thread is in at some position: what the scenario gets to."""
    from tdpmmu.worlds.explore.search import explore

    explorer = explore(question.build().machine)
    reached: set[str] = set()
    for positions in explorer.positions:
        for position in range(len(positions)):
            reached.update(function for function, _, _ in positions.line(position))
    return reached


def _ask(task: tuple[Site, _Asked, float]) -> Finding:
    from tdpmmu.scenarios.question import HOLDS, VIOLATED, ask, heeded
    from tdpmmu.worlds.explore.exploration import Budget

    site, asked, budget = task
    try:
        verdict = heeded(ask(asked.question(site.patch), budget=Budget(0, budget, 0)))
    except Exception as error:
        return Finding(site.patch, _what(site), UNKNOWN, f"{error}", 0, 0.0, "")
    result = verdict.exploration
    answer, why, token = UNKNOWN, verdict.sentence(), ""
    if verdict.status == VIOLATED:
        worst = verdict.violations[0]
        names = ", ".join(f"{found.prop} ({found.kind})" for found in verdict.violations)
        answer, why, token = NEEDED, names, verdict.tokens[worst.prop]
    elif verdict.status == HOLDS:
        answer, why = NEEDLESS, ""
    return Finding(
        site.patch, _what(site), answer, why, result.states, round(result.seconds, 1), token
    )


def _print(findings: list[Finding], kernel: str, scenario: str) -> None:
    print(f"{scenario} on {kernel}, with one thing taken away")
    before = ""
    for finding in findings:
        if finding.answer == NOT_REACHED:
            continue
        if finding.what != before:
            print(f"\n{finding.what}")
            before = finding.what
        _, _, place = finding.patch.partition("@")
        print(f"  {place:52s} {finding.answer:14s} {finding.states:>9,} states")
        if finding.why:
            print(f"      {finding.why}")
        if finding.token:
            print(f"      tdpmmu explain {finding.token}")
    counts = dict.fromkeys((NEEDED, NEEDLESS, UNKNOWN, NOT_REACHED), 0)
    for finding in findings:
        counts[finding.answer] += 1
    print("\n" + ", ".join(f"{number} {answer}" for answer, number in counts.items()))
    print("'needless here' is said of this scenario alone")
