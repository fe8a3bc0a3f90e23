"""A real Chromium for tests: the system's, installed if the tests may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
NEEDED = "TDPMMU_NEED_BROWSER"
"""Set where a test that finds no browser is to fail, as in CI."""


def chromium() -> str:
    """The path of the system's Chromium; skips the test, or fails it, if there is none."""
    for attempt in (find, install):
        path = attempt()
        if path is not None:
            return path
    why = "no Chromium here, and apt-get could not install one"
    if os.environ.get(NEEDED):
        pytest.fail(f"{why}, but {NEEDED} is set")
    pytest.skip(why)


def find() -> str | None:
    """An installed one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def install() -> str | None:
    """Debian's, if that is possible."""
    if os.geteuid() or shutil.which("apt-get") is None:
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ("install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core")
    for command in (("apt-get", "update", "-qq"), ("apt-get", *options)):
        subprocess.run(command, env=environment, capture_output=True, timeout=600, check=False)
    return find()


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser of its own, with nothing from earlier runs."""
    path = chromium()
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS, env={
            **os.environ, "HOME": str(profile), "XDG_CONFIG_HOME": str(profile),
        })  # fmt: skip
        yield found
        found.close()
