"""The one exception a user can cause: a single clear line, exit code 2."""

from __future__ import annotations


class UsageError(Exception):
    """Bad input.  The message is one line that names what is wrong and what was expected."""
