"""How Sphinx builds these pages."""

from importlib.metadata import version as version_of

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
