"""`meshlib control`: what it is told, and what it says when it does not start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshlib.cli import meshlib
from meshlib.control.server import Settings

MESH = 'version: 1\nmesh: shop\ncontrol: {urls: ["https://127.0.0.1:7443"]}\n'


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of the test process stays as it is; nothing of its environment counts."""
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    for name in ("MESHLIB_CONFIG", "MESHLIB_STATE_DIR", "MESHLIB_LOG"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(meshlib, ["control", *arguments], catch_exceptions=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """With what the service was started, instead of starting it."""
    given: list[Settings] = []
    monkeypatch.setattr("meshlib.control.server.run", given.append)
    return given


def test_the_settings_are_those_that_were_given(
    started: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments first, then the environment, relative to the file; then what the file says itself."""
    file = tmp_path / "mesh.yaml"
    file.write_text(MESH)
    run("--config", str(file), "--listen", "127.0.0.1:1", "--state-dir", "here")
    run("--config", str(file))
    monkeypatch.setenv("MESHLIB_STATE_DIR", "there")
    run("--config", str(file))
    monkeypatch.setenv("MESHLIB_CONFIG", str(tmp_path))
    run()
    assert started == [
        Settings(file, "127.0.0.1:1", Path("here")),
        Settings(file),
        Settings(file, "", tmp_path / "there"),
        Settings(tmp_path, "", tmp_path / "there"),
    ]


@pytest.mark.parametrize(
    ("mesh", "arguments", "said"),
    [
        ("version: 1\n", [], "mesh.yaml:1:1: mesh: "),
        ("version: 1\nmesh: shop\n", [], "--listen"),
        (MESH, ["--listen", "here"], "is not an address"),
        (MESH, ["--listen", "127.0.0.1:99999"], "no valid port"),
        (None, [], "*.yaml files"),
    ],
)
def test_it_says_why_it_does_not_start(tmp_path: Path, mesh: str | None, arguments: list[str], said: str) -> None:
    """One sentence on stderr, exit code 2, nothing on stdout, no traceback."""
    file = tmp_path / "mesh.yaml"
    given = ["--config", str(file)] if mesh is not None else ["--config", str(tmp_path)]
    if mesh is not None:
        file.write_text(mesh)
    result = run(*given, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("meshlib: the config service does not start: ")
    assert said in result.stderr


def test_a_bad_address_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before another config service's folder is waited for."""
    monkeypatch.setattr("meshlib.control.store.Store.open", lambda path: pytest.fail("the store was opened"))
    (tmp_path / "mesh.yaml").write_text(MESH)
    told = run("--config", str(tmp_path / "mesh.yaml"), "--listen", "nonsense")
    assert (told.exit_code, "--listen: " in told.stderr) == (2, True)
    assert not (tmp_path / ".meshlib").exists()


def test_a_log_level_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `mesh.run` does."""
    monkeypatch.setenv("MESHLIB_LOG", "LOUD")
    result = run("--config", str(tmp_path))
    assert (result.exit_code, "MESHLIB_LOG=LOUD" in result.stderr) == (2, True)


def test_what_it_needs_and_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed without its parts it names the extra that has them."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("--config", str(tmp_path))
    assert (result.exit_code, "service-meshlib[control]" in result.stderr) == (2, True)


def test_the_help_has_an_example() -> None:
    """Like every command's."""
    result = run("--help")
    assert "Example:" in result.stdout
    assert "--listen" in result.stdout
