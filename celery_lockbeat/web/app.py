"""The page as an ASGI app: its routes, what each shows, and what goes with every answer.

Promises: no route writes, so other methods than GET and HEAD are refused, but for one where changes are allowed. All that is shown is escaped, and the browser is told to run
and load nothing but what this app serves. Pages are bounded. What goes wrong is a page that says so, and no traceback; a store
that is away is said, with what was known before.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from celery_lockbeat.control.acts import somebody
from celery_lockbeat.exceptions import ConfigurationError, LockbeatError, StoreUnavailable
from celery_lockbeat.web import drawing, views
from celery_lockbeat.web.acts import COOKIE, form_of, new_token, prepared
from celery_lockbeat.web.asking import name_of_entry
from celery_lockbeat.web.guard import USER, Headers, Rooted
from celery_lockbeat.web.known import Known
from celery_lockbeat.web.statics import digest, serve_static
from celery_lockbeat.web.words import cut

__all__ = ["Page"]

logger: Final = logging.getLogger("celery_lockbeat.web")

#: The views, in the order of the navigation: their paths and what they are called.
VIEWS: Final = {"": "Schedules", "runs": "Runs", "locks": "Locks", "beats": "Beats", "health": "Health"}

#: Bytes that are sent at once, at least: what is first to be seen of a long list is there before its end is made.
PIECE: Final = 65_536

FAILED: Final = "The page has failed here. What went wrong is in its log."

_View = Callable[[Known, Request, datetime], Mapping[str, Any]]


class Page:
    """The page of one Celery app. ``asgi`` is what is served."""

    def __init__(
        self, app: Any, *, allow_changes: bool = False, user: Callable[[Scope], str | None] | None = None
    ) -> None:
        self.app = app
        self._can = allow_changes
        self._user = user
        self.known = Known(app)
        self.hub = self.known.hub
        self._clean = self.known.clean
        self._templates = _environment()
        self.routes: Final[Sequence[Route]] = [
            Route("/", partial(self._view, "", "schedules.html", views.schedules), name="schedules"),
            Route("/entry", partial(self._view, "", "entry.html", views.entry)),
            Route("/entry/story", self._story),
            Route("/runs", partial(self._view, "runs", "runs.html", views.runs)),
            Route("/locks", partial(self._view, "locks", "locks.html", views.locks)),
            Route("/beats", partial(self._view, "beats", "beats.html", views.beats)),
            Route("/health", partial(self._view, "health", "health.html", views.health)),
            Route("/events", self._events),
            Route("/static/{digest}/{name}", serve_static),
            # of what writes there is nothing where nobody may
            *([Route("/act", self._ask), Route("/act", self._act, methods=["POST"])] if allow_changes else []),
        ]
        refusals: dict[Any, Any] = {
            LockbeatError: self._not_done,
            HTTPException: self._refused,
            StoreUnavailable: self._away,
            ConfigurationError: self._misconfigured,
            Exception: self._failed,
        }
        # around all of it: what goes wrong is answered outside of Starlette's own middleware
        self.asgi: Final[ASGIApp] = Headers(Rooted(Starlette(routes=self.routes, exception_handlers=refusals)))

    # -- answers -------------------------------------------------------------------------------------------------------

    def _view(self, here: str, template: str, view: _View, request: Request) -> Response:
        now = datetime.now(timezone.utc)
        shown = view(self.known, request, now)
        if "part" in request.query_params:
            return self._write(f"parts/{template}", request, now, here, shown)
        return self._write(template, request, now, here, shown)

    def _story(self, request: Request) -> Response:
        now = datetime.now(timezone.utc)
        name_of_entry(request)
        return self._write("parts/story.html", request, now, "", views.story(self.known, request, now))

    # -- acts ----------------------------------------------------------------------------------------------------------

    def _ask(self, request: Request) -> Response:
        form = dict(request.query_params)
        act = prepared(form.get("act"))
        with _told_by_the_user():
            told = act.told(self.known, form)
        token = new_token(request)
        shown = {"title": act.title, "act": act, "told": told, "form": _Form(form), "token": token}
        answer = self._write("act.html", request, _now(), _here(form), {**shown, **self._about(request, form)})
        path = request.scope.get("root_path", "").rstrip("/") or "/"
        answer.set_cookie(
            COOKIE, token, path=path, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return answer

    async def _act(self, request: Request) -> Response:
        form = await form_of(request)
        act, who = prepared(form.get("act")), self._who(request)
        with _told_by_the_user():
            told = await run_in_threadpool(act.do, self.known, form, who)
        shown = {"title": act.title, "act": act, "told": told, "who": cut(who, 120), **self._about(request, form)}
        return await run_in_threadpool(self._write, "done.html", request, _now(), _here(form), shown)

    def _who(self, request: Request) -> str:
        """Return in whose name something is done."""
        if self._user is None:
            return str(request.scope.get(USER) or f"{somebody()}, by the page")
        who = self._user(request.scope)
        if not who:
            raise HTTPException(403, "Nobody knows who you are, so nothing was done.")
        return cut(who, 120)

    def _about(self, request: Request, form: Mapping[str, str]) -> dict[str, str]:
        base = request.scope.get("root_path", "").rstrip("/")
        if form.get("key"):
            return {"about": cut(form["key"], 120), "back": f"{base}/locks"}
        name = form.get("name", "")
        return {"about": cut(name, 120), "back": f"{base}/entry{_query(name=name)}"}

    async def _events(self, _request: Request) -> Response:
        if self.hub.is_full:
            raise HTTPException(503, "too many look on at once")

        async def told() -> Any:
            yield "retry: 2000\n\n"
            async for _ in self.hub.news():
                yield "event: news\ndata: \n\n"
            if not self.hub.has_ended:
                yield "event: again\ndata: \n\n"

        return StreamingResponse(told(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    def _refused(self, request: Request, exc: Exception) -> Response:
        status, said = (exc.status_code, exc.detail) if isinstance(exc, HTTPException) else (500, "")
        headers = exc.headers if isinstance(exc, HTTPException) else None
        if status == 404 and said == "Not Found":  # noqa: PLR2004
            said = "There is no such page."
        return self._say(request, status, said, headers)

    def _away(self, request: Request, exc: Exception) -> Response:
        return self._say(request, 503, f"The store does not answer: {self._clean(exc)}")

    def _not_done(self, request: Request, exc: Exception) -> Response:
        return self._say(request, 409, self._clean(exc))

    def _misconfigured(self, request: Request, exc: Exception) -> Response:
        return self._say(request, 500, self._clean(exc))

    def _failed(self, request: Request, exc: Exception) -> Response:
        _note(request.url.path, exc)
        return self._say(request, 500, FAILED)

    def _say(self, request: Request, status: int, said: str, headers: Mapping[str, str] | None = None) -> Response:
        now = datetime.now(timezone.utc)
        shown = {"said": cut(said, 1_000), "status_code": status}
        if request.url.path.endswith("/story") or "part" in request.query_params:
            return self._write("parts/error.html", request, now, None, shown, status, headers)
        return self._write("error.html", request, now, None, shown, status, headers)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write(
        self,
        template: str,
        request: Request,
        now: datetime,
        here: str | None,
        shown: Mapping[str, Any],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        base = request.scope.get("root_path", "").rstrip("/")
        text = self._templates.get_template(template).generate(
            base=base,
            here=here,
            views=VIEWS,
            app_name=cut(self.hub.name or "without a name", 60),
            place=cut(self.hub.place, 120),
            can=self._can,
            statics=f"{base}/static/{digest()}",
            standing=self._standing(now),
            now=now,
            zone=self.app.timezone,
            **shown,
        )
        pieces = _pieces(text)
        # what goes wrong up to here is still a page of its own
        first = next(pieces)
        if len(first) < PIECE:
            return HTMLResponse(first, status, headers)
        rest = self._rest(pieces, request.url.path)
        return StreamingResponse(chain([first], rest), status, headers, media_type="text/html; charset=utf-8")

    def _rest(self, pieces: Iterator[bytes], path: str) -> Iterator[bytes]:
        try:
            yield from pieces
        except Exception as exc:  # noqa: BLE001  whatever it is: the status has been sent
            _note(path, exc)
            yield f'</table><p class="empty" role="alert"><strong>{FAILED}</strong></p>'.encode()

    def _standing(self, now: datetime) -> dict[str, Any]:
        """Say whether what is shown is what is."""
        try:
            with self.hub.model() as model:
                away = dict(model.away)
                is_read = model.is_read or not self.hub.has_journal
        except (LockbeatError, ConfigurationError) as exc:
            return {"state": "away", "since": now.timestamp(), "why": cut(self._clean(exc))}
        if away:
            why, since = min(away.values(), key=lambda each: each[1])
            return {"state": "away", "since": since.timestamp(), "why": cut(why)}
        return {"state": "live" if is_read else "reading", "since": now.timestamp(), "why": ""}


class _Form(dict[str, str]):
    """What was asked for; what was not is empty."""

    def __missing__(self, name: str) -> str:
        return ""


@contextlib.contextmanager
def _told_by_the_user() -> Iterator[None]:
    """Let what is refused within the block be what the user has asked for wrongly."""
    try:
        yield
    except ConfigurationError as exc:
        raise HTTPException(400, str(exc)) from exc


def _here(form: Mapping[str, str]) -> str:
    """Return the view from which an act was asked for."""
    return "locks" if form.get("key") else ""


def _note(path: str, exc: Exception) -> None:
    logger.error("the page failed at %s: %s", path, type(exc).__name__)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _pieces(parts: Iterator[str]) -> Iterator[bytes]:
    """Join what a template makes to pieces that are worth sending; there is one at least."""
    piece = b""
    for part in parts:
        # half of a character, which JSON can hold and no page
        piece += part.encode("utf-8", "replace")
        if len(piece) >= PIECE:
            yield piece
            piece = b""
    yield piece


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("celery_lockbeat.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"query": _query, "legend": drawing.legend}
    # or who looks first would wait for it
    for name in environment.list_templates():
        environment.get_template(name)
    return environment


def _query(**parameters: object) -> str:
    """Write the parameters of an address that are not empty."""
    told = [(name, str(value)) for name, value in parameters.items() if value not in ("", None)]
    return f"?{urlencode(told, errors='replace')}" if told else ""
