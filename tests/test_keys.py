"""The lock keys that are made of a call's arguments: one for equal arguments, and what they ever were."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import json
import subprocess
import sys
from collections import Counter, OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lockbeat import ConfigurationError, LockedTask, TaskSkipped, current_lock
from celery_lockbeat.options import LockOptions
from celery_lockbeat.tasks.keys import bound_keys
from celery_lockbeat.tasks.keytext import text_of  # noqa: F401  for another process


def key(template, *args, **kwargs):
    (key,) = bound_keys(LockOptions(key=template), lambda x, y=None: None, owner="it")(None, args, kwargs)
    return key


class Color(enum.Enum):
    RED = 1


class Status(str, enum.Enum):
    OPEN = "open"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Filter:
    tags: set
    by: dict = field(default_factory=dict)
    cache: object = field(default=None, repr=False)


@dataclass
class Told:
    tags: set

    def __repr__(self) -> str:
        return "told"


Point = namedtuple("Point", "x y")  # noqa: PYI024


class Bare:
    def __init__(self, id=7):  # noqa: A002
        self.id = id


class Named:
    def __str__(self) -> str:
        return "named"


class Holder:
    """Has a repr, of what has none."""

    def __repr__(self) -> str:
        return f"<Holder of {Bare()!r}>"


# -- equal arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        dict,
        UserDict,
        MappingProxyType,
        Counter,
        lambda value: defaultdict(int, value),
        lambda value: [{"in": value}],
        lambda value: (value,),
        lambda value: Point(value, 1),
        lambda value: Filter(set(), value),
        lambda value: {"deep": {"deeper": [value, {2, 1}]}},
    ],
)
@pytest.mark.parametrize("template", ["k:{x}", "k:{x!r}", "k:{x!s}", "k:{x!a}"])
def test_equal_mappings_are_one_key_in_whatever_order_they_came(make, template):
    items = [("b", 2), ("a", 1), ("c", 3)]
    keys = {key(template, make(dict(order))) for order in itertools.permutations(items)}
    assert len(keys) == 1
    assert "'a': 1, 'b': 2, 'c': 3" in keys.pop()


def test_equal_sets_are_one_key_in_every_process():
    """Their order hangs on the seed of the hashes of strings, another in each process."""
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; from test_keys import Filter, text_of\n"
        "names = {'a', 'b', 'c', 'd', 'e'}\n"
        "print([text_of(x) for x in (names, frozenset(names), [names], {'n': names}, Filter(names))])"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    told = {
        subprocess.run(
            [sys.executable, "-c", program, *paths],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1
    assert "{'a', 'b', 'c', 'd', 'e'}" in told.pop()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({10, 9, 2}, "{2, 9, 10}"),
        ({10: "b", 9: "a"}, "{9: 'a', 10: 'b'}"),
        ({"b", 1, None}, "{'b', 1, None}"),
        ({frozenset({2}), frozenset({1, 2}), frozenset({1})}, "{frozenset({1, 2}), frozenset({1}), frozenset({2})}"),
        (set(), "set()"),
        (frozenset(), "frozenset()"),
        (frozenset({2, 1}), "frozenset({1, 2})"),
        ({}, "{}"),
        (Filter({"b", "a"}, {"z": 1, "y": 2}, Bare()), "Filter(tags={'a', 'b'}, by={'y': 2, 'z': 1})"),
        (Told({1}), "told"),
        (Status.OPEN, "open"),
        (Level.HIGH, "3"),
        (Color.RED, "Color.RED"),
        ([Color.RED], "[<Color.RED: 1>]"),
        (Named(), "named"),
    ],
)
def test_each_value_has_one_text(value, text):
    assert key("{x}", value) == text


# -- what keys ever were -----------------------------------------------------------------------------------------------

NOW = dt.datetime(2026, 11, 27, 20, 30, tzinfo=dt.timezone.utc)
OF_OLD = [
    "text", "ünï", "", "<object at 0x7f00>", 7, -1, True, None, 1.5, float("inf"), 1j, b"bytes", Decimal("1.50"),
    Fraction(1, 3), UUID(int=7), NOW, NOW.date(), NOW.time(), dt.timedelta(hours=3), Color.RED, Level.HIGH,
    [], [1, "a", None, [2.5, (3,)]], (), (1,), (1, 2), {}, {"a": 1, "b": [NOW]}, {1: 2, 10: 3}, OrderedDict(b=1, a=2),
    Point(1, "y"), Counter(a=1), MappingProxyType({"a": 1}), Named(), range(3), ValueError("no"), int, "a" * 300,
]  # fmt: skip


@pytest.mark.parametrize("value", OF_OLD, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("template", ["k:{x}", "k:{x!r}", "{{{x!s}}}:{y}", "{x!a}"])
def test_a_key_is_what_it_ever_was(value, template):
    if "'y'" in repr(value) and template == "k:{x!r}":
        assert key(template, value) == "k:Point(x=1, y='y')"
    if value == "" and template == "{x!s}":
        return
    if isinstance(value, Named) and template in ("k:{x!r}", "{x!a}"):
        with pytest.raises(ConfigurationError):
            key(template, value)
        return
    assert key(template, value) == template.format(x=value, y=None)


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates() | st.uuids()


@given(st.recursive(plain, lambda inner: st.lists(inner) | st.tuples(inner, inner)))
def test_without_mappings_and_sets_a_key_is_what_it_ever_was(value):
    assert key("k:{x}:{x!r}", value) == f"k:{value}:{value!r}"


@given(st.dictionaries(st.text(), plain))
def test_a_mapping_in_the_order_of_its_names_makes_the_key_that_it_ever_made(value):
    ordered = {name: value[name] for name in sorted(value)}
    assert key("k:{x}", value) == f"k:{ordered}"


@pytest.mark.parametrize(
    ("template", "value", "expected"),
    [
        ("{x:>5}", 7, "    7"),
        ("{x:%Y-%m}", NOW, "2026-11"),
        ("{x[id]}", {"id": 7, "b": 1}, "7"),
        ("{x[tags]}", {"tags": {"b", "a"}}, "{'a', 'b'}"),
        ("{x[0]}:{x[1]!r:>4}", ["a", "b"], "a: 'b'"),
        ("{x.id:0{y}}", Bare(), "007"),
        ("{x.year}", NOW, "2026"),
        ("{x.id}", Bare(Bare(8)), None),
        ("{x.id.id}", Bare(Bare(8)), "8"),
    ],
)
def test_formats_items_and_attributes_work_as_they_did(template, value, expected):
    if expected is None:
        with pytest.raises(ConfigurationError, match=r"\{x\.id\} holds a test_keys\.Bare"):
            key(template, value, 3)
    else:
        assert key(template, value, 3) == expected


def test_a_direct_call_and_a_message_make_one_key_of_an_enum():
    assert key("{x}", Status.OPEN) == key("{x}", json.loads(json.dumps(Status.OPEN)))


# -- what has no text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        Bare(),
        [Bare()],
        {"a": Bare()},
        {Bare()},
        (1, Bare()),
        Point(1, Bare()),
        Holder(),
        lambda: 1,
        Filter(Bare()),
    ],
)
def test_what_has_no_text_of_its_own_is_refused_at_the_call_by_name(value):
    expected = r"lock_key of it is 'k:\{x\}'; allowed: what has a text of its own.*\{x\} holds a [\w.]+, which has but"
    with pytest.raises(ConfigurationError, match=expected):
        key("k:{x}", value)


def test_equal_arguments_exclude_each_other_and_nameless_ones_never_run(make_app):
    app = make_app(lockbeat_driver="memory")

    @app.task(base=LockedTask, name="it", lock_key="k:{by}")
    def body(by, inner=None):
        if inner is not None:
            with pytest.raises(TaskSkipped):
                body(inner)
        return current_lock().key

    assert body({"b": 1, "a": {2, 1}}, {"a": {1, 2}, "b": 1}) == "k:{'a': {1, 2}, 'b': 1}"
    assert isinstance(body.apply((Bare(),)).result, ConfigurationError)
