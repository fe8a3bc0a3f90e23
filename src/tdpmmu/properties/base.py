"""The base of all properties."""

from __future__ import annotations

from typing import Any

from tdpmmu.arch.hardware import Hardware
from tdpmmu.machine.ghost import Ghost


class Property(Ghost):
    """A ghost that watches one VM.

    ``locks`` are the VM's locks by name, for those properties that ask who holds what.
    """

    def __init__(self, hardware: Hardware, locks: dict[str, Any]) -> None:
        super().__init__()
        self.hardware = hardware
        self.locks = locks
