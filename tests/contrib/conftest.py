"""Worlds of one beat and of three. A module says with its ``make_world`` whose entries they run."""

from __future__ import annotations

import importlib

import pytest
from servers import need_django


@pytest.fixture
def make_redbeat_world(server, tmp_path, monkeypatch):
    with importlib.import_module("redbeat_worlds").worlds(server, tmp_path, monkeypatch) as make:
        yield make


@pytest.fixture
def make_django_world(tmp_path, monkeypatch):
    need_django()
    with importlib.import_module("django_worlds").worlds(tmp_path, monkeypatch) as make:
        yield make


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.soak, id="one beat"), pytest.param(3, id="three beats")])
def world(request, make_world):
    return make_world(request.param)
