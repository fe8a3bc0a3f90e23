"""``tdpmmu check`` beside SPIN, and beside frontrun on a toy: tables and a chart for the docs.

    python benchmarks/versus_spin.py                 all of it, three rounds
    python benchmarks/versus_spin.py --rounds 1 S M  less

Needs ``spin`` and ``gcc``, and the extra ``bench`` (frontrun, matplotlib).  The tools take turns:
in every round each question is put to all of them, one after the other.  What was measured goes
between two marks in docs/performance-spin.md and into docs/performance-spin.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from spin import chart
from spin.questions import NX_SIZES, Question, nx_recovery, zoo
from spin.running import HOLDS, UNFINISHED, VIOLATED, Run, missing, spin, tdpmmu, timed

DOCS = Path(__file__).parents[1] / "docs"
PAGE, CHART = DOCS / "performance-spin.md", DOCS / "performance-spin.svg"
FROM, TO = "<!-- measured: from here -->", "<!-- measured: to here -->"
TOYS = ("1", "2", "3")

TEXT = """\
Measured on {machine}; rounds: {rounds}, medians, CPU seconds (*wall*: elapsed, with whatever else
the machine did). SPIN's limits: {memory:,} MiB and {seconds} s.

{sizes}
SPIN's figures as multiples of `tdpmmu`'s (more than 1: SPIN takes more):

{ratios}
![Time and memory by size](performance-spin.svg)

### The same verdicts

{verdicts}
### frontrun

{toys}"""

Tool = tuple[str, Callable[[], Run]]


def tools(size: str, memory: int, seconds: int) -> tuple[list[Tool], list[Tool]]:
    """Who is asked about a size in every round, and who only once, since it takes so long."""

    def model(*macros: str) -> Question:
        return nx_recovery(size, True, *macros)

    def run(question: Question) -> Callable[[], Run]:
        return lambda: spin(question, memory=memory, seconds=seconds)

    often: list[Tool] = [
        ("tdpmmu", lambda: tdpmmu(model())),
        ("tdpmmu without numba", lambda: tdpmmu(model(), "--loop", "plain")),
        ("SPIN, turns by hand, sets", run(model("TURNS", "MAY_HOLD"))),
        ("SPIN, turns by hand, choices", run(model("TURNS"))),
    ]
    once: list[Tool] = [
        ("SPIN, operations, sets", run(model("MAY_HOLD"))),
        ("SPIN, operations, choices", run(model())),
    ]
    return often, once


def middle(runs: list[Run]) -> Run:
    """The medians of several runs, which must agree."""
    if len({(run.verdict, run.states) for run in runs}) > 1:
        raise SystemExit(f"runs of one question differ: {runs}")
    parts = {part: median(run.seconds[part] for run in runs) for part in runs[0].seconds}
    wall, memory = median(run.wall for run in runs), median(run.memory for run in runs)
    return Run(runs[0].verdict, runs[0].states, parts, wall, memory)


def measure(size: str, rounds: int, memory: int, seconds: int) -> dict[str, Run]:
    """All tools on one size."""
    often, once = tools(size, memory, seconds)
    found: dict[str, list[Run]] = {}
    for number in range(rounds):
        for name, run in (*often, *(once if number == 0 else [])):
            found.setdefault(name, []).append(run())
            last = found[name][-1]
            said = f"{last.verdict}, {last.total:.1f} s, {last.memory:.0f} MiB"
            print(f"{size} {name}: {said}; {last.wall:.1f} s elapsed", file=sys.stderr)
            if last.verdict not in (HOLDS, UNFINISHED):
                raise SystemExit(f"{size} {name}: {last.verdict}")
    return {name: middle(runs) for name, runs in found.items()}


def size_table(measured: dict[str, dict[str, Run]]) -> str:
    """The questions that hold."""
    text = (
        "| size | who | states | generate | compile | run | prompt to verdict | wall | peak MiB |\n"
    )
    text += "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    for size, runs in measured.items():
        for name, run in runs.items():
            cut = run.verdict == UNFINISHED
            states = f"over {run.states:,}" if cut else f"{run.states:,}"
            parts = [f"{run.seconds[p]:.2f}" if p in run.seconds else "" for p in PARTS]
            total = "not finished" if cut else f"{run.total:.2f}"
            text += f"| {size} | {name} | {states} | {' | '.join(parts)} | {total} "
            text += f"| {run.wall:.1f} | {run.memory:,.0f} |\n"
    return text


PARTS = ("generate", "compile", "run")


def ratio_table(measured: dict[str, dict[str, Run]]) -> str:
    """SPIN's figures as multiples of ours."""
    text = "| size | against | prompt to verdict | its run alone | peak memory |\n"
    text += "| --- | --- | ---: | ---: | ---: |\n"
    for size, runs in measured.items():
        ours = runs["tdpmmu"]
        for name, run in runs.items():
            if not name.startswith("SPIN"):
                continue
            more = "over " if run.verdict == UNFINISHED else ""
            text += f"| {size} | {name} | {more}{run.total / ours.total:.2f} "
            text += f"| {more}{run.seconds['run'] / ours.total:.2f} "
            text += f"| {more}{run.memory / ours.memory:.1f} |\n"
    return text


