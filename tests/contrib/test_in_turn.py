"""Our beats in turn with those of the scheduler that ours stands on. Time is simulated."""

from __future__ import annotations

from itertools import pairwise

import pytest


@pytest.fixture(params=["redbeat", "django"])
def make_world(request):
    return request.getfixturevalue(f"make_{request.param}_world")


def test_switching_to_the_plain_scheduler_and_back_loses_and_doubles_nothing(world):
    world.add(every=10)
    world.start()
    for _ in range(3):
        world.run(34)
        world.stop()
        world.plain(33)
        world.start()
    world.run(20)
    times = world.times()
    gaps = [round(b - a, 1) for a, b in pairwise(times)]
    assert len(times) == pytest.approx(220 / 10, abs=1)
    assert all(9.5 <= gap <= 11.5 for gap in gaps), gaps
    assert world.total_run_count() == len(times)
