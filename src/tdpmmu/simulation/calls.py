"""What host threads do: NX recovery, notifiers, ioctls."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from tdpmmu.machine.op import Op
from tdpmmu.simulation.guest import (
    Collapse,
    DirtyLog,
    GetDirtyLog,
    HostEvent,
    Knobs,
    Migrate,
    SplitHuge,
    SwapOut,
    Unmap,
)
from tdpmmu.simulation.jiffies import Jiffies
from tdpmmu.worlds.simulate.costs import Costs
from tdpmmu.worlds.simulate.ops import FOREVER, Now, SleepUntil, Spend


async def recovery_worker(mmu: Any, knobs: Knobs, jiffies: Jiffies) -> None:
    """``kvm_nx_huge_page_recovery_worker``: one round a period, from a period after its start.

    A period begins when the round before is over, and ends when the timer wheel says so.
    """
    period = mmu.effective_period(knobs.period_ms, knobs.ratio)
    while True:
        if not knobs.nx_huge_pages or not knobs.ratio:
            await SleepUntil(FOREVER)
        now = await Now()
        await SleepUntil(jiffies.wakes(now, period))
        await mmu.recover_nx_lpages()


async def host(
    mmu: Any,
    events: Iterator[tuple[int, HostEvent]],
    costs: Costs,
    migrate: Callable[[Migrate], Coroutine[Op, Any, None]],
) -> None:
    """The host's memory management, and userspace's ioctls, one after the other."""
    for at, event in events:
        await SleepUntil(at)
        match event:
            case Unmap(gfn, pages):
                await mmu.host_takes_range(gfn, pages)
            case SplitHuge(gfn, pages):
                await mmu.host_splits(gfn, pages)
            case SwapOut(gfn, pages):
                await mmu.host_swaps_out(gfn, pages)
            case Collapse(pages):
                await mmu.host_collapses(pages)
            case DirtyLog(on):
                await Spend(costs.ioctl)
                await mmu.set_dirty_logging(0, 0, on, 0)
            case Migrate():
                await migrate(event)
            case GetDirtyLog():
                await Spend(costs.ioctl)
                await mmu.get_dirty_log(0, 0, 0)
    await SleepUntil(FOREVER)
