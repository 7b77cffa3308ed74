"""In the admin of django-celery-beat's rows: a link from each to its runs."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.urls import NoReverseMatch
from django_celery_beat.admin import PeriodicTaskAdmin

from celery_lockbeat.admin.entries import link_to_runs

__all__ = ["runs"]


@admin.display(description="runs")  # type: ignore[untyped-decorator]
def runs(row: Any) -> str:
    """Return the link; a row that is being added has none."""
    try:
        return link_to_runs(row.name, "runs") if row.pk is not None else ""
    except NoReverseMatch:  # a project's own site, without our pages
        return ""


# each admin of rows is this one, or made of it
_first, *_others = PeriodicTaskAdmin.list_display
# the others may be scrolled out of sight
PeriodicTaskAdmin.list_display = (_first, runs, *_others)
PeriodicTaskAdmin.readonly_fields = (*PeriodicTaskAdmin.readonly_fields, runs)
PeriodicTaskAdmin.fieldsets = (*PeriodicTaskAdmin.fieldsets, ("What became of its ticks", {"fields": (runs,)}))
