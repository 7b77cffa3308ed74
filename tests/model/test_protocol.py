"""The protocols of the beats and of the locks, searched whole; and docs/protocol.md, which says which code they model."""

from __future__ import annotations

from pathlib import Path

import pytest

from .beats import Beats
from .checker import explore
from .configurations import ASSUMED, HOLD, MUTATED, WHOLE
from .lines import Lines
from .locks import Locks
from .several import Several

# it runs nothing of the package
pytestmark = pytest.mark.no_cover

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "protocol.md"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", [*HOLD, *(pytest.param(what, marks=pytest.mark.soak) for what in WHOLE)])
def test_no_state_that_can_be_reached_is_broken(what):
    found = explore({**HOLD, **WHOLE}[what])
    assert found.broken is None, str(found)


@pytest.mark.parametrize("what", {**MUTATED, **ASSUMED})
def test_without_what_it_rests_on_the_protocol_breaks_and_the_shortest_way_there_is_told(what):
    model, broken = {**MUTATED, **ASSUMED}[what]
    found = explore(model)
    assert found.broken is not None
    assert found.broken.startswith(broken), str(found)
    assert 1 <= len(found.trace) <= 9, str(found)


def test_a_trace_tells_who_did_what():
    found = explore(MUTATED["no freeze check"][0])
    assert found.trace == ["beat A claims x1", "time passes", "beat B takes over x1", "beat A publishes x1"]
    assert str(found).startswith("BROKEN: freeze check: tick x1 is published by a beat that does not own its claim any")
    assert "  2. time passes" in str(found)


@pytest.mark.parametrize("without", ["token", "an end of a loss"])
def test_two_bodies_need_both_a_renewal_after_a_loss_and_one_by_name(without):
    found = explore(Locks(runs=2, copies=1, ttl=1, without=frozenset([without])))
    assert found.broken is None or not found.broken.startswith("P1"), str(found)


@pytest.mark.parametrize(
    "model",
    [
        Beats(beats=2, entries=1, ticks=2),
        Locks(workers=2, runs=1, copies=1, ttl=1),
        Locks(workers=2, runs=2, copies=1, ttl=1, limits=(1, 2)),
        Lines(runs=2, copies=1),
        Several(keys=((0, 1), (0,))),
    ],
)
def test_states_are_alike_only_if_what_can_follow_is(model):
    """The search visits one of all states that are alike; here it visits them all, and finds as many kinds."""
    kinds, seen, waiting = {}, {model.initial()}, [model.initial()]
    while waiting:
        state = waiting.pop()
        follows = {model.key(after) for _, after in model.steps(state)}
        assert kinds.setdefault(model.key(state), follows) == follows
        for _, after in model.steps(state):
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    assert len(kinds) == explore(model).states < len(seen)


class Countdown:
    """A model that is broken at 3."""

    def initial(self):
        return 5

    def steps(self, state):
        yield "nothing", state
        yield f"from {state}", max(0, state - 1)

    def key(self, state):
        return state

    def broken(self, state):
        return "three" if state == 3 else None


def test_the_search_finds_what_is_broken_by_the_shortest_way():
    found = explore(Countdown())
    assert (found.broken, found.trace, found.states) == ("three", ["from 5", "from 4"], 3)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_tells_every_mutation_and_every_assumption_that_is_searched():
    page = " ".join(PAGE.read_text().split())
    for what in [*MUTATED, *ASSUMED]:
        assert what in page, what


def test_every_script_of_the_store_has_its_step():
    page = PAGE.read_text()
    scripts = list((ROOT / "celery_lockbeat" / "stores" / "redis" / "lua").glob("*.lua"))
    assert len(scripts) > 10
    for script in scripts:
        assert f"`{script.name}`" in page, script.name
