"""Ctrl-C, heeded between two questions to the threads' code, where all that is known is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Patience:
    """While entered, the first Ctrl-C waits for :meth:`heed`, the second one does not."""

    def __init__(self) -> None:
        self._asked = False
        self._ours = False

    def __enter__(self) -> Patience:
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._take)
            self._ours = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._ours = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def heed(self) -> None:
        """Now it may come."""
        if self._asked:
            raise KeyboardInterrupt
