"""The plain loop and the compiled one, side by side: writes docs/performance.md.

    python benchmarks/performance.py               all sizes, three pairs of runs each
    python benchmarks/performance.py --pairs 1     quicker, and less to be relied on

Every run is a process of its own; the two loops take turns, so that both meet the same machine.
Times are CPU seconds of that process, medians over the pairs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median
from typing import Any

from check import SIZES

XL = "--fanout 4 --vcpus 3 --nx-pages 3 --legacy 3 --gfns 4 --faults 2"
XL_STATES = 4_000_000
UNREDUCED = "S unreduced"
PATCHES = ("flush-on-nx-zap", "flush-when-yielding")
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"


class Watch:
    """CPU seconds spent inside a method."""

    def __init__(self, cls: type, name: str) -> None:
        self.seconds = 0.0
        real = getattr(cls, name)

        def timed(*args: Any) -> Any:
            began = time.process_time()
            try:
                return real(*args)
            finally:
                self.seconds += time.process_time() - began

        setattr(cls, name, timed)


def measure(size: str, loop: str) -> dict[str, Any]:
    """One search in this process."""
    from tdpmmu.cli.questions import make_question
    from tdpmmu.scenarios.question import ask
    from tdpmmu.worlds.explore.engine import Explorer
    from tdpmmu.worlds.explore.exploration import Budget
    from tdpmmu.worlds.explore.turn import Turns

    words = (XL if size == "XL" else SIZES[size.split()[0]]).replace("--", "").split()
    names = [word.replace("-", "_") for word in words[::2]]
    parameters = dict(zip(names, map(int, words[1::2]), strict=True))
    question = make_question("nx-recovery", "5.12-rc4", PATCHES, parameters, "all")
    search, code = Watch(Explorer, "_search"), Watch(Turns, "choices")
    table = Watch(Explorer, "_miss")
    kept: list[Any] = []
    if loop == "compiled":
        from tdpmmu.worlds.explore.fast.loop import CompiledLoop

        # What is compiled is kept; loading it is part of the time to the verdict, not of the loop.
        ask(make_question("nx-recovery", "5.12", (), {"roots": 1, "legacy": 0}, "all"), loop=loop)
        search.seconds = 0.0
        code = Watch(CompiledLoop, "_put")
        run = CompiledLoop.run

        def keep(self: CompiledLoop, began: float) -> None:
            kept.append(self)
            run(self, began)

        CompiledLoop.run = keep  # type: ignore[method-assign]
    budget = Budget(states=XL_STATES if size == "XL" else 0)
    verdict = ask(question, loop=loop, budget=budget, reduce=size != UNREDUCED)
    found = verdict.exploration
    used = found.memory.get("states", 0)
    alone = again(kept[-1]) if kept else search.seconds - table.seconds
    return {
        "verdict": verdict.status,
        "states": found.states,
        "turns": found.transitions,
        "depth": found.depth,
        "search": search.seconds,
        "code": code.seconds,
        "filling": search.seconds - code.seconds - alone,
        "loop": alone,
        "cpu": time.process_time(),
        "memory": getrusage(RUSAGE_SELF).ru_maxrss / 1024,
        "bytes": used / found.states,
    }


def again(loop: Any) -> float:
    """CPU seconds of the compiled loop alone: the same search, with all that threads do known."""
    from tdpmmu.worlds.explore.fast import control as c
    from tdpmmu.worlds.explore.fast import states
    from tdpmmu.worlds.explore.fast.batches import forget

    store, ctl = loop.store, loop.store.ctl
    expected = int(ctl[c.COUNT]), int(ctl[c.TRANSITIONS])
    ctl[[c.CURRENT, c.TRANSITIONS, c.DEPTH, c.LEVEL_ENDS]] = 0
    store._links.array[: 2 * expected[0] // 64 + 1] = 0
    ctl[c.COUNT], ctl[c.LIMIT] = 1, c.NO_LIMIT
    store.slots[:] = 0
    states.index_states(ctl, store.packed(), 0, 1)
    forget(loop.looking)
    began = time.process_time()
    while loop._advance() == c.HALTED:
        ctl[c.CURRENT] += 1
    seconds = time.process_time() - began
    assert (int(ctl[c.COUNT]), int(ctl[c.TRANSITIONS])) == expected
    return seconds


def pair(size: str) -> dict[str, dict[str, Any]]:
    """Both loops on one size; what they find must be the same."""
    found = {}
    for loop in ("plain", "compiled"):
        command = [sys.executable, __file__, "--one", size, loop]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[loop] = json.loads(done.stdout)
    for figure in ("verdict", "states", "turns", "depth"):
        assert found["plain"][figure] == found["compiled"][figure], figure
    return found


COLUMNS = (
    *("size", "loop", "states", "turns", "search", "threads' code", "entries", "the loop"),
    *("turns/s in the loop", "peak MiB"),
)
TABLE = f"| {' | '.join(COLUMNS)} |\n| --- | --- |{' ---: |' * (len(COLUMNS) - 2)}\n"

TEXT = """\
# Performance

