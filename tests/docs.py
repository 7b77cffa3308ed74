"""The code in the documentation, to be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_of(page: str, heading: str | None = None) -> str:
    """All Python of a page, or of one of its sections."""
    text = (DOCS / page).read_text()
    if heading is not None:
        (text,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = _BLOCK.findall(text)
    assert blocks, f"no Python in {page}, {heading}"
    return "\n".join(blocks)


def run(page: str, heading: str | None = None, *, url: str = "") -> dict[str, Any]:
    """Run it, with the server at ``url`` for the one that it names; return what it has defined."""
    code = python_of(page, heading).replace("redis://localhost:6379/0", url)
    scope: dict[str, Any] = {"__name__": "docs"}
    exec(compile(code, f"{page}: {heading}", "exec"), scope)
    return scope
