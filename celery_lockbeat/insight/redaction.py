"""No password is in what the commands print: those of the app's settings are blotted out, as they are written and as they are meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

__all__ = ["passwords_in", "redactor"]


def redactor(app: Any) -> Callable[[object], str]:
    """Return what blots the app's passwords out of a text."""
    written = set(_passwords_of(app.conf))
    meant = {unquote(password) for password in written}
    forms = {form for password in written | meant for form in (password, repr(password)[1:-1]) if form}
    pattern = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))) or r"(?!)")
    return lambda text: pattern.sub("**", str(text))


def passwords_in(text: str) -> set[str]:
    """Return the passwords in a URL, or in a list of URLs."""
    # the list as one URL, too: a password may have what separates them
    credentials = {found for part in {text, *re.split("[;,]", text)} for found in re.findall(r"://(\S*)@", part)}
    return {each.partition(":")[2] for each in credentials} | set(re.findall(r"password=([^&;\s]+)", text))


def _passwords_of(settings: Any, name: str = "") -> Iterator[str]:
    if isinstance(settings, str):
        yield from {settings} if "password" in name.lower() else passwords_in(settings)
    elif isinstance(settings, Mapping):
        for key in list(settings):
            yield from _passwords_of(settings.get(key), str(key))
    elif isinstance(settings, (list, tuple)):
        for each in settings:
            yield from _passwords_of(each, name)
