"""Runs of both tools: processes of their own, timed, with the peak of their memory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from spin.questions import Question

HOLDS, VIOLATED, UNFINISHED = "holds", "violated", "not finished"


@dataclass(frozen=True, slots=True)
class Run:
    """CPU seconds by part, wall-clock seconds of it all, peak MiB, and what was found.

    ``states`` are those stored.  ``properties``: what ``tdpmmu`` says is broken.
    """

    verdict: str
    states: int
    seconds: dict[str, float]
    wall: float
    memory: float
    properties: tuple[str, ...] = ()
    said: str = field(default="", repr=False)

    @property
    def total(self) -> float:
        """CPU seconds from the prompt to the verdict."""
        return sum(self.seconds.values())


def missing() -> list[str]:
    """Which of SPIN and a C compiler are not there."""
    return [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]


@dataclass(frozen=True, slots=True)
class Process:
    """Output, exit status, CPU and wall-clock seconds, and peak MiB of one process."""

    out: str
    status: int
    cpu: float
    wall: float
    memory: float


def timed(command: list[str], where: Path | None = None) -> Process:
    """Run a command to its end."""
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    cpu = usage.ru_utime + usage.ru_stime
    return Process(out, process.returncode, cpu, wall, usage.ru_maxrss / 1024)


def tdpmmu(question: Question, *options: str) -> Run:
    """``tdpmmu check``, from a cold prompt, with all of its properties."""
    command = [sys.executable, "-m", "tdpmmu.cli.main", "check", *question.check, "--json"]
    done = timed([*command, *options])
    if done.status not in (0, 1):
        raise SystemExit(f"tdpmmu {question.name}: exit {done.status}: {done.out.strip()[-300:]}")
    answer = json.loads(done.out)
    broken = tuple(found["property"] for found in answer["violations"])
    parts = {"check": done.cpu}
    return Run(answer["verdict"], answer["states"], parts, done.wall, done.memory, broken)


def spin(question: Question, *, memory: int = 4096, seconds: int = 900, flags: str = "") -> Run:
    """``spin -a``, ``gcc -O2``, ``./pan``: partial order reduction is on, safety only.

    ``memory`` is pan's limit in MiB; a run that hits that, or ``seconds``, is not finished.
    """
    with tempfile.TemporaryDirectory() as directory:
        compile_it = ["gcc", "-O2", "-w", "-DSAFETY", f"-DMEMLIM={memory}", *flags.split()]
        commands = {
            "generate": ["spin", "-a", *question.macros, str(question.model)],
            "compile": [*compile_it, "-o", "pan", "pan.c"],
            "run": ["timeout", str(seconds), "./pan", "-m100000", f"-w{question.hash_bits}"],
        }
        done: dict[str, Process] = {}
        for part, command in commands.items():
            one = done[part] = timed(command, Path(directory))
            if one.status and part != "run":
                raise SystemExit(f"{part} {question.model.name}: {one.out.strip()[-300:]}")
    last = done["run"]
    states = re.search(r"(\d+) states, stored", last.out)
    errors = re.search(r"errors: (\d+)", last.out)
    if "max search depth too small" in last.out:
        raise SystemExit(f"{question.model.name}: pan's -m is too small")
    verdict = HOLDS
    if errors and int(errors[1]):
        verdict = VIOLATED
    elif last.status or errors is None or "Search not completed" in last.out:
        verdict = UNFINISHED
    return Run(
        verdict,
        int(states[1]) if states else 0,
        {part: one.cpu for part, one in done.items()},
        sum(one.wall for one in done.values()),
        max(one.memory for one in done.values()),
        said=last.out,
    )
