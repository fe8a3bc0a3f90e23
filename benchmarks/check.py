"""Time from the shell prompt to the verdict, peak memory, and where both go.

    python benchmarks/check.py            sizes S, M, L of nx-recovery, patches 1 and 2
    python benchmarks/check.py --where M  states by what each thread is about to do, time by module

Every run is a process of its own; times are wall clock, memory is the process's peak.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

SIZES = {
    "S": "--fanout 2 --vcpus 1 --nx-pages 1 --legacy 1 --gfns 2 --faults 1",
    "M": "--fanout 2 --vcpus 2 --nx-pages 2 --legacy 2 --gfns 2 --faults 1",
    "L": "--fanout 4 --vcpus 2 --nx-pages 2 --legacy 2 --gfns 3 --faults 1",
}
GOALS = {"S": (1.5, 0), "M": (6, 0), "L": (60, 1000)}
ROW = "--kernel 5.12-rc4 --patch flush-on-nx-zap --patch flush-when-yielding"


def timed(size: str) -> tuple[dict[str, object], float, float]:
    """One run: its JSON, wall seconds and peak MiB."""
    command = [sys.executable, "-m", "tdpmmu.cli.main", "check", "nx-recovery", "--levels", "3"]
    command += ["--roots", "2", *SIZES[size].split(), *ROW.split(), "--json"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return json.loads(out), time.monotonic() - began, usage.ru_maxrss / 1024


def where(size: str) -> None:
    """Profile one size in this process."""
    from tdpmmu.cli.questions import make_question
    from tdpmmu.worlds.explore.search import explore

    words = SIZES[size].replace("--", "").split()
    names = [word.replace("-", "_") for word in words[::2]]
    values = [int(word) for word in words[1::2]]
    parameters = dict(zip(names, values, strict=True))
    patches = ("flush-on-nx-zap", "flush-when-yielding")
    question = make_question("nx-recovery", "5.12-rc4", patches, parameters, "all")
    machine = question.build().machine
    profile = cProfile.Profile()
    profile.enable()
    explorer = explore(machine)
    profile.disable()
    for thread, table in enumerate(explorer.positions):
        pending: Counter[str] = Counter()
        for key in explorer.order:
            op = table.op(explorer.unpack(key)[1][thread])
            pending["(done)" if op is None else op.describe()] += 1
        print(f"\n{machine.threads[thread].name} is about to:")
        for what, count in pending.most_common(8):
            print(f"  {count:>10,}  {what}")
    seconds: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        seconds[Path(file).name if file.endswith(".py") else "(builtin)"] += own
    total = sum(seconds.values())
    print("\ntime by module, under the profiler:")
    for name, own in seconds.most_common(12):
        print(f"  {own / total:6.1%}  {name}")


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--where", choices=sorted(SIZES), help="profile one size")
    parser.add_argument("sizes", nargs="*", default=list(SIZES), help="S, M, L")
    arguments = parser.parse_args()
    if arguments.where:
        where(arguments.where)
        return
    print("size  verdict    states     turns    seconds  goal   MiB  goal  turns/s")
    for size in arguments.sizes:
        answer, seconds, memory = timed(size)
        goal, limit = GOALS[size]
        print(
            f"{size:5s} {answer['verdict']!s:8s} {answer['states']:>9,} {answer['turns']:>9,}"
            f" {seconds:>9.2f} {goal:>5} {memory:>6.0f} {limit or '':>5} "
            f"{answer['turns'] / seconds:>8,.0f}"  # type: ignore[operator]
        )


if __name__ == "__main__":
    main()
