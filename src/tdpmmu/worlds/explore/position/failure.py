"""How a thread ended that raised."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from typing import Final

Line = tuple[str, str, int]
"""A line of code: function, file name, line number."""

_OWN: Final = os.path.join(os.path.dirname(__file__), "")


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception without the frames that it keeps alive, the lines it went through, its text."""

    exception: BaseException
    lines: list[Line]
    text: str


def failure_of(exception: BaseException) -> Failure:
    """What is kept of an exception."""
    lines = [
        (frame.f_code.co_qualname, frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(exception.__traceback__)
        if not frame.f_code.co_filename.startswith(_OWN)
    ]
    text = "".join(traceback.format_exception(exception))
    seen: set[int] = set()
    chain: list[BaseException | None] = [exception]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]
    return Failure(exception, lines, text)
