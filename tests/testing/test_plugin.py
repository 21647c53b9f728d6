"""The pytest plugin, in a pytest of its own, as a project that installed meshlib runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(folder: Path, source: str, *options: str) -> str:
    """What pytest prints about one file of tests; the plugin is loaded by name, whether or not it is installed."""
    (folder / "test_inside.py").write_text(source)
    (folder / "mesh.yaml").write_text("version: 1\nmesh: shop\nservices: {inventory: {}}\n")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(root)}
    environment.pop("MESHLIB_CONFIG", None)
    command = [sys.executable, "-m", "pytest", "-p", "meshlib.testing.plugin", "-p", "no:cacheprovider", "-W", "error"]
    ended = subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return ended.stdout + ended.stderr


FIXTURES = """
def test_factory(mesh_factory):
    mesh = mesh_factory({"version": 1, "mesh": "shop", "services": {"stock": {}}}, "orders")
    mesh.service("stock").reply(json=7)
    assert mesh.sync_client("stock").get("/").json() == 7

def test_of_the_folder(fake_mesh):
    assert fake_mesh.sync_client("inventory").get("/").status_code == 200

def test_time(virtual_time, mesh_seed):
    async def main(sim):
        await sim.sleep(3600)
        return sim.seed
    ended = virtual_time(main)
    assert (ended.result, ended.duration_s) == (mesh_seed, 3600.0)
"""


def test_the_fixtures_work(tmp_path: Path):
    """Each of them, with pytest's warnings as errors."""
    assert "3 passed" in run(tmp_path, FIXTURES)


FAILING = """
def test_failing(mesh_factory):
    mesh_factory()
    assert False

def test_passing(mesh_factory):
    pass

def test_without(): assert False
"""


@pytest.mark.parametrize("options", [[], ["--meshlib-seed=7"], ["--meshlib-seed=random"]])
def test_a_failure_names_its_seed(tmp_path: Path, options: list[str]):
    """Once: only for the failed test that had one, and so that it can be pasted."""
    printed = run(tmp_path, FAILING, *options)
    assert "2 failed, 1 passed" in printed
    assert printed.count("repeat with --meshlib-seed=") == 1
    if options == ["--meshlib-seed=7"]:
        assert "seed 7: repeat with --meshlib-seed=7" in printed


LAZY = """
import sys

def test_plain():
    assert "meshlib.testing.plugin" in sys.modules
    heavy = ["httpx", "pydantic", "opentelemetry", "meshlib.mesh", "meshlib.engine", "asyncio"]
    assert [name for name in heavy if name in sys.modules] == []
"""


def test_loading_it_loads_nothing_else(tmp_path: Path):
    """A project whose tests do not use it pays for one small file."""
    assert "1 passed" in run(tmp_path, LAZY)
