"""What is to happen to the system, from a seed: the same kinds in the same order with the same durations.

Whom a fault meets, and when exactly, is up to the run: it is a number here that is looked up among those who are there.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

#: kind -> how often, in each theme that it belongs to
KINDS: dict[str, dict[str, float]] = {
    "strike": {"beats": 8, "workers": 9, "all": 8, "deploys": 3, "elections": 6},
    "kill beat": {"beats": 2, "all": 1, "deploys": 1},
    "freeze beat": {"beats": 3, "all": 1},
    "set the clock": {"beats": 1, "deploys": 0.5},
    "deploy": {"deploys": 4, "all": 0.5},
    "kill child": {"workers": 6, "all": 3, "elections": 1},
    "freeze child": {"workers": 5, "all": 3},
    "kill worker": {"workers": 1, "all": 0.5},
    "freeze worker": {"workers": 1.5, "all": 1},
    "kill store": {"servers": 2, "all": 0.7, "elections": 2},
    "freeze store": {"servers": 2, "all": 0.7, "elections": 2},
    "fail over": {"servers": 2, "all": 0.7, "elections": 8},
    "kill broker": {"servers": 2, "all": 0.7},
    "freeze broker": {"servers": 2, "all": 0.7},
    "cut": {"network": 6, "all": 1.5},
    "delay": {"network": 3, "all": 1},
    "late answers": {"network": 3, "all": 1},
    "black hole": {"network": 2, "all": 1},
    "one way": {"network": 2, "all": 1},
    "full disk": {"workers": 1, "servers": 1, "all": 0.5},
}

THEMES = ("beats", "workers", "all", "network", "servers", "deploys")

#: Of a run with Sentinels: an election takes the place of the primary, and time.
WITH_ELECTIONS = ("elections", *THEMES, "elections")


@dataclass(frozen=True)
class Planned:
    """One fault: ``who`` and ``how`` in [0, 1) choose among what is there, ``seconds`` is how long it lasts."""

    kind: str
    who: float
    how: float
    seconds: float
    pause: float


class Plan:
    """An endless plan: bursts of one theme each, and between them time for all to be well again.

    Each burst has a chance of its own, so that it is the same however many faults there was time for before.
    """

    def __init__(self, seed: int, themes: tuple[str, ...] = THEMES) -> None:
        self.seed, self.themes = seed, themes

    def bursts(self) -> Iterator[tuple[str, Iterator[Planned]]]:
        """The theme of each burst, and as many faults as there is time for."""
        for number in itertools.count():
            turn, place = divmod(number, len(self.themes))
            themes = random.Random(f"{self.seed}/{turn}").sample(self.themes, len(self.themes))
            again = themes[:place].count(themes[place])
            chance = random.Random(f"{self.seed}/{turn}/{themes[place]}{again or ''}")
            yield themes[place], self._faults(themes[place], chance)

    @staticmethod
    def _faults(theme: str, chance: random.Random) -> Iterator[Planned]:
        kinds = [kind for kind, themes in KINDS.items() if theme in themes]
        while True:
            (kind,) = chance.choices(kinds, [KINDS[kind][theme] for kind in kinds])
            # around the ttls, of locks and of claims: most are shorter, some are longer
            seconds = chance.choice((0.1, 0.3, 0.6, 1.0, 1.0, 1.7, 2.4, 3.5))
            yield Planned(kind, chance.random(), chance.random(), seconds, chance.uniform(0.05, 0.6))
