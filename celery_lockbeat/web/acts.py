"""What may be done by the page: each act is asked for on a page of its own, done once, told, and in the journal with who did it.

Promises: nothing is done by a GET, nor by a form of somebody else's: a POST counts only with the token that this page has given this
browser, and where the browser says whence it comes, only from here. What a backfill would publish is shown before.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from celery_lockbeat.control import Backfill, ScheduledEntry, free_lock, schedules_of
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.insight.times import coming_of, moment_of
from celery_lockbeat.web.known import Known
from celery_lockbeat.web.words import cut, full

__all__ = ["ACTS", "COOKIE", "Act", "asked_by", "form_of", "new_token", "prepared"]

COOKIE: Final = "lockbeat_token"

#: Bytes of a form.
LARGEST: Final = 65_536

#: Ticks of a backfill whose times are shown, at its begin and its end.
SHOWN: Final = 5

Form = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Act:
    """Something that may be done: what it is called, what it asks for beside a name, and what it does.

    ``told`` says before what will be done, by what was asked for, in a line, and which in more of them; ``do`` does it, in the name
    of somebody, and says so.
    """

    name: str
    title: str
    button: str
    told: Callable[[Known, Form], str]
    do: Callable[[Known, Form, str], str]
    #: name, label, kind of input, hint
    fields: tuple[tuple[str, str, str, str], ...] = ()
    is_grave: bool = False


def prepared(name: str | None) -> Act:
    """Return an act by its name."""
    if name is None or name not in ACTS:
        raise HTTPException(400, f"act is none of {', '.join(ACTS)}")
    return ACTS[name]


# -- what is sent ------------------------------------------------------------------------------------------------------


def new_token(request: Request) -> str:
    """Return the token of this browser, or a new one."""
    known = request.cookies.get(COOKIE, "")
    return known if len(known) == 43 and known.isascii() else secrets.token_urlsafe(32)  # noqa: PLR2004  as these are


async def form_of(request: Request) -> dict[str, str]:
    """Read a form that this page has given this browser; of others HTTPException."""
    # browsers of our time say it; others send an origin with a POST
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site not in (None, "same-origin"):
        raise HTTPException(403, "This was sent by a page of somebody else's.")
    if site is None and origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "This was sent by a page of somebody else's.")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This is no form of this page.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise HTTPException(413, "This is more than a form has.")
    try:
        form = dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=50))
    except ValueError as exc:
        raise HTTPException(400, "This is no form of this page.") from exc
    token = request.cookies.get(COOKIE, "")
    if not token or not hmac.compare_digest(form.pop("token", "").encode(), token.encode()):
        raise HTTPException(403, "This form is too old, or none of this page: go back, and open it again.")
    return form


def asked_by(entry: ScheduledEntry, known: Known) -> str:
    """Name an entry."""
    return f"{cut(entry.name, 120)!r} of {known.hub.name or 'this app'}"


# -- acts --------------------------------------------------------------------------------------------------------------


def _entry(known: Known, form: Form) -> ScheduledEntry:
    entries, name = schedules_of(known.app), form.get("name", "")
    if name not in entries:
        raise HTTPException(404, f"Nothing is known of an entry {cut(name, 80)!r}.")
    return entries[name]


def _note(form: Form) -> str | None:
    return form.get("note", "").strip()[:500] or None


def _will_pause(known: Known, form: Form) -> str:
    return f"No tick of {asked_by(_entry(known, form), known)} is published any more, by any beat, until it is resumed."


def _pause(known: Known, form: Form, who: str) -> str:
    entry, until = _entry(known, form), form.get("until", "").strip()
    over = coming_of(until, known.app, "until") if until else None
    entry.pause(until=over, note=_note(form), who=who)
    return f"{cut(entry.name, 120)!r} is paused{f' until {full(over, known.app.timezone)}' if over else ''}."


def _will_resume(known: Known, form: Form) -> str:
    return f"The ticks of {asked_by(_entry(known, form), known)} are published again."


def _resume(known: Known, form: Form, who: str) -> str:
    entry = _entry(known, form)
    resumed = entry.resume(catchup=form.get("catchup") or None, who=who)
    return f"{cut(entry.name, 120)!r} is {'resumed' if resumed else 'not paused: nothing was done'}."


def _will_run(known: Known, form: Form) -> str:
    entry = _entry(known, form)
    return f"A beat publishes one tick of {asked_by(entry, known)} now. When it is due next stays as it is."


def _run(known: Known, form: Form, who: str) -> str:
    entry = _entry(known, form)
    claim = entry.run(note=_note(form), who=who)
    return f"A beat publishes {cut(entry.name, 120)!r}, run {claim.state.total_run_count}, as task {claim.task_id}."


def _will_skip(known: Known, form: Form) -> str:
    return f"The next ticks of {asked_by(_entry(known, form), known)} are passed over, so many as you say; 0: none any more."


def _skip(known: Known, form: Form, who: str) -> str:
    entry, count = _entry(known, form), form.get("count", "").strip()
    if not (count.isascii() and count.isdigit() and len(count) < 7):  # noqa: PLR2004  digits
        raise HTTPException(400, "count is no whole number up to 999999")
    entry.skip(int(count), note=_note(form), who=who)
    return f"The next {int(count)} ticks of {cut(entry.name, 120)!r} are passed over."


def _span(known: Known, form: Form) -> tuple[datetime, datetime]:
    return moment_of(form.get("from", ""), known.app, "from"), moment_of(form.get("to", ""), known.app, "to")


def _will_backfill(known: Known, form: Form) -> str:
    entry = _entry(known, form)
    if not form.get("from") or not form.get("to"):
        return f"Each tick of {asked_by(entry, known)} is published that was due in a time. First you see which."
    dues = entry.dues(*_span(known, form))
    if not dues:
        return f"{cut(entry.name, 120)!r} was not due in this time."
    shown = [full(due, known.app.timezone) for due in dues]
    some = shown if len(shown) <= 2 * SHOWN else [*shown[:SHOWN], "...", *shown[-SHOWN:]]
    return "\n".join([f"A dry run: {len(dues)} ticks of {asked_by(entry, known)} would be published:", *some])


def _backfill(known: Known, form: Form, who: str) -> str:
    entry = _entry(known, form)
    asked = entry.backfill(*_span(known, form), note=_note(form), who=who)
    return f"The beats publish {asked.total} ticks of {cut(entry.name, 120)!r}, one after the other."


def _will_cancel(known: Known, form: Form) -> str:
    entry = _entry(known, form)
    under_way = [each for each in entry.backfills() if not each.cancelled]
    if not under_way:
        raise HTTPException(404, f"No backfill of {cut(entry.name, 120)!r} is under way.")
    one = len(under_way) == 1
    what = f"{'The backfill' if one else f'All {len(under_way)} backfills'} of {asked_by(entry, known)}"
    return f"{what} {'ends' if one else 'end'} here: {_far(under_way)} published, and no more of them are. Those that are published run."


def _cancel(known: Known, form: Form, who: str) -> str:
    entry = _entry(known, form)
    cancelled = entry.cancel_backfills(who=who)
    if not cancelled:
        raise LockbeatError(f"no backfill of {entry.name!r} is under way any more: nothing was done")
    return f"No more ticks are published of what was asked for {cut(entry.name, 120)!r}: {_far(cancelled)} published."


def _far(backfills: Sequence[Backfill]) -> str:
    """Say how far backfills are."""
    return f"{' and '.join(f'{each.published} of {each.total}' for each in backfills)} ticks are"


def _will_release(known: Known, form: Form) -> str:  # noqa: ARG001  as the others
    return (
        f"The lock {cut(form.get('key', ''), 120)!r} is taken from who holds it. A run that is still going on under it goes on until it "
        "ends or is told, at its next renewal, that its lock is lost; until then another may run beside it."
    )


def _release(known: Known, form: Form, who: str) -> str:
    key, holder = form.get("key", ""), form.get("holder", "")
    freed = free_lock(known.app, key, holder=holder, who=who)
    if not freed:
        raise LockbeatError(f"{key!r} is not held by that holder any more: nothing was done")
    return f"{cut(key, 120)!r} is free; it was held by {cut(freed[0][1].description, 200)}."


_NOTE: Final = ("note", "why, for whoever wonders", "text", "")
_ACTS: Final = (
    Act(
        "pause",
        "Pause",
        "Pause it",
        _will_pause,
        _pause,
        (("until", "until", "text", "2h, 18:00, or a time in ISO 8601; empty: until it is resumed"), _NOTE),
    ),
    Act(
        "resume",
        "Resume",
        "Resume it",
        _will_resume,
        _resume,
        (("catchup", "ticks that were passed over", "catchup", "as the entry says, unless you do"),),
    ),
    Act("run", "Run now", "Run it now", _will_run, _run, (_NOTE,)),
    Act("skip", "Skip", "Skip them", _will_skip, _skip, (("count", "how many", "number", ""), _NOTE)),
    Act(
        "backfill",
        "Backfill",
        "Publish them",
        _will_backfill,
        _backfill,
        (
            ("from", "from", "text", "2h ago, 03:00, or a time in ISO 8601"),
            ("to", "to", "text", "the same, or now"),
            _NOTE,
        ),
    ),
    Act("cancel", "Cancel the backfill", "Publish no more", _will_cancel, _cancel),
    Act("release", "Release", "Take it away", _will_release, _release, is_grave=True),
)
ACTS: Final[Mapping[str, Act]] = {act.name: act for act in _ACTS}
