"""The pytest plugin: fixtures for a project whose tasks are locked (docs/how-to/testing.md).

Promises: a suite that uses none of them pays for nothing and is changed in nothing. So this is a module of its own: the package
imports Celery, and pytest imports its plugins at each start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from celery_lockbeat.testing import Clock, OwnStore


@pytest.fixture
def lockbeat_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStore]:
    """Keep all locks of this process, of each app, in a store of this test alone."""
    from celery_lockbeat.testing import own_store  # noqa: PLC0415  it imports Celery

    with own_store(tmp_path_factory.mktemp("lockbeat")) as store:
        yield store


@pytest.fixture
def lockbeat_clock(lockbeat_store: OwnStore) -> Iterator[Clock]:
    """Let leases go by a clock that stands still, until it is told to advance."""
    with lockbeat_store.frozen() as clock:
        yield clock
