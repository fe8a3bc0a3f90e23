"""One thread and two on large questions, one after the other: writes the table of docs/many.md.

python benchmarks/workers.py              60 million states each at most, about three minutes
python benchmarks/workers.py --states N
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from check import ROW, SIZES

XL = "--fanout 4 --vcpus 3 --nx-pages 3 --legacy 3 --gfns 4 --faults 2"
QUESTIONS = {"L": SIZES["L"], "L without reductions": f"{SIZES['L']} --no-reduce", "XL": XL}
PAGE = Path(__file__).parent.parent / "docs" / "many.md"
BEGIN, END = "<!-- workers -->", "<!-- end of workers -->"


def timed(question: str, states: int, workers: int) -> tuple[float, int, int]:
    """Seconds from prompt to verdict, states, and turns."""
    command = [sys.executable, "-m", "tdpmmu.cli.main", "check", "nx-recovery", "--levels", "3"]
    command += ["--roots", "2", *question.split(), *ROW.split(), "--json"]
    command += ["--states", str(states), "--workers", str(workers)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout)
    return time.monotonic() - began, answer["states"], answer["turns"]


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--states", type=int, default=60_000_000)
    states = parser.parse_args().states
    rows = ["| question | states | turns | one, s | two, s | times as fast |"]
    rows += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, question in QUESTIONS.items():
        timed(question, 10_000, 2)  # what is compiled is kept from here on
        (one, *found), (two, *same) = (timed(question, states, workers) for workers in (1, 2))
        assert same == found
        figures = f"{found[0]:,} | {found[1]:,} | {one:.1f} | {two:.1f} | {one / two:.2f}"
        rows.append(f"| {name} | {figures} |")
        print(rows[-1], flush=True)
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
