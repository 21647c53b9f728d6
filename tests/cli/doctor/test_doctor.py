"""`doctor`, as a user types it: everything at once, on a machine that is well and on one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshlib.identity.dev import DevSource
from meshlib.identity.join_token import JoinToken

from ..config_service import MESH, ConfigService, run


def levels(*arguments: str) -> dict[str, str]:
    """Subject → the worst level of it, by --json."""
    found: dict[str, str] = {}
    for finding in json.loads(run("doctor", "--json", *arguments).stdout)["findings"]:
        worst = max((finding["level"], found.get(finding["subject"], "ok")), key=["ok", "warning", "problem"].index)
        found[finding["subject"]] = worst
    return found


def test_the_host_of_a_config_service_is_well(service: ConfigService) -> None:
    """Exit code 0; aligned lines of level, subject and sentence, in the order in which things would fail."""
    told = run("doctor")
    assert (told.exit_code, told.stderr) == (0, "")
    lines = told.stdout.splitlines()
    assert {line[:9].strip() for line in lines} <= {"ok", "warning"}
    assert all(line[8] == " " and line[9] != " " and line[24] == " " and line[25] != " " for line in lines)
    assert [line[9:25].strip() for line in lines] == [
        "python", "distribution", "extras", "uvloop", "open files", "environment", "mesh.yaml", "state_dir",
        "operator token", "config service", "clock",
    ]  # fmt: skip
    assert service.token.secret not in told.output


def test_what_is_wrong_is_exit_code_1_with_its_number(service: ConfigService, monkeypatch: pytest.MonkeyPatch) -> None:
    """As data: how many problems and warnings, and all findings."""
    monkeypatch.setenv("MESHLIB_SERVICE", "orders")
    monkeypatch.setenv("MESHLIB_ZON", "x")
    told = run("doctor", "--json")
    data = json.loads(told.stdout)
    assert (told.exit_code, data["problems"]) == (1, 1)
    (problem,) = (one for one in data["findings"] if one["level"] == "problem")
    assert problem["subject"] == "identity"
    assert "meshlib token create orders.default" in problem["said"]
    assert data["warnings"] >= 1


def test_an_enrolled_service_knows_the_roots_itself(service: ConfigService, tmp_path: Path) -> None:
    """Its roots say who the config service is, also where there is no token; a certificate is looked at unasked."""
    service.enrol_here("orders.default")
    (tmp_path / "elsewhere").mkdir()
    service.token_file.rename(tmp_path / "elsewhere" / "operator-token")
    told = run("doctor")
    assert f"{service.url} is spiffe://shop.dev/ns/meshlib/sa/control, by the roots of orders.default" in told.stdout
    assert "orders.default: there is no snapshot" in told.stdout
    assert "operator token" not in told.stdout


def test_a_join_token_is_enough_to_know_the_service(
    service: ConfigService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine before its first start: a state_dir that is not there yet, and a token file. Nothing is wrong."""
    run("token", "create", "orders", "--out", str(tmp_path / "orders.token"))
    monkeypatch.setenv("MESHLIB_STATE_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("MESHLIB_TOKEN_FILE", str(tmp_path / "orders.token"))
    told = run("doctor", "--service", "orders")
    assert told.exit_code == 0
    assert "the first process enrols with the token of MESHLIB_TOKEN_FILE" in told.stdout
    assert f"by the root in {tmp_path}/orders.token" in told.stdout
    assert not (tmp_path / "new").exists()


def test_a_token_of_another_mesh_is_found(service: ConfigService, tmp_path: Path) -> None:
    """The config service is not the one that the token names."""
    (tmp_path / "other").write_text(str(JoinToken.create("0" * 64)))
    (tmp_path / "other").chmod(0o600)
    assert levels("--token-file", str(tmp_path / "other"))["config service"] == "problem"


def test_a_mesh_without_a_config_service_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """identity: {source: dev}: that it is for development is a warning; exit code 0."""
    (tmp_path / "mesh.yaml").write_text("version: 1\nmesh: shop\n")
    monkeypatch.chdir(tmp_path)
    DevSource(tmp_path / ".meshlib", "shop.dev", "orders").fetch()
    found = levels("--service", "orders")
    assert (found["identity"], "config service" in found) == ("warning", False)
    assert run("doctor", "--service", "orders").exit_code == 0
    assert levels("--service", "Orders")["identity"] == "problem"


def test_mesh_yaml_is_found_and_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not there: nothing more can be said. Broken: how many problems, and of a broken policy the rest is looked at."""
    monkeypatch.chdir(tmp_path)
    assert list(levels())[-1] == "mesh.yaml"
    assert "name one by --config, or in MESHLIB_CONFIG" in run("doctor").stdout
    (tmp_path / "mesh.yaml").write_text(MESH + "defaults: {timeuot: 1s, retires: 1}\n")
    told = run("doctor")
    assert "mesh.yaml:8:12: defaults.timeuot" in told.stdout
    assert "; 2 problems in all: meshlib check mesh.yaml" in told.stdout
    assert {"state_dir", "config service"} <= levels().keys()


def test_bad_urls_are_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable that has them, and nobody is asked."""
    (tmp_path / "mesh.yaml").write_text(MESH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESHLIB_CONTROL_URLS", "nonsense")
    found = levels()
    assert (found["environment"], "config service" in found) == ("problem", False)
