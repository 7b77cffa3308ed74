"""Counters and histograms, as Prometheus' families.

Not prometheus_client's own: those write files where PROMETHEUS_MULTIPROC_DIR is set, for another process to add up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import inf, isfinite

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

__all__ = ["Counter", "Histogram"]


class Counter:
    """A counter with labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self._described = (name, documentation)
        self._labels = labels
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, *labels: str, by: float = 1) -> None:
        """Count; by 0, the series is there from now on: Prometheus sees the next one as an increase."""
        self._values[labels] = self._values.get(labels, 0) + by

    def family(self) -> CounterMetricFamily:
        """Return what is counted so far."""
        family = CounterMetricFamily(*self._described, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class Histogram:
    """A histogram with labels, of seconds."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self._described = (name, documentation)
        self._labels = labels
        self._bounds = bounds
        self._names = [str(floatToGoString(bound)) for bound in (*bounds, inf)]  # type: ignore[no-untyped-call]
        #: how many are in each bucket alone, and the sum of all
        self._values: dict[tuple[str, ...], tuple[list[int], float]] = {}

    def observe(self, seconds: float | None, *labels: str) -> None:
        """Count a time, if it is one."""
        if seconds is None or not isfinite(seconds):
            return
        seconds = max(0.0, seconds)
        buckets, total = self._values.get(labels) or ([0] * len(self._names), 0.0)
        buckets[bisect_left(self._bounds, seconds)] += 1
        self._values[labels] = buckets, total + seconds

    def family(self) -> HistogramMetricFamily:
        """Return what is counted so far."""
        family = HistogramMetricFamily(*self._described, labels=self._labels)
        for labels, (buckets, total) in self._values.items():
            family.add_metric(labels, list(zip(self._names, accumulate(buckets), strict=True)), total)
        return family