VERDICTS = "| question | side | TLB | tdpmmu | states | SPIN | states |\n"
VERDICTS += "| --- | --- | --- | --- | ---: | --- | ---: |\n"
TLBS = (("sets", ("TURNS", "MAY_HOLD")), ("choices", ("TURNS",)))


def zoo_rows() -> str:
    """Both sides of two entries: what each tool says."""
    text = ""
    for name in ("z2", "z36"):
        for fixed in (False, True):
            for tlb, macros in TLBS:
                question = zoo(name, fixed, *macros)
                ours, theirs = tdpmmu(question, "--no-explain"), spin(question, flags="-O0")
                if (question.prop in ours.properties) == fixed:
                    raise SystemExit(f"{name}: {ours}")
                text += verdict_row(name, fixed, tlb, ours, theirs)
    return text


def size_rows(size: str, runs: dict[str, Run]) -> str:
    """The side that holds was measured, with every assertion; the other is asked for harm."""
    text = ""
    ours = tdpmmu(nx_recovery(size, False), "--no-explain", "--properties", "harm", "--first")
    for tlb, macros in TLBS:
        question = nx_recovery(size, False, *macros, "NO_FLUSH_OWED")
        if question.prop not in ours.properties:
            raise SystemExit(f"{size}: {ours}")
        text += verdict_row(size, False, tlb, ours, spin(question, flags="-O0"))
    for tlb, _ in TLBS:
        text += verdict_row(size, True, tlb, runs["tdpmmu"], runs[f"SPIN, turns by hand, {tlb}"])
    return text


def verdict_row(name: str, fixed: bool, tlb: str, ours: Run, theirs: Run) -> str:
    """One line, if both say what they must."""
    if not ours.verdict == theirs.verdict == (HOLDS if fixed else VIOLATED):
        raise SystemExit(f"{name}, {tlb}: {ours} but {theirs}")
    side, said = ("fixed", HOLDS) if fixed else ("bug", ", ".join(ours.properties))
    row = f"| {name} | {side} | {tlb} | {said} | {ours.states:,} "
    row += f"| {theirs.verdict} | {theirs.states:,} |\n"
    print(row.rstrip(), file=sys.stderr)
    return row


def toy_table(rounds: int) -> str:
    """frontrun on the toy."""
    toy = str(Path(__file__).parent / "frontrun_toy.py")
    text = "| faults | side | who | verdict | looked at | prompt to verdict | search | peak MiB |\n"
    text += "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |\n"
    for faults in TOYS:
        for side in ("drops", "keeps"):
            for tool in ("tdpmmu", "frontrun"):
                command = [sys.executable, toy, tool, side, "--faults", faults]
                if tool == "frontrun":
                    command = [str(Path(sys.executable).parent / "frontrun"), *command]
                times, inside, used, answer = [], [], [], {}
                for _ in range(rounds):
                    done = timed(command)
                    if done.status:
                        raise SystemExit(f"{tool}: {done.out.strip()[-300:]}")
                    answer = json.loads(done.out.splitlines()[-1])
                    times.append(done.cpu)
                    inside.append(answer["seconds"])
                    used.append(done.memory)
                if answer["violated"] != (side == "drops"):
                    raise SystemExit(f"{tool} on {side}: {answer}")
                verdict = "violated" if answer["violated"] else HOLDS
                text += f"| {faults} | {side} | {tool} | {verdict} "
                text += f"| {answer['looked_at']:,} {answer['what']} | {median(times):.2f} "
                text += f"| {median(inside):.3f} | {median(used):.0f} |\n"
                print(text.splitlines()[-1], file=sys.stderr)
    return text


def machine() -> str:
    """What it was measured on."""
    first = subprocess.run(["spin", "-V"], capture_output=True, text=True, check=True).stdout
    gcc = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True)
    return (
        f"{platform.machine()} {platform.system()}, {os.cpu_count()} CPUs, CPython "
        f"{platform.python_version()}, {first.splitlines()[0].split(' -- ')[0]}, "
        f"gcc {gcc.stdout.strip()}"
    )


def main() -> None:
    """Measure, and write the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=8192, help="pan's limit in MiB")
    parser.add_argument("--seconds", type=int, default=900, help="pan's limit in seconds")
    parser.add_argument("sizes", nargs="*", default=list(NX_SIZES), help="S, M, L")
    arguments = parser.parse_args()
    if missing():
        raise SystemExit(f"not installed: {', '.join(missing())}")
    toys, rows = toy_table(arguments.rounds), zoo_rows()
    measured: dict[str, dict[str, Run]] = {}
    for size in arguments.sizes:
        runs = measure(size, arguments.rounds, arguments.memory, arguments.seconds)
        measured[size] = runs
        rows = size_rows(size, runs) + rows
        text = TEXT.format(
            machine=machine(),
            rounds=arguments.rounds,
            memory=arguments.memory,
            seconds=arguments.seconds,
            sizes=size_table(measured),
            ratios=ratio_table(measured),
            verdicts=VERDICTS + rows,
            toys=toys,
        )
        page = PAGE.read_text()
        before, after = page.index(FROM), page.index(TO)
        PAGE.write_text(f"{page[:before]}{FROM}\n\n{text}\n{page[after:]}")
        chart.write(CHART, measured)


if __name__ == "__main__":
    main()
