"""`ca`: the local authority of a state_dir, and that of a real config service."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshlib.cli import authority, meshlib
from meshlib.control_link import ControlRefusal
from meshlib.errors import MeshError
from meshlib.identity.dev import DevSource, rotate_root

from .config_service import MESH, ConfigService


def run(*arguments: str) -> Result:
    return ca("rotate", *arguments)


def ca(*arguments: str) -> Result:
    return CliRunner().invoke(meshlib, ["ca", *arguments], catch_exceptions=False)


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


def test_the_local_roots_are_shown(mesh_file: Path) -> None:
    """Which signs, which did before, their hashes and ends; without an authority a sentence, exit code 1."""
    assert ca("show", "--config", str(mesh_file)).exit_code == 1
    DevSource(mesh_file.parent / "state", "shop.dev", "orders").fetch()
    rotate_root(mesh_file.parent / "state", propagation_s=0)
    shown = ca("show", "--config", str(mesh_file))
    about, titles, signer, previous = shown.stdout.splitlines()
    assert (about, titles.split()) == ("trust domain shop.dev, generation 3", ["ROOT", "SHA-256", "ENDS", "LEFT"])
    told = json.loads(ca("show", "--config", str(mesh_file), "--json").stdout)
    assert [(root["role"], root["sha256"]) for root in told["roots"]] == [
        ("signer", signer.split()[1]),
        ("previous", previous.split()[1]),
    ]


def test_a_local_authority_revokes_nothing(mesh_file: Path) -> None:
    """Exit code 2: it cannot be done, and that is said."""
    told = ca("revoke", "ff", "--config", str(mesh_file))
    assert (told.exit_code, told.stdout) == (2, "")
    assert "revokes nothing" in told.stderr


def test_a_config_service_rotates_its_leaves(service: ConfigService) -> None:
    """The generation grows by one, which every process is told."""
    told = run()
    assert (told.exit_code, told.stdout) == (0, "shop: generation 2, new leaves\n")
    assert json.loads(run("--json").stdout) == {"generation": 3, "rotated": "leaves", "mesh": "shop"}
    assert json.loads(ca("show", "--json").stdout)["generation"] == 3


def test_a_config_service_begins_to_replace_its_root(service: ConfigService) -> None:
    """The new one is believed and does not sign yet; `ca show` has both, and that this is under way."""
    told = run("--root")
    assert (told.exit_code, "a new root is believed" in told.stdout) == (0, True)
    shown = json.loads(ca("show", "--json").stdout)
    assert shown["trust_domain"] == "shop.dev"
    assert {root["role"] for root in shown["roots"]} >= {"signer"}
    assert len(shown["roots"]) == 2
    assert len(ca("show").stdout.splitlines()) == 4


def test_a_revoked_certificate_is_nobody(service: ConfigService) -> None:
    """By its serial, in either spelling; `ca show` lists it; the process cannot speak any more."""
    with service.process("orders.default", "o-1") as process:
        process.poll()
        serial = f"{process.svid.serial:x}"
        told = ca("revoke", f"0x{serial.upper()}")
        whole = f"enrolment {serial[:-24]} is revoked: every certificate whose serial begins with it\n"
        assert (told.exit_code, told.stdout) == (0, f"certificate {serial} is revoked\n{whole}")
        with pytest.raises((ControlRefusal, MeshError)):
            process.poll()
    assert json.loads(ca("show", "--json").stdout)["revoked"] == [serial[:-24]]
    assert ca("show").stdout.endswith(whole)


@pytest.mark.parametrize("serial", ["", "xyz", "-1", "f" * 41, ":::", "0x", "0x:"])
def test_what_is_no_serial_is_wrong_usage(serial: str) -> None:
    """Exit code 2, before anybody is asked."""
    told = ca("revoke", "--", serial)
    assert (told.exit_code, "a serial is a hexadecimal number" in told.stderr) == (2, True)


def test_a_serial_that_was_never_issued_is_said_to_be_none(service: ConfigService) -> None:
    """Exit code 1, with the service's sentence; nothing is revoked."""
    told = ca("revoke", "deadbeef")
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.startswith("meshlib: the config service answers /v1/ca/revoke with 4")
    assert "deadbeef" in told.stderr
    assert json.loads(ca("show", "--json").stdout)["revoked"] == []


def test_the_help_of_revoke_says_how_much_it_takes() -> None:
    """Not the one certificate, but the enrolment."""
    said = " ".join(ca("revoke", "--help").stdout.split())
    assert "every process of that service on that host is out" in said


class Asked:
    """An operator, and what is said to it; `answers` to GET /v1/ca, the last for ever."""

    def __init__(self, *rotating: bool) -> None:
        self.rotating, self.sent = list(rotating), []  # type: list[bool], list[tuple[Any, ...]]

    def ask(self, *sent: Any) -> dict[str, Any]:
        """The next."""
        self.sent.append(sent)
        if sent[0] == "POST":
            return {"generation": 2}
        rotating = self.rotating.pop(0) if len(self.rotating) > 1 else self.rotating[0]
        return {"generation": 2 if rotating else 3, "rotating": rotating}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """In the place of a config service."""
    operator = Asked(True, True, False)
    (tmp_path / "mesh.yaml").write_text(MESH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(authority, "operator_of", lambda mesh, token_file: nullcontext(operator))
    monkeypatch.setattr(authority, "LOOK_S_MAX", 0.001)
    return operator


def test_a_rotation_of_the_root_can_be_waited_for(asked: Asked) -> None:
    """It looks until the new root signs, and says the generation of then."""
    told = run("--root", "--wait")
    assert (told.exit_code, told.stdout) == (0, "shop: generation 3, a new root and new leaves\n")
    assert asked.sent == [("POST", "/v1/ca/rotate", {"root": True}), *[("GET", "/v1/ca")] * 3]


def test_a_rotation_is_not_waited_for_for_ever(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, and what happens next."""
    monkeypatch.setattr(authority, "SIGNS_WITHIN_S", 0.01)
    asked.rotating = [True]
    told = run("--root", "--wait")
    assert (told.exit_code, told.stdout) == (1, "")
    assert "the new root does not sign yet" in told.stderr


def test_a_rotation_can_be_forced(asked: Asked) -> None:
    """The service is told so, and only then."""
    assert run("--root", "--force").exit_code == 0
    assert asked.sent == [("POST", "/v1/ca/rotate", {"root": True, "force": True})]


@pytest.mark.parametrize("option", ["--force", "--wait"])
def test_what_is_about_a_root_needs_one(asked: Asked, option: str) -> None:
    """Exit code 2, and nobody is asked."""
    told = run(option)
    assert (told.exit_code, "--root" in told.stderr, asked.sent) == (2, True, [])
