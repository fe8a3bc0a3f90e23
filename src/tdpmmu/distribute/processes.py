"""The engine ``processes``: worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from tdpmmu.distribute.executor import PoolExecutor


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def processes(workers: int) -> PoolExecutor:
    """So many worker processes; they are gone when this one is, however it ends."""
    pool = ProcessPoolExecutor(workers, mp_context=context(), initializer=follow_parent)
    return PoolExecutor(pool, workers, (BrokenProcessPool,))


def forks() -> bool:
    """Whether workers can begin as copies of this process."""
    return "fork" in multiprocessing.get_all_start_methods()


def context() -> multiprocessing.context.BaseContext:
    """Workers that share what was imported already, where the system has them."""
    return multiprocessing.get_context("fork" if forks() else None)


def follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
