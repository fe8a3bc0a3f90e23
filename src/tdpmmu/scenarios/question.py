"""A question put to the explorer, and its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tdpmmu.properties.catalogue import attach
from tdpmmu.scenarios.base import Built
from tdpmmu.worlds.explore.engine import Progress, no_collection
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget, Counterexample, Exploration
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.reductions import Reduce
from tdpmmu.worlds.explore.search import AUTO, explore
from tdpmmu.worlds.explore.storage import Storage

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint

HOLDS, VIOLATED, BUDGET, VACUOUS = "holds", "violated", "budget", "vacuous"
EXIT_CODES = {HOLDS: 0, VIOLATED: 1, BUDGET: 3, VACUOUS: 4}

MEMORY_MODEL = "under sequential consistency; store buffers are not modelled"


@dataclass(frozen=True, slots=True)
class Question:
    """``scenario`` on ``mmu_class``; ``kernel`` and ``patches`` are how the user named it."""

    scenario: Any
    mmu_class: type[Any]
    kernel: str
    patches: tuple[str, ...] = ()
    properties: str = "all"
    scenario_name: str | None = None

    def build(self) -> Built:
        """The machine, watched by the properties that were asked for."""
        built: Built = self.scenario.build(self.mmu_class)
        self.attach(built, self.mmu_class)
        return built

    def title(self) -> str:
        """Scenario, kernel and patches in a line."""
        what = " + ".join([self.kernel, *self.patches])
        return f"{self.scenario_name or self.scenario.name} on {what}"

    def attach(self, built: Built, mmu_class: type[Any]) -> None:
        """Let those properties watch a machine."""
        attach(
            built.machine,
            built.kvm.hardware,
            built.kvm.locks,
            kinds=self.properties,
            flush_before_rcu_unlock=mmu_class.flush_before_rcu_unlock,
        )


@dataclass(slots=True)
class Verdict:
    """What exploration says.  ``status`` is never "holds" for a search that was cut short."""

    question: Question
    status: str
    exploration: Exploration
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def violations(self) -> list[Counterexample]:
        """Broken properties, each with its first counterexample; harm before discipline."""
        return sorted(self.exploration.violations, key=lambda found: found.kind != "harm")

    def sentence(self) -> str:
        """The verdict in words, with what it rests on."""
        result = self.exploration
        if self.status == VIOLATED:
            names = ", ".join(f"{found.prop} ({found.kind})" for found in self.violations)
            how = "stopped" if result.left is None else "searched"
            more = "" if result.exhausted else f"; {how}: {result.stopped}"
            return f"violated: {names}{more}"
        if self.status == HOLDS:
            return "holds for every interleaving of this scenario"
        if self.status == VACUOUS:
            return f"vacuous: nothing is violated, but it never happens that {result.unseen[0]}"
        seen = (
            f"; all within {result.within} turns from the start was seen" if result.within else ""
        )
        return f"nothing found within the budget: {result.stopped}{seen}"

    def rests_on(self) -> list[str]:
        """What was searched, and what was assumed."""
        result = self.exploration
        flush = getattr(self.question.scenario, "flush", "bare-metal")
        return [
            f"{result.states:,} states, {result.transitions:,} turns, depth {result.depth}, "
            f"{result.seconds:.1f} s; liveness {result.liveness}",
            f"{MEMORY_MODEL}; {flush} flushes; vCPUs stay on their CPUs",
            *(f"not relied on, since it is not kept to: {guard}" for guard in result.mistrusted),
        ]

    def _repr_html_(self) -> str:
        """For notebooks: the page that ``--html`` writes."""
        from tdpmmu.scenarios.showing import framed, verdict_report

        return framed(verdict_report(self))


def ask(
    question: Question,
    *,
    budget: Budget | None = None,
    first: bool | str = False,
    reduce: Reduce = True,
    progress: Progress | None = None,
    loop: str = AUTO,
    keeper: Checkpoint | None = None,
    workers: int = 1,
    storage: Storage | None = None,
) -> Verdict:
    """Explore and judge.  The verdict does not depend on how many ``workers`` do it.

    With a ``storage`` that leaves states out it is never "holds".
    """
    built = question.build()
    with no_collection():
        explorer = explore(
            built.machine,
            reduce=reduce,
            budget=budget,
            first=first,
            progress=progress,
            loop=loop,
            keeper=keeper,
            storage=storage,
            workers=workers,
        )
        result = explorer.result
        if question.properties in ("all", "harm"):
            result.liveness = check_progress(explorer)
    return judge(question, result)


def heeded(verdict: Verdict) -> Verdict:
    """The verdict; Ctrl-C if that cut it short, for those who would go on to other things."""
    if verdict.exploration.stopped == INTERRUPTED:
        raise KeyboardInterrupt
    return verdict


def judge(question: Question, result: Exploration) -> Verdict:
    """The verdict on what a search has found, with a token for each broken property."""
    from tdpmmu.scenarios.token import make

    if question.properties == "discipline":
        result.violations = [found for found in result.violations if found.kind != "harm"]
    if result.violations:
        status = VIOLATED
    elif not result.exhausted:
        status = BUDGET
    elif result.unseen:
        status = VACUOUS
    else:
        status = HOLDS
    verdict = Verdict(question, status, result)
    for found in result.violations:
        token = make(
            question.scenario,
            question.kernel,
            question.patches,
            found,
            question.attach,
            scenario_name=question.scenario_name,
        )
        verdict.tokens[found.prop] = token.encode()
    return verdict
