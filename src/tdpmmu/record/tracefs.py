"""tracefs: the files that a recording needs, and nothing that belongs to others."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from tdpmmu.record.errors import RecordError


def find_tracefs(mounts: str = "/proc/mounts") -> Path:
    """Where tracefs is mounted; RecordError if it is not."""
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError as error:
        raise RecordError(f"{mounts}: {error.strerror}; expected a list of mounts") from None
    for line in lines:
        words = line.split()
        if len(words) > 2 and words[2] == "tracefs":
            return Path(words[1])
    raise RecordError(
        "tracefs is not mounted: as root, mount -t tracefs tracefs /sys/kernel/tracing"
    )


class Tracefs:
    """A directory of tracefs: the root, or an instance."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self, name: str) -> bool:
        """Is there such a file or directory, as far as this user can tell?"""
        return os.path.exists(self.path / name)

    def read(self, name: str) -> str:
        """A file's text."""
        try:
            return (self.path / name).read_text("utf-8", "replace")
        except OSError as error:
            raise self._wrong(name, error) from None

    def names(self, name: str) -> list[str]:
        """What a directory has in it."""
        try:
            return sorted(os.listdir(self.path / name))
        except OSError as error:
            raise self._wrong(name, error) from None

    def write(self, name: str, text: str) -> None:
        """Set a file: opened for writing from its start, which for a list means: instead of it."""
        self._write(name, text, os.O_WRONLY | os.O_TRUNC)

    def append(self, name: str, text: str) -> None:
        """Add to a list.  Opening ``dynamic_events`` otherwise would remove everybody's events."""
        self._write(name, text, os.O_WRONLY | os.O_APPEND)

    def _write(self, name: str, text: str, flags: int) -> None:
        try:
            descriptor = os.open(self.path / name, flags)
        except OSError as error:
            raise self._wrong(name, error) from None
        data = text.encode()
        try:
            while data:  # lists of functions are taken a word at a time
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            raise self._wrong(name, error) from None
        finally:
            os.close(descriptor)

    def make(self, name: str) -> Tracefs:
        """Make an instance."""
        path = self.path / "instances" / name
        try:
            path.mkdir()
        except OSError as error:
            raise self._wrong(f"instances/{name}", error) from None
        return Tracefs(path)

    def remove(self, name: str) -> None:
        """Stop an instance and remove it; nothing if it is gone."""
        instance = Tracefs(self.path / "instances" / name)
        for file, text in (("tracing_on", "0"), ("current_tracer", "nop"), ("events/enable", "0")):
            with contextlib.suppress(RecordError):
                instance.write(file, text)
        with contextlib.suppress(FileNotFoundError):
            instance.path.rmdir()

    def _wrong(self, name: str, error: OSError) -> RecordError:
        hint = ""
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = "; expected to be root, on a kernel that is not locked down"
        return RecordError(f"{self.path / name}: {error.strerror}{hint}")
