"""A list in the admin of what is in no table: locks and entries are where the app's stores are, Redis or a database.

Promises: a hundred rows on a page, however many there are. Nothing is done by a GET, nor by whoever may only view; what is to be done is
asked for on a page of its own, is done once, in the user's name, and told. A store that does not answer is a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

from celery import current_app
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import path, reverse

from celery_lockbeat.admin.words import shown
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.insight.redaction import redactor

__all__ = ["Act", "Listed", "Row", "app_of_the_project"]

PER_PAGE: Final = 100

#: So much of what is searched for counts.
LONGEST: Final = 200


def app_of_the_project() -> Any:
    """Return the Celery app of this process."""
    return current_app._get_current_object()


class Row(NamedTuple):
    """What is listed: by which value it is chosen ("": nothing can be done with it), what it is called, and its other columns."""

    value: str
    name: str
    cells: Sequence[str]


@dataclass(frozen=True)
class Act:
    """Something that may be done with what is chosen: what it asks for, and what it does.

    ``do(app, values, form, who)`` yields what was done, or a LockbeatError for what was not.
    """

    name: str
    title: str
    button: str
    warns: str
    do: Callable[[Any, Sequence[str], Mapping[str, Any], str], Iterable[str | LockbeatError]]
    #: tells what is called so in a list
    named: Callable[[str], str]
    form: type[forms.Form] = forms.Form
    is_grave: bool = False


class Listed(admin.ModelAdmin):  # type: ignore[misc]
    """The admin of a model without rows: it has a list, and what may be done with what is in it."""

    columns: ClassVar[Sequence[str]] = ()
    acts: ClassVar[Sequence[Act]] = ()
    finds: ClassVar[str] = ""

    def listed(self, app: Any, wanted: str) -> tuple[Sequence[Row], Sequence[str]]:
        """Return what contains ``wanted``, and what is to be said of it. Raises LockbeatError."""
        raise NotImplementedError

    # -- Django's ------------------------------------------------------------------------------------------------------

    def get_urls(self) -> list[Any]:
        """Return the addresses: of a list alone."""
        return [path("", self.admin_site.admin_view(self.changelist_view), name=f"{self._called}_changelist")]

    def has_add_permission(self, request: Any) -> bool:  # noqa: ARG002
        """Nobody: nothing of this kind is made here."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:  # noqa: ARG002
        """Nobody, as above."""
        return False

    # -- the list, and what is done ------------------------------------------------------------------------------------

    def changelist_view(self, request: Any, extra_context: Any = None) -> HttpResponse:  # noqa: ARG002
        """Show a page of the list, ask for what is to be done, or do it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._act(request)
        wanted, app = request.GET.get("q", "").strip()[:LONGEST], app_of_the_project()
        rows, said = self._asked_for(app, wanted)
        for each in said:
            self.message_user(request, each, messages.WARNING)
        page = Paginator(rows, PER_PAGE).get_page(request.GET.get("p"))
        context = {
            **self._about(request),
            "columns": self.columns,
            "page": page,
            "pages": page.paginator.get_elided_page_range(page.number),
            "acts": self.acts if self.has_change_permission(request) else (),
            "wanted": wanted,
            "finds": self.finds,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/lockbeat/list.html", context)

    def _asked_for(self, app: Any, wanted: str) -> tuple[Sequence[Row], Sequence[str]]:
        try:
            return self.listed(app, wanted)
        except LockbeatError as exc:
            return (), (shown(redactor(app)(exc)),)

    def _act(self, request: Any) -> HttpResponse:
        if not self.has_change_permission(request):
            raise PermissionDenied
        act = next((act for act in self.acts if act.name == request.POST.get("action")), None)
        values = list(dict.fromkeys(request.POST.getlist(ACTION_CHECKBOX_NAME)))[:PER_PAGE]
        if act is None or not values:
            self.message_user(request, "Nothing was done: choose rows, and what to do with them.", messages.WARNING)
            return redirect(self._list())
        form = act.form(request.POST if "post" in request.POST else None)
        if "post" in request.POST and form.is_valid():
            self._do(request, act, values, form.cleaned_data)
            return redirect(self._list())
        context = {
            **self._about(request),
            "title": act.title,
            "act": act,
            "form": form,
            "chosen": [(value, shown(act.named(value))) for value in values],
            "checkbox": ACTION_CHECKBOX_NAME,
            "list": self._list(),
        }
        return TemplateResponse(request, "admin/lockbeat/ask.html", context)

    def _do(self, request: Any, act: Act, values: Sequence[str], asked: Mapping[str, Any]) -> None:
        app = app_of_the_project()
        clean = redactor(app)
        for told in _until_it_fails(act.do(app, values, asked, request.user.get_username())):
            level = messages.ERROR if isinstance(told, LockbeatError) else messages.SUCCESS
            self.message_user(request, shown(clean(told)), level)

    def _list(self) -> str:
        return str(reverse(f"admin:{self._called}_changelist", current_app=self.admin_site.name))

    def _about(self, request: Any) -> dict[str, Any]:
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": str(self.opts.verbose_name_plural).capitalize(),
            "media": self.media,
        }

    @property
    def _called(self) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}"


def _until_it_fails(told: Iterable[str | LockbeatError]) -> Iterator[str | LockbeatError]:
    try:
        yield from told
    except LockbeatError as exc:
        yield exc
