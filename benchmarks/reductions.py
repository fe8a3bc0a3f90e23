"""States with all reductions, without each, and without any; what is found must be the same.

    python benchmarks/reductions.py               the whole zoo, both sides
    python benchmarks/reductions.py z1 z10        those
    python benchmarks/reductions.py --random 2000 so many random programs, instead

What is not exhausted within ``--states`` is not compared.  The exit code is 1 if something differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tdpmmu.machine.thread import Machine
from tdpmmu.scenarios.zoo import entries
from tdpmmu.scenarios.zoo.run import BUG, FIXED, question
from tdpmmu.worlds.explore.engine import Budget, explore
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.reductions import ALL, NONE, Reductions

COLUMNS: tuple[Reductions, ...] = (ALL, *(ALL - {one} for one in sorted(ALL)), NONE)
TITLES = ("all", *(f"no {one}" for one in sorted(ALL)), "none")


def compare(name: str, make: Callable[[], Machine], states: int, *, show: bool) -> bool:
    """One line; whether all that were exhausted say the same."""
    cells: list[str] = []
    said = set()
    for reduce in COLUMNS:
        found = explore(make(), reduce=reduce, budget=Budget(states=states))
        check_progress(found)
        result = found.result
        cells.append(f"{result.states:,}" if result.exhausted else "-")
        if result.exhausted:
            broken = sorted(one.prop for one in result.violations)
            said.add((*broken, *result.unseen))
    if show or len(said) > 1:
        different = "" if len(said) < 2 else f"  DIFFERENT: {said}"
        print(f"{name:22s}" + "".join(f"{cell:>11s}" for cell in cells) + different, flush=True)
    return len(said) < 2


def main() -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="zoo entries")
    parser.add_argument("--random", type=int, default=0, help="random programs")
    parser.add_argument("--states", type=int, default=100_000, help="budget of each search")
    arguments = parser.parse_args()
    print(f"{'':22s}" + "".join(f"{title:>11s}" for title in TITLES))
    same = True
    if arguments.random:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        from toys import CHOICES, LOCKING, PLAIN, random_program

        for seed in range(arguments.random):
            program = random_program(seed, (PLAIN, CHOICES, LOCKING)[seed % 3])
            same &= compare(f"seed {seed}", program.build, arguments.states, show=False)
        print(f"{arguments.random} programs" + ("" if same else ": not all the same"))
        return 0 if same else 1
    for one in entries():
        for side in (BUG, FIXED) if not arguments.names or one.id in arguments.names else ():
            asked = question(one.id, side)
            same &= compare(
                f"{one.id} {side}",
                lambda asked=asked: asked.build().machine,  # type: ignore[misc]
                arguments.states,
                show=True,
            )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
