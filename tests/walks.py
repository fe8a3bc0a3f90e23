"""Random runs of a scenario, without exploring it: quick, and any order may come."""

from __future__ import annotations

import random

from tdpmmu.machine.op import Step
from tdpmmu.scenarios.base import Built
from tdpmmu.worlds.replay import Record, Replay


def walk(built: Built, seed: int, most: int = 3000) -> list[Record]:
    """A run until all threads have ended, but for those that wait for that; the seed decides."""
    pick = random.Random(seed)
    threads = [i for i, thread in enumerate(built.machine.threads) if not thread.alone]
    records: list[Record] = []
    run = Replay(built.machine, ())
    try:
        while len(records) < most:
            ready = [number for number in threads if _alternatives(run, number)]
            if not ready:
                break
            number = pick.choice(ready)
            for _ in range(pick.choice((1, 4, 20))):
                count = _alternatives(run, number)
                if not count:
                    break
                records.append(run.operation(0, number, pick.randrange(count)))
        standing = run.standing()
        assert all(standing[number][1] is None for number in threads), "not at its end"
    finally:
        run.close()
    return records


def _alternatives(run: Replay, thread: int) -> int:
    op = run.standing()[thread][1]
    return op.alternatives(Step(run.state, thread)) if op is not None else 0
