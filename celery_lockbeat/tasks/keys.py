"""The lock keys of a call: ``lock_key`` of its task, filled with the call's arguments.

Promises: calls with equal arguments have the same keys, in whatever way the arguments were given; a placeholder for which
the task has no argument is refused when the task is defined, and a key that is empty or no string when it is made. Several keys
are sorted, and each is there once.
"""

from __future__ import annotations

import inspect
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from celery_lockbeat.options import LockOptions, check_key, check_keys, refusal
from celery_lockbeat.tasks.keytext import PLAIN, Nameless, text_of

__all__ = ["KeysOf", "bound_keys"]

_FORMATTER: Final = string.Formatter()

KeysOf = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[str, ...]]
_KeyOf = Callable[[Any, tuple[Any, ...], dict[str, Any]], str]


def bound_keys(options: LockOptions, run: Callable[..., Any], *, owner: str) -> KeysOf:
    """Make the function of (task, args, kwargs) that tells a call's lock keys, for a task ``owner`` with the body ``run``.

    Raises ConfigurationError, now for a placeholder that ``run`` has no argument for, and at the call for a key that
    is empty or no string.
    """
    template = options.key
    setting = f"lock_key of {owner}"
    if callable(template):
        return _called_keys(setting, template, run)
    if template is None:
        return lambda *_call: (owner,)
    if isinstance(template, tuple):
        several = [_key_of(setting, each, run) for each in template]
        return lambda *call: check_keys(setting, [key_of(*call) for key_of in several])
    constant = _constant_key(setting, template)
    if constant is not None:
        return lambda *_call: (constant,)
    key_of = _key_of(setting, template, run)
    return lambda *call: (key_of(*call),)


def _constant_key(setting: str, template: str) -> str | None:
    """Return the key that all calls have; None: it is made of their arguments."""
    if any(field is not None for _, field, _, _ in _FORMATTER.parse(template)):
        return None
    # format() all the same: {{ and }} are its way to write a brace
    return check_key(setting, template.format())


def _key_of(setting: str, template: str, run: Callable[..., Any]) -> _KeyOf:
    constant = _constant_key(setting, template)
    if constant is not None:
        return lambda _task, _args, _kwargs: constant
    signature = inspect.signature(run)
    _check_placeholders(setting, template, signature)
    names = signature.parameters.keys()
    parts = list(_FORMATTER.parse(template))
    roots = set(_roots(template))
    direct = all(name is None or name in roots for _, name, _, _ in parts)
    plain = all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in signature.parameters.values())

    def formatted(_task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if not plain or len(args) + len(kwargs) != len(names) or arguments.keys() != names:
            # binding by the signature is ten times slower: only where there are defaults to fill in, or *args and the like
            arguments = _named_arguments(signature, args, kwargs)
        try:
            for root in roots:
                if type(arguments[root]) not in PLAIN or not direct:
                    return check_key(setting, _filled(setting, template, parts, arguments))
            return check_key(setting, template.format(**arguments))
        except (KeyError, AttributeError, IndexError, ValueError, TypeError) as exc:
            raise refusal(setting, template, f"what the arguments of this call can fill ({exc!r})") from exc

    return formatted


def _called_keys(setting: str, function: Callable[..., Any], run: Callable[..., Any]) -> KeysOf:
    """Of a ``lock_key`` that is a function of the task's arguments, or of the task and them."""
    if inspect.iscoroutinefunction(function):
        raise refusal(setting, function, "a function that returns the key, or keys, not a coroutine")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # one of C, which does not tell
        signature = inspect.Signature([inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)])
    takes_task = next(iter(signature.parameters), None) == "self"
    before = (None,) if takes_task else ()
    _check_parameters(setting, function, signature, inspect.signature(run), before)

    def called(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        try:
            keys = function(task, *args, **kwargs) if takes_task else function(*args, **kwargs)
        except TypeError as exc:
            if _takes(signature, (*before, *args), kwargs):
                raise  # its own
            raise refusal(setting, function, f"a function of the arguments of this call ({exc})") from exc
        return check_keys(setting, keys)

    return called


def _check_parameters(
    setting: str, function: Any, signature: inspect.Signature, run: inspect.Signature, before: tuple[Any, ...]
) -> None:
    """Refuse a function that no call of ``run`` with what it must be given fits, be that by position or by name."""
    needed = [p for p in run.parameters.values() if p.default is p.empty]
    by_name = {p.name for p in needed if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    by_position = [p.name for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    only_by_name = [p.name for p in needed if p.kind is p.KEYWORD_ONLY]
    only_by_position = [p.name for p in needed if p.kind is p.POSITIONAL_ONLY]
    if not (
        _takes(signature, (*before, *by_position), dict.fromkeys(only_by_name))
        or _takes(signature, (*before, *only_by_position), dict.fromkeys(by_name))
    ):
        raise refusal(setting, function, f"a function of the arguments of the task: lambda {_shown(run)}: ...")


def _takes(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _shown(signature: inspect.Signature) -> str:
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(plain))[1:-1]


def _check_placeholders(setting: str, template: str, signature: inspect.Signature) -> None:
    named = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    any_name = len(named) < len(signature.parameters)
    allowed = ", ".join(f"{{{name}}}" for name in named) or "no placeholder, for it takes no arguments"
    for root in _roots(template):
        if root not in named and not (any_name and root.isidentifier()):
            raise refusal(setting, template, f"the arguments of the task, by name: {allowed}")


def _roots(template: str) -> Iterator[str]:
    """The arguments that a template starts from: ``user`` of ``{user.id}``, ``rows`` and ``n`` of ``{rows[0]:>{n}}``."""
    for _, name, spec, _ in _FORMATTER.parse(template):
        if name is not None:
            yield re.split(r"[.\[]", name, maxsplit=1)[0]
            yield from _roots(spec or "")


def _filled(
    setting: str,
    template: str,
    parts: Iterable[tuple[str, str | None, str | None, str | None]],
    arguments: dict[str, Any],
) -> str:
    """What ``template.format()`` makes, but with one text for what is equal."""
    texts = []
    for literal, name, spec, conversion in parts:
        texts.append(literal)
        if name is None:
            continue
        value, _ = _FORMATTER.get_field(name, (), arguments)
        try:
            if not spec:
                texts.append(text_of(value, conversion))
            else:
                texts.append(format(text_of(value, conversion) if conversion else value, spec.format(**arguments)))
        except Nameless as exc:
            allowed = (
                f"what has a text of its own, such as an attribute; {{{name}}} holds a {exc}, which has but its address"
            )
            raise refusal(setting, template, allowed) from None
    return "".join(texts)


def _named_arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name)
    return arguments
