"""How many states fit, and in what time: writes docs/performance-storage.md.

    python benchmarks/capacity.py               half an hour and 16,000 MiB for each storage
    python benchmarks/capacity.py exact --workers 1 --time 60     a shorter look

The question is the largest one of benchmarks/performance.py, which no budget here exhausts.  Each
search is a process of its own, whose largest resident memory is what the kernel says it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from check import ROW
from performance import XL

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance-storage.md"
STORAGES = ("exact", "compact", "bitstate")

TEXT = """\
# What fits

Written by `python benchmarks/capacity.py`; do not edit. One search for each storage, of at most
{seconds:,} s and {memory:,} MiB (`--time`, `--memory`), {workers} threads, on {machine}, CPython
{python}, numba {numba}, load average {load} before and after. The question:

    tdpmmu check nx-recovery {question}

| storage | states | turns | depth | s | CPU s | turns/CPU s | peak MiB | bytes a state |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}
*Turns/CPU s* is of the whole process: running the threads' code, composing turns, growing sets and
the rest. *Bytes a state* is the peak memory of the whole process, less that of a search of 5,000
states ({least:.0f} MiB), over the states: it has what the threads can do, too.

What the verdicts say:

{verdicts}
"""


def search(*more: str) -> tuple[dict[str, Any], float, float]:
    """What one search says, and the MiB and the CPU seconds that it took."""
    command = [sys.executable, "-m", "tdpmmu.cli.main", "check", "nx-recovery", "--json"]
    command += ["--loop", "compiled", *XL.split(), *ROW.split(), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return answer, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Search, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storages", nargs="*", metavar="STORAGE", help=", ".join(STORAGES))
    parser.add_argument("--time", type=int, default=1800)
    parser.add_argument("--memory", type=int, default=16000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    search("--states", "5000")  # what is compiled is kept, and takes memory only once
    _, least, _ = search("--states", "5000")
    rows, verdicts = "", ""
    limits = ["--time", str(arguments.time), "--memory", str(arguments.memory)]
    limits += ["--workers", str(arguments.workers)]
    for storage in arguments.storages or STORAGES:
        found, most, cpu = search("--storage", storage, *limits)
        each = (most - least) * 2**20 / found["states"]
        rows += (
            f"| {storage} | {found['states']:,} | {found['turns']:,} | {found['depth']} "
            f"| {found['seconds']:.0f} | {cpu:.0f} | {found['turns'] / cpu:,.0f} "
            f"| {most:,.0f} | {each:.1f} |\n"
        )
        verdicts += f"- {storage}: {found['sentence']}\n"
        print(rows.splitlines()[-1], file=sys.stderr)
        text = TEXT.format(
            seconds=arguments.time,
            memory=arguments.memory,
            workers=arguments.workers,
            machine=f"{platform.machine()} {platform.system()}",
            python=platform.python_version(),
            numba=version("numba"),
            load=f"{load:.1f} and {os.getloadavg()[0]:.1f}",
            question=f"{ROW} {XL}",
            least=least,
            rows=rows,
            verdicts=verdicts.rstrip(),
        )
        DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
