"""What a command starts with: which mesh.yaml, and what of a broken one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshlib.cli.bootstrap import mesh_file, read_mesh, state_dir_of, urls_of
from meshlib.config import load_config
from meshlib.errors import ConfigError

from .config_service import MESH

BROKEN = "defaults: {timeuot: 1s}\n"


def test_an_argument_then_the_environment_then_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of a process."""
    assert mesh_file(None) == "mesh.yaml"
    monkeypatch.setenv("MESHLIB_CONFIG", "env.yaml")
    assert (mesh_file(None), mesh_file("given.yaml")) == ("env.yaml", "given.yaml")


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """state_dir, relative to the file's folder, and the URLs; a bad URL is a ConfigError that begins with its name."""
    (tmp_path / "mesh.yaml").write_text(MESH)
    mesh = load_config(tmp_path / "mesh.yaml")
    assert (state_dir_of(mesh), urls_of(mesh)) == (tmp_path / ".meshlib", ("https://127.0.0.1:9",))
    monkeypatch.setenv("MESHLIB_STATE_DIR", "run")
    monkeypatch.setenv("MESHLIB_CONTROL_URLS", "https://a:1,https://b:2")
    assert (state_dir_of(mesh), urls_of(mesh)) == (tmp_path / "run", ("https://a:1", "https://b:2"))
    monkeypatch.setenv("MESHLIB_CONTROL_URLS", "http://a:1")
    with pytest.raises(ConfigError, match=r"\AMESHLIB_CONTROL_URLS: "):
        urls_of(mesh)


def test_of_a_broken_policy_the_bootstrap_part_is_left(tmp_path: Path) -> None:
    """A file, and a directory of parts: mesh, URLs, folder; and what is wrong with the whole."""
    (tmp_path / "whole.yaml").write_text(MESH + BROKEN)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "mesh.yaml").write_text(MESH)
    (parts / "policy.yaml").write_text(BROKEN)
    for file, folder in ((tmp_path / "whole.yaml", tmp_path), (parts, parts)):
        mesh, error = read_mesh(str(file))
        assert mesh is not None
        assert "defaults.timeuot" in str(error)
        assert (mesh.mesh, mesh.services, state_dir_of(mesh)) == ("shop", {}, folder / ".meshlib")
        assert urls_of(mesh) == ("https://127.0.0.1:9",)


@pytest.mark.parametrize(
    "text", ["", "- a\n", "version: 1\nmesh: Shop!\n", "version: 1\nmesh: shop\ncontrol: {}\n", "\x00"]
)
def test_of_a_broken_bootstrap_part_nothing_is(tmp_path: Path, text: str) -> None:
    """Nor of what is not there, or is no file to wait for."""
    (tmp_path / "mesh.yaml").write_text(text)
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "mesh.yaml", tmp_path / "none.yaml", tmp_path / "pipe"):
        mesh, error = read_mesh(str(file))
        assert (mesh, isinstance(error, ConfigError)) == (None, True)
