"""On which of the stores a test runs that takes seconds on each of them."""

from __future__ import annotations

import pytest

KINDS = ("redis", "memory", "redis7", "cluster", "sqlite", "postgresql")

#: One of each way to be atomic: a script, a file, a server's transactions. The others are the same scripts in another server
#: and in a Cluster, and the file's statements through Django.
ONE_OF_EACH = ("redis", "memory", "postgresql")


def first_on(*kinds):
    """Run a test on these, and on the others as a soak."""
    others = [pytest.param(each, marks=pytest.mark.soak) for each in KINDS if each not in kinds]
    return pytest.mark.parametrize("kind", [*kinds, *others], indirect=True)
