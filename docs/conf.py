"""How Sphinx builds these pages."""

from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from tdpmmu.notebook import check
from tdpmmu.scenarios.showing import verdict_report

project = "tdpmmu"
author = "the tdpmmu authors"
copyright = "the tdpmmu authors; GPL-2.0-or-later"
release = version = version_of("tdpmmu")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
suppress_warnings: list[str] = []

html_theme = "furo"
html_title = f"tdpmmu {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
highlight_language = "none"


def write_sample(app: Any) -> None:
    """The report that docs/report.md links to, explored as the pages are built."""
    verdict = check(kernel="5.12-rc4", legacy=0)
    sample = Path(app.outdir) / "sample" / "report.html"
    sample.parent.mkdir(parents=True, exist_ok=True)
    sample.write_text(verdict_report(verdict), encoding="utf-8")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_sample)
