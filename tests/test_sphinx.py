"""The documentation builds without a warning, and no link in it leads nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """Links of a page, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in ("href", "src"):
                self.links.append(value)
            elif name == "id":
                self.anchors.add(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(out / "cache"),
         str(ROOT / "docs"), str(out / "html")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_page_is_built_and_can_be_found(built: Path) -> None:
    index = Page(built / "index.html")
    for source in (ROOT / "docs").glob("*.md"):
        assert (built / f"{source.stem}.html").exists()
        if source.stem != "index":
            assert f"{source.stem}.html" in index.links, f"{source.name} is in no table of contents"


def test_no_link_leads_nowhere(built: Path) -> None:
    pages = {path: Page(path) for path in built.glob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            target, anchor = urldefrag(link.partition("?")[0])
            file = (path.parent / unquote(target)).resolve() if target else path
            if not file.exists() or (file in pages and unquote(anchor) not in pages[file].anchors):
                broken.append(f"{path.name}: {link}")
    assert not broken, broken


def test_pages_load_nothing_from_elsewhere(built: Path) -> None:
    for path in built.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]*?(?:src|href)=\"([^\"]+)", path.read_text())
        assert not [one for one in loaded if urlparse(one).scheme in ("http", "https")], path.name


def test_the_reference_has_what_a_patch_overrides(built: Path) -> None:
    anchors = Page(built / "reference.html").anchors
    assert "tdpmmu.mmu.notifier.Notifier.invalidate_range_start" in anchors
    assert "tdpmmu.scenarios.question.ask" in anchors


def test_there_is_a_report_to_try(built: Path) -> None:
    assert "sample/report.html" in Page(built / "report.html").links
    sample = (built / "sample" / "report.html").read_text(encoding="utf-8")
    assert "stale-translation" in sample
    assert "flush-owed" in sample
