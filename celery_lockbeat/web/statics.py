"""The files that a page loads: a style sheet, a script and an icon of our own, under a name that changes with them.

Promises: these and no other files are served, whatever is asked for.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["STATICS", "digest", "serve_static"]

#: Each file, and what it is.
STATICS: Final = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


@lru_cache(maxsize=1)
def _contents() -> dict[str, bytes]:
    place = files("celery_lockbeat.web") / "static"
    return {name: (place / name).read_bytes() for name in STATICS}


@lru_cache(maxsize=1)
def digest() -> str:
    """Return a name of what is in all of them."""
    return hashlib.sha256(b"".join(_contents().values())).hexdigest()[:12]


async def serve_static(request: Request) -> Response:
    """Answer with a file, which never becomes another. It waits for no thread: without it nothing is seen of a page."""
    name = request.path_params["name"]
    if name not in STATICS or request.path_params["digest"] != digest():
        raise HTTPException(404)
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(_contents()[name], media_type=STATICS[name], headers=headers)
