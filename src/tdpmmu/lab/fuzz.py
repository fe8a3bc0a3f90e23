"""Random step lists on a real kernel, in a loop; what diverges is kept, and shrunk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tdpmmu.lab.boot import Recording, boot
from tdpmmu.lab.cases import Case, random_case
from tdpmmu.lab.checks import CHECKS, Check, Outcome, run_checks
from tdpmmu.lab.errors import LabError
from tdpmmu.lab.kernels import Kernel
from tdpmmu.lab.shrink import shrink

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Result:
    """A case that was run; ``where`` is its recording, if it was kept."""

    case: Case
    outcomes: tuple[Outcome, ...]
    where: Path | None = None

    @property
    def bad(self) -> tuple[Outcome, ...]:
        """What is wrong."""
        return tuple(outcome for outcome in self.outcomes if not outcome.good)


@dataclass(slots=True)
class Fuzzer:
    """Runs cases on one kernel, ``per_boot`` of them in each boot."""

    kernel: Kernel
    directory: Path
    per_boot: int = 20
    timeout: float = 300
    checks: tuple[Check, ...] = CHECKS
    say: Say = print

    def fuzz(
        self, mmu: str, seed: int, count: int, shrinks: bool = True, vms: int = 1
    ) -> Iterator[Result]:
        """Results of cases 0 to ``count`` - 1 of a seed, in their order."""
        for start in range(0, count, self.per_boot):
            numbers = range(start, min(count, start + self.per_boot))
            cases = [random_case(seed, number, mmu, vms) for number in numbers]
            for number, result in zip(numbers, self._batch(cases), strict=True):
                if result.bad:
                    yield self._keep(result, self.directory / f"divergence-{number}", shrinks)
                else:
                    yield result

    def _batch(self, cases: list[Case]) -> Iterator[Result]:
        """Run cases in one boot; the recordings of the good ones are gone when the next is asked.

        A guest that does not survive its cases is asked for each of them alone.
        """
        scratch = self.directory / "boot"
        if scratch.exists():
            shutil.rmtree(scratch)
        try:
            recordings = boot(self.kernel, [case.job() for case in cases], scratch, self.timeout)
        except LabError as error:
            if len(cases) == 1:
                yield Result(cases[0], (Outcome("boot", "error", str(error)),), scratch)
                return
            self.say(f"{error}; again, one by one")
            for case in cases:
                yield from self._batch([case])
            return
        for case, recording in zip(cases, recordings, strict=True):
            yield self._checked(case, recording)
        shutil.rmtree(scratch)

    def _checked(self, case: Case, recording: Recording) -> Result:
        outcomes = tuple(run_checks(recording, self.checks))
        return Result(case, outcomes, recording.directory)

    def _keep(self, result: Result, to: Path, shrinks: bool) -> Result:
        """Move a divergence's recording to a directory of its own, and make it smaller there."""
        assert result.where is not None
        if to.exists():
            shutil.rmtree(to)
        shutil.copytree(result.where, to)
        describe(result, self.kernel, to)
        kept = Result(result.case, result.outcomes, to)
        if shrinks:
            self._shrink(kept, to / "shrunk")
        return kept

    def _shrink(self, result: Result, to: Path) -> None:
        """Find a smaller case that is bad in the same way; keep the last one's recording."""
        ways = {(outcome.check, outcome.kind) for outcome in result.bad}
        inner = Fuzzer(
            self.kernel, to.parent / "tries", self.per_boot, self.timeout, self.checks, self.say
        )

        def fails(cases: list[Case]) -> list[bool]:
            verdicts: list[bool] = []
            for tried in inner._batch(cases):
                bad = any((outcome.check, outcome.kind) in ways for outcome in tried.bad)
                if bad and not any(verdicts) and tried.where is not None:
                    if to.exists():
                        shutil.rmtree(to)
                    shutil.copytree(tried.where, to)
                    describe(tried, self.kernel, to)
                verdicts.append(bad)
            return verdicts

        smallest = shrink(result.case, fails, self.per_boot)
        if inner.directory.exists():
            shutil.rmtree(inner.directory)
        if smallest == result.case:
            self.say(f"nothing simpler fails than {smallest.text}")
        else:
            self.say(f"shrunk to {smallest.text}")


def describe(result: Result, kernel: Kernel, to: Path) -> None:
    """Leave beside a recording what is wrong with it, and how to get it again."""
    lines = [result.case.command(kernel.version), f"on {kernel.package}", ""]
    for outcome in result.outcomes:
        verdict = "good" if outcome.good else "BAD"
        lines += [f"{outcome.check}: {verdict}: {outcome.summary}"]
        lines += [f"  {line}" for line in outcome.details]
    (to / "outcome.txt").write_text("\n".join(lines) + "\n")
