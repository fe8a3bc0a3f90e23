"""States with all reductions, without each, and without any; what is found must be the same.

    python benchmarks/reductions.py               the whole zoo, both sides
    python benchmarks/reductions.py z1 z10        those
    python benchmarks/reductions.py --random 2000 --from 7000    random programs, instead

What is not exhausted within ``--states`` (a dash) is not compared; only what breaks in it must
break in the others.  The exit code is 1 if something differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.zoo import entries
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore.exploration import Budget
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.reductions import ALL, NONE, Reductions
from tdpmmu.worlds.explore.search import AUTO, LOOPS, explore

COLUMNS: tuple[Reductions, ...] = (ALL, *(ALL - {one} for one in sorted(ALL)), NONE)
TITLES = ("all", *(f"no {one}" for one in sorted(ALL)), "none")


class Comparison:
    """What was compared so far: how many columns were exhausted, how often, and what differed."""

    def __init__(self, states: int, loop: str) -> None:
        self.budget = Budget(states=states)
        self.loop = loop
        self.exhausted: Counter[int] = Counter()
        self.different: list[str] = []

    def compare(self, name: str, make: Callable[[], Machine], *, show: bool) -> None:
        """One line; all that were exhausted have to say the same."""
        began = time.monotonic()
        cells: list[str] = []
        said: set[tuple[str, ...]] = set()
        partly: set[str] = set()
        for reduce in COLUMNS:
            found = explore(make(), reduce=reduce, budget=self.budget, loop=self.loop)
            check_progress(found)
            result = found.result
            broken = sorted(one.prop for one in result.violations)
            cells.append(f"{result.states:,}" if result.exhausted else "-")
            if result.exhausted:
                said.add((*broken, *result.unseen))
            else:
                partly.update(broken)
        self.exhausted[len(COLUMNS) - cells.count("-")] += 1
        more = partly - set(next(iter(said))) if said else set()
        if len(said) > 1 or more:
            self.different.append(name)
        if show or len(said) > 1 or more:
            remark = f"  DIFFERENT: {said} {more}" if len(said) > 1 or more else ""
            line = f"{name:22s}" + "".join(f"{cell:>11s}" for cell in cells)
            print(f"{line}{time.monotonic() - began:8.0f} s{remark}", flush=True)

    def summary(self) -> str:
        """How many were exhausted in how many columns, and what differed."""
        counts = ", ".join(
            f"{self.exhausted[columns]} exhausted in {columns} of {len(COLUMNS)}"
            for columns in sorted(self.exhausted, reverse=True)
        )
        differ = "different: " + ", ".join(self.different) if self.different else "no difference"
        return f"{self.exhausted.total()} compared: {counts}; {differ}"


def main() -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="zoo entries")
    parser.add_argument("--random", type=int, default=0, help="random programs")
    parser.add_argument("--from", type=int, default=0, dest="first", help="seed of the first one")
    parser.add_argument("--states", type=int, default=100_000, help="budget of each search")
    parser.add_argument("--loop", choices=LOOPS, default=AUTO)
    arguments = parser.parse_args()
    print(f"{'':22s}" + "".join(f"{title:>11s}" for title in TITLES))
    comparison = Comparison(arguments.states, arguments.loop)
    if arguments.random:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        from toys import CHOICES, LOCKING, PLAIN, random_program, random_rounds

        for seed in range(arguments.first, arguments.first + arguments.random):
            kind = seed % 4
            if kind == 3:
                comparison.compare(f"seed {seed}", partial(random_rounds, seed), show=False)
            else:
                program = random_program(seed, (PLAIN, CHOICES, LOCKING)[kind])
                comparison.compare(f"seed {seed}", program.build, show=False)
    else:
        for one in entries():
            for side in (BUG, FIXED) if not arguments.names or one.id in arguments.names else ():
                build = question(one.id, side).build
                comparison.compare(
                    f"{one.id} {side}", lambda build=build: build().machine, show=True
                )
    print(comparison.summary())
    return 1 if comparison.different else 0


if __name__ == "__main__":
    sys.exit(main())
