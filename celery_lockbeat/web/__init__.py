"""The page: schedules, runs, locks and beats of an app, as an ASGI app.

    from celery_lockbeat.web import make_app

    fastapi_app.mount("/lockbeat", make_app(celery_app))

It is made of Starlette, which runs under any ASGI server and within any ASGI app, and of Jinja2, whose templates escape all that is
put into them. The browser's part is one small script of our own: it follows server-sent events, asks for what has changed of the
view that it shows, and puts that in its place. htmx would do the same, but evaluates code in attributes, for which a
Content-Security-Policy would have to be weaker. There is no build step, no database, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery_lockbeat.exceptions import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["make_app"]


def make_app(
    app: Any, *, allow_changes: bool = False, user: Callable[[Mapping[str, Any]], str | None] | None = None
) -> ASGIApp:
    """Return the page of a Celery app, to be mounted under any prefix. It only looks, unless it may ``allow_changes``.

    Who may see it is decided by what it is mounted in: it has no password of its own. ``user`` tells of the scope of a request who
    it is, for whatever is done is done in somebody's name; None: nothing is done. Raises ConfigurationError.
    """
    if allow_changes and user is None:
        raise ConfigurationError(
            "user is None; allowed with allow_changes: what tells by the scope of a request who it is"
        )
    from celery_lockbeat.web.app import Page  # noqa: PLC0415  Starlette is an extra

    return Page(app, allow_changes=allow_changes, user=user).asgi
