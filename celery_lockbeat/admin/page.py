"""The page for those who are logged in to Django's admin, with its permissions: an ASGI app, to be mounted beside Django's.

Promises: who is not logged in is sent to the admin's login, and who may not view all of it sees nothing. Who may only view has no address
that writes; what others do is done in the name of their user. Each request is judged anew.
"""

from __future__ import annotations

import io
from typing import Any, Final
from urllib.parse import quote, urlencode

from asgiref.sync import sync_to_async
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from celery_lockbeat.web import make_app
from celery_lockbeat.web.guard import Rooted

__all__ = ["staff_page"]

#: Who has these sees the page, and who has those, too, does something there.
VIEWS: Final = ("lockbeat.view_lock", "lockbeat.view_entry", "lockbeat.view_journalrecord")
CHANGES: Final = ("lockbeat.change_lock", "lockbeat.change_entry")

_USER: Final = "lockbeat_admin_user"


def staff_page(app: Any) -> ASGIApp:
    """Return the page of a Celery app, for the staff of a Django project that has celery_lockbeat.contrib.django installed."""
    return Rooted(_Staff(make_app(app), make_app(app, allow_changes=True, user=lambda scope: str(scope[_USER]))))


class _Staff:
    """Lets in by the session of the admin: to the one that only looks, or to the one that may change."""

    def __init__(self, looks: ASGIApp, changes: ASGIApp) -> None:
        self._looks = looks
        self._changes = changes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._looks(scope, receive, send)
            return
        app = await sync_to_async(self._app_for)(scope)
        await app(scope, receive, send)

    def _app_for(self, scope: Scope) -> ASGIApp:
        from django.db import close_old_connections  # noqa: PLC0415  this is imported before Django is set up

        # Django does so around its own requests
        close_old_connections()
        try:
            user = _user_of(scope)
            if not (user.is_active and user.is_staff):
                return _login(scope)
            if not user.has_perms(VIEWS):
                return PlainTextResponse(f"To see this page, {user.get_username()} needs {', '.join(VIEWS)}.", 403)
            scope[_USER] = user.get_username()
            return self._changes if user.has_perms(CHANGES) else self._looks
        finally:
            close_old_connections()


def _user_of(scope: Scope) -> Any:
    """Return the user of Django's session, or its nobody."""
    from django.contrib.auth import get_user  # noqa: PLC0415  as above
    from django.contrib.sessions.middleware import SessionMiddleware  # noqa: PLC0415
    from django.core.handlers.asgi import ASGIRequest  # noqa: PLC0415

    request = ASGIRequest(scope, io.BytesIO())
    SessionMiddleware(lambda _: None).process_request(request)
    return get_user(request)


def _login(scope: Scope) -> ASGIApp:
    from django.urls import reverse  # noqa: PLC0415  as above

    # what a script asks for, and what is sent, has no use for a form
    is_page = dict(scope["headers"]).get(b"sec-fetch-dest", b"document") == b"document"
    if scope["method"] not in ("GET", "HEAD") or not is_page:
        return PlainTextResponse("You are not logged in any more: load this page anew.", 403)
    here = quote(scope["path"])
    query = scope["query_string"].decode("ascii", "replace")
    # of what the page is mounted in, Django has the same root
    place = scope.get("app_root_path", "").rstrip("/") + reverse("admin:login")
    return RedirectResponse(f"{place}?{urlencode({'next': f'{here}?{query}' if query else here})}", 302)
