"""The docs site: ``python -m sphinx -W docs docs/_build``.

Sphinx with furo, for what will be kept up: MkDocs 1 has had no release since 2024 and its successor drops what themes need, Material
for MkDocs ends with November 2026 in favour of a tool that has no stable version. Sphinx is what Celery, kombu, redis-py and Python
itself build their docs with, and it reads docstrings by itself. The pages stay Markdown, which a repository's host shows as well.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "celery-lockbeat"
author = "celery-lockbeat contributors"
project_copyright = author
release = version_of(project)
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "lockbeat_site"]
exclude_patterns = ["_build", "_ext"]
# links to headings, as a repository's host makes them
myst_heading_anchors = 4
# JSON and logs that are cut with "..." are shown as they are
suppress_warnings = ["misc.highlighting_failure"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sourcelink = False
