"""A config service, and an environment without the variables of the person who runs the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .config_service import ConfigService, config_service


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MESHLIB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConfigService]:
    """A running config service, which commands find as in the folder of its mesh.yaml."""
    with config_service(tmp_path) as running:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MESHLIB_CONTROL_URLS", running.url)
        yield running
