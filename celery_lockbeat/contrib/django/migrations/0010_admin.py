"""What Django needs to know of locks and entries for the permissions of its admin: nothing of the database changes."""

from __future__ import annotations

from django.db import migrations


def _proxy(name: str, plural: str) -> migrations.CreateModel:
    options = {
        "verbose_name": name.lower(),
        "verbose_name_plural": plural,
        "proxy": True,
        "default_permissions": ("view", "change"),
        "indexes": [],
        "constraints": [],
    }
    return migrations.CreateModel(name=name, fields=[], options=options, bases=("lockbeat.journalrecord",))


class Migration(migrations.Migration):  # type: ignore[misc]
    """Beats and workers need it not: they start without."""

    dependencies = (("lockbeat", "0009_line"),)
    operations = (_proxy("Lock", "locks"), _proxy("Entry", "entries"))
