"""A flush that a broken lock leaves behind, in plain Python: frontrun beside our explorer.

A worker zaps an entry under a lock, breaks the lock, and flushes; the host takes the page back;
vCPUs map it again.  ``keeps``: the flush comes before the lock is broken.

    python benchmarks/frontrun_toy.py frontrun drops --faults 1
    python benchmarks/frontrun_toy.py tdpmmu keeps --faults 2
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from typing import Any


class Vm:
    """``page`` is the host's, ``spte`` and ``tlb`` say which one they have."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.page = 0
        self.spte: int | None = 0
        self.tlb: int | None = 0
        self.harmed = False


def worker(vm: Vm, keeps: bool) -> None:
    """Zap, break the lock, flush."""
    vm.lock.acquire()
    vm.spte = None
    if keeps:
        vm.tlb = None
    vm.lock.release()
    vm.lock.acquire()
    vm.tlb = None
    vm.lock.release()


def host(vm: Vm) -> None:
    """Unmap and flush if there is something to, and give the page to somebody else."""
    vm.lock.acquire()
    if vm.spte is not None:
        vm.spte = None
        vm.tlb = None
    old = vm.page
    vm.page = old + 1
    if vm.tlb == old:
        vm.harmed = True
    vm.lock.release()


def fault(vm: Vm) -> None:
    """Map what the host has now."""
    vm.lock.acquire()
    if vm.spte is None:
        page = vm.page
        vm.spte = page
        vm.tlb = page
    vm.lock.release()


def with_frontrun(keeps: bool, faults: int) -> dict[str, Any]:
    """Every execution that matters, no bound on preemptions."""
    import frontrun

    began = time.process_time()
    workers: list[Callable[[Vm], None]] = [lambda vm: worker(vm, keeps), host]
    workers += [fault] * faults
    result = frontrun.explore(
        setup=Vm,
        workers=workers,
        invariant=lambda vm: not vm.harmed,
        preemption_bound=None,
        reproduce_on_failure=0,
    )
    return {
        "violated": not result.property_holds,
        "looked_at": result.num_explored,
        "what": "executions",
        "seconds": time.process_time() - began,
    }


def with_tdpmmu(keeps: bool, faults: int) -> dict[str, Any]:
    """The same operations, awaited."""
    from tdpmmu.kernel.locks import SpinLock
    from tdpmmu.machine.op import Read, Write
    from tdpmmu.machine.state import Layout
    from tdpmmu.machine.thread import Machine, Thread
    from tdpmmu.worlds.explore.search import explore

    began = time.process_time()
    layout = Layout()
    lock = SpinLock(layout, "lock", chunk=layout.chunk("lock"))
    page, spte, tlb = (layout.cell(name, 0) for name in ("page", "spte", "tlb"))

    async def worker() -> None:
        await lock.lock()
        await Write(spte, None)
        if keeps:
            await Write(tlb, None)
        await lock.unlock()
        await lock.lock()
        await Write(tlb, None)
        await lock.unlock()

    async def host() -> None:
        await lock.lock()
        if await Read(spte) is not None:
            await Write(spte, None)
            await Write(tlb, None)
        old = await Read(page)
        await Write(page, old + 1)
        assert await Read(tlb) != old
        await lock.unlock()

    async def fault() -> None:
        await lock.lock()
        if await Read(spte) is None:
            now = await Read(page)
            await Write(spte, now)
            await Write(tlb, now)
        await lock.unlock()

    threads = [Thread("worker", worker), Thread("host", host)]
    threads += [Thread(f"fault{n}", fault) for n in range(faults)]
    explorer = explore(Machine(layout, threads, [], layout.initial()), first=True)
    return {
        "violated": bool(explorer.result.violations),
        "looked_at": explorer.result.states,
        "what": "states",
        "seconds": time.process_time() - began,
    }


def main() -> None:
    """One tool, one side; a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("tool", choices=("frontrun", "tdpmmu"))
    parser.add_argument("side", choices=("drops", "keeps"))
    parser.add_argument("--faults", type=int, default=1)
    arguments = parser.parse_args()
    run = with_frontrun if arguments.tool == "frontrun" else with_tdpmmu
    print(json.dumps(run(arguments.side == "keeps", arguments.faults)))


if __name__ == "__main__":
    main()
