"""The policy in the admin of its row."""

from __future__ import annotations

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.forms import BaseInlineFormSet
from django_celery_beat.admin import PeriodicTaskAdmin

from celery_lockbeat.contrib.django.policies.models import EntryPolicy

__all__ = ["EntryPolicyInline"]


class _Formset(BaseInlineFormSet):  # type: ignore[misc]
    """Compares the policy with the schedule of its row, as the same form has it."""

    def clean(self) -> None:
        super().clean()
        for form in self.forms:
            if form.errors or not form.has_changed() or form.cleaned_data.get("DELETE"):
                continue
            form.instance.task = self.instance
            try:
                form.instance.clean()
            except ValidationError as exc:
                form.add_error(None, exc)


class EntryPolicyInline(admin.StackedInline):  # type: ignore[misc]
    """One policy, or none."""

    model = EntryPolicy
    formset = _Formset
    extra = 0
    max_num = 1
    classes = ("collapse",)


# each admin of rows is this one, or made of it
PeriodicTaskAdmin.inlines = (*PeriodicTaskAdmin.inlines, EntryPolicyInline)
