"""Make a step list that fails smaller, many tries at a time (a boot is what costs)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from tdpmmu.lab.cases import Case

Fails = Callable[[list[Case]], list[bool]]
"""Tries cases; which of them fail."""


def shrink(case: Case, fails: Fails, batch: int = 20, rounds: int = 12) -> Case:
    """The smallest failing case found; ``case`` if nothing smaller fails.

    Each round tries up to ``batch`` cases, the boldest first, and goes on from the first failure.
    """
    tried: set[Case] = set()
    for _ in range(rounds):
        fresh = (one for one in simpler(case) if one not in tried)
        candidates = list(islice(fresh, batch))
        if not candidates:
            break
        tried.update(candidates)
        verdicts = fails(candidates)
        case = next((one for one, bad in zip(candidates, verdicts, strict=True) if bad), case)
    return case


def simpler(case: Case) -> Iterator[Case]:
    """Cases that are simpler by one thing, without repetitions; only those that make sense."""
    seen = {case}
    for one in _simpler(case):
        if one not in seen and one.steps and one.valid:
            seen.add(one)
            yield one


def _simpler(case: Case) -> Iterator[Case]:
    steps, setup = case.steps, case.setup
    size = len(steps) // 2
    while size:
        for start in range(0, len(steps), size):
            yield replace(case, steps=steps[:start] + steps[start + size :])
        size //= 2
    for other in (
        replace(setup, vms=1),
        replace(setup, vcpus=1),
        replace(setup, backing="thp"),
        replace(setup, guest="flat"),
        replace(setup, guest="long" if setup.paging == "long-4k" else setup.guest),
        replace(setup, blocks=max(1, setup.blocks // 2)),
    ):
        yield replace(case, setup=other)
    for number, step in enumerate(steps):
        for text in _simpler_step(step):
            yield replace(case, steps=(*steps[:number], text, *steps[number + 1 :]))


def _simpler_step(step: str) -> Iterator[str]:
    if step.endswith("&"):
        yield step[:-1]
    head, colon, arguments = step.partition(":")
    name, at, _ = head.partition("@")
    if at:
        yield name + colon + arguments
    if name in ("sleep", "age", "param", "manual"):
        return
    if not colon and name in ("w", "r", "x", "dontneed", "ro", "rw", "host-w", "host-r"):
        yield f"{step}:1"
    first, dash, _ = arguments.rstrip("&").partition("-")
    if dash:
        yield f"{head}:{first}{'&' if step.endswith('&') else ''}"
