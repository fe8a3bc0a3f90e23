"""Files that commands write: whole, or not at all."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tdpmmu.cli.errors import UsageError


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """A file that takes ``path``'s place once all is written; ``-`` is standard output.

    UsageError if it cannot be written; then, and after any other exception, ``path`` is as it was.
    """
    if path == "-":
        yield sys.stdout.buffer
        return
    target = Path(path).resolve()
    with _naming(path):
        if target.exists() and not target.is_file():
            with open(target, "wb") as device:
                yield device
            return
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(descriptor, "wb") as file:
                yield file
            os.chmod(name, _mode(target))
            os.replace(name, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def refuse_unwritable(path: str) -> None:
    """UsageError if ``whole_file`` could not write there, before there is anything to write."""
    target = Path(path).resolve()
    if path == "-" or (target.exists() and not target.is_file() and not target.is_dir()):
        return
    with _naming(path):
        if target.is_dir():
            raise _os_error(errno.EISDIR)
        if not target.parent.is_dir():
            raise _os_error(errno.ENOENT)
        if not os.access(target.parent, os.W_OK):
            raise _os_error(errno.EACCES)


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _mode(target: Path) -> int:
    """The permissions that the file has, or that a new one would get."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected a file to write") from None
