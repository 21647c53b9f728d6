"""`ca rotate`: new certificates for the processes that share a state_dir."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshlib.cli import meshlib
from meshlib.identity.dev import DevSource


def run(*arguments: str) -> Result:
    return CliRunner().invoke(meshlib, ["ca", "rotate", *arguments], catch_exceptions=False)


@pytest.fixture
def mesh_file(tmp_path: Path) -> Path:
    """A mesh whose state_dir is `state` beside it."""
    file = tmp_path / "mesh.yaml"
    file.write_text("version: 1\nmesh: shop\nstate_dir: state\n")
    return file


def test_a_process_takes_a_new_leaf_and_root(mesh_file: Path) -> None:
    """After `rotate` a source has something new; `--root` changes the root too, and keeps trusting the old one."""
    source = DevSource(mesh_file.parent / "state", "shop.dev", "orders")
    _, before = source.fetch()
    assert not source.changed()
    result = run("--config", str(mesh_file))
    assert (result.exit_code, source.changed()) == (0, True)
    assert "generation 2, new leaves" in result.stdout
    assert source.fetch()[1].pem == before.pem
    told = json.loads(run("--root", "--state-dir", str(mesh_file.parent / "state"), "--json").stdout)
    assert told["rotated"] == "root"
    assert told["generation"] > 2
    both = source.fetch()[1].pem
    assert before.pem in both
    assert both != before.pem


def test_without_an_authority_nothing_is_made(mesh_file: Path) -> None:
    """A wrong folder is said to be one, and stays as it is."""
    (mesh_file.parent / "state").mkdir()
    result = run("--config", str(mesh_file))
    assert result.exit_code == 1
    assert "holds no authority yet" in result.stderr
    assert list((mesh_file.parent / "state").iterdir()) == []


def test_a_damaged_authority_is_a_sentence(mesh_file: Path) -> None:
    """Exit code 1, what is wrong with which file, and what to do, for leaves and for the root."""
    DevSource(mesh_file.parent / "state", "shop.dev", "orders").fetch()
    (mesh_file.parent / "state/dev-ca/authority.json").write_text("")
    for arguments in ((), ("--root",)):
        result = run("--config", str(mesh_file), *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("meshlib: ")
        assert "authority.json is no usable authority" in result.stderr
        assert "remove the folder" in result.stderr


def test_the_default_is_the_mesh_of_this_process(
    mesh_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """$MESHLIB_CONFIG, then ./mesh.yaml; $MESHLIB_STATE_DIR wins over the file's state_dir, as in a process."""
    DevSource(tmp_path / "elsewhere", "shop.dev", "orders").fetch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESHLIB_STATE_DIR", "elsewhere")
    assert run().exit_code == 0
    monkeypatch.setenv("MESHLIB_CONFIG", str(tmp_path / "none.yaml"))
    assert run().exit_code == 1


def test_two_names_for_one_thing_are_refused(mesh_file: Path) -> None:
    """--config and --state-dir together are wrong usage."""
    assert run("--config", str(mesh_file), "--state-dir", str(mesh_file.parent)).exit_code == 2
