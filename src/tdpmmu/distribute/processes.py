"""The engine ``processes``: worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait

from tdpmmu.distribute.executor import PoolExecutor

_ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def processes(workers: int) -> PoolExecutor:
    """So many worker processes; they are gone when this one is, however it ends."""
    # A pipe, not an event: setting one waits for who waits for it, and that one may be dead.
    heard, given_up = context().Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context(), initializer=_begin, initargs=(heard,))
    return PoolExecutor(pool, workers, (BrokenProcessPool,), lambda: given_up.send(None))


def _begin(given_up: Connection) -> None:
    """In a worker: end when the parent is gone, or wants no more of it."""
    follow_parent()
    threading.Thread(target=_end_when, args=(given_up,), daemon=True).start()


def _end_when(given_up: Connection) -> None:
    wait([given_up])  # which nobody reads, so all see it
    os._exit(1)


def forks() -> bool:
    """Whether workers can begin as copies of this process."""
    return "fork" in multiprocessing.get_all_start_methods()


def context() -> multiprocessing.context.BaseContext:
    """Workers that share what was imported already, where the system has them."""
    return multiprocessing.get_context("fork" if forks() else None)


def follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent is gone.

    It ends at once on SIGTERM and SIGHUP, too, before a task that heeds them gives half a result.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for one in _ENDING:
        if signal.getsignal(one) == signal.SIG_DFL:
            signal.signal(one, lambda *_: os._exit(1))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