Written by `python benchmarks/performance.py`; do not edit. Pairs of runs for each size: {pairs};
medians, CPU seconds, on {machine}, CPython {python}, numba {numba}.
Compare within a table only: on a busy machine CPU seconds are more, up to twice as many.

{table}
*Search* is all of the search, without looking for cycles. *Threads' code*: running it, and in the
plain loop composing its turns. *Entries*: in the plain loop, entering turns into the table; in the
compiled loop that, composing the turns and growing arrays. *The loop* is the rest: look-ups,
additions and sets; for the compiled loop it is measured by searching again, with all entries made.
S to L are exhausted, S without reductions, too (`--no-reduce`); XL is stopped at {states:,} states.
The sizes are those of `benchmarks/check.py` and, for XL, `{xl}`.

How many times faster the compiled loop is (medians of the pairs' ratios):

| size | the loop | the whole search | bytes a state |
| --- | ---: | ---: | ---: |
{ratios}
*Bytes a state*: all that the states take, with the room to grow: 8 to 16 for the state itself, 4.6
to 5.7 for its slot, two bits to find its parent.

Where states are many for what the threads do (XL), the loop decides; in the small sizes running the
threads' code, once for each operation and what it looks at, does.
"""


def main() -> None:
    """Run pairs, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "LOOP"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    rows, ratios = "", ""
    for size in ("S", UNREDUCED, "M", "L", "XL"):
        found = [pair(size) for _ in range(arguments.pairs)]
        for loop in ("plain", "compiled"):
            runs = [one[loop] for one in found]

            def middle(name: str, runs: list[dict[str, Any]] = runs) -> float:
                return median(run[name] for run in runs)

            times = " | ".join(
                f"{middle(what):.2f}" for what in ("search", "code", "filling", "loop")
            )
            rate = median(run["turns"] / run["loop"] for run in runs)
            rows += (
                f"| {size} | {loop} | {runs[0]['states']:,} | {runs[0]['turns']:,} "
                f"| {times} "
                f"| {rate:,.0f} | {middle('memory'):.0f} |\n"
            )
        loops = median(one["plain"]["loop"] / one["compiled"]["loop"] for one in found)
        wholes = median(one["plain"]["search"] / one["compiled"]["search"] for one in found)
        size_of = found[0]["compiled"]["bytes"]
        ratios += f"| {size} | {loops:.1f} | {wholes:.2f} | {size_of:.1f} |\n"
        print(rows.splitlines()[-2:], ratios.splitlines()[-1], file=sys.stderr)
    DOCUMENT.write_text(
        TEXT.format(
            pairs=arguments.pairs,
            machine=f"{platform.machine()} {platform.system()}",
            python=platform.python_version(),
            numba=version("numba"),
            table=TABLE + rows,
            states=XL_STATES,
            xl=XL,
            ratios=ratios,
        )
    )


if __name__ == "__main__":
    main()
