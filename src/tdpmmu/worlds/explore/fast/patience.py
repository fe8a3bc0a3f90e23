"""Ctrl-C, heeded between two questions to the threads' code, where all that is known is whole.

``SIGTERM`` and ``SIGHUP``, with which batch systems and closed terminals end a process, are taken
for Ctrl-C: what was found until then is told, and kept if there is a checkpoint.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_USUAL: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
if hasattr(signal, "SIGHUP"):
    _USUAL[signal.SIGHUP] = signal.SIG_DFL


class Patience:
    """While entered, the first Ctrl-C waits for :meth:`heed`, the second one does not."""

    def __init__(self) -> None:
        self._asked = False
        self._ours: list[signal.Signals] = []

    def __enter__(self) -> Patience:
        if threading.current_thread() is threading.main_thread():
            self._ours = [one for one in _USUAL if signal.getsignal(one) == _USUAL[one]]
        for one in self._ours:
            signal.signal(one, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self._ours:
            signal.signal(one, _USUAL[one])
        self._ours = []

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def heed(self) -> None:
        """Now it may come."""
        if self._asked:
            raise KeyboardInterrupt
