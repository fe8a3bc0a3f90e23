"""Why nothing can be recorded."""

from __future__ import annotations


class RecordError(Exception):
    """The machine does not let itself be recorded; the message is one line."""
