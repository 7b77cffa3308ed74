"""The tables of what operators want of entries; on PostgreSQL its functions, and a claim that obeys."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, put_back, run

FUNCTIONS = (
    "lockbeat_take_over_or_pass, lockbeat_pass, lockbeat_passes, lockbeat_over, lockbeat_cancel,"
    " lockbeat_asked, lockbeat_ask, lockbeat_keep, lockbeat_flags, lockbeat_skip, lockbeat_resume, lockbeat_pause,"
    " lockbeat_flag_told"
)


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0007")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it: the claim becomes again what it was."""
    put_back(schema_editor, "0006", "lockbeat_claim_ticks")
    drop(schema_editor, functions=FUNCTIONS, tables=("flag", "request"))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0006_claims"),)
    operations = (migrations.RunPython(create, undo),)
