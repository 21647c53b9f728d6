"""The demo's processes: what their logs tell, what they are started with, and that none is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.demo.config_service import ConfigService
from meshlib.demo.fleet import Fleet, hosts
from meshlib.demo.process import ERRORS_SHOWN, DemoError, Process, admin_in, listening_in
from meshlib.demo.shop import Shop

STARTED = """\
2026-01-01 00:00:00,000 INFO meshlib: admin on http://127.0.0.1:{admin} (/livez /readyz /metrics)
2026-01-01 00:00:00,001 INFO meshlib.transport: listening on 127.0.0.1:{port}
"""
FAILED = """\
Traceback (most recent call last):
  File "x.py", line 1, in call

  File "x.py", line 2, in send
KeyError: 1

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "x.py", line 3, in call
{error}
2026-01-01 00:00:00,002 INFO meshlib: policy 1 is in force
"""


def test_addresses_are_those_of_the_log() -> None:
    """Half of it is not enough."""
    log = STARTED.format(admin=1, port=2)
    assert (listening_in(log), admin_in(log)) == ("127.0.0.1:2", "127.0.0.1:1")
    assert (listening_in(log.splitlines()[0]), admin_in(log.splitlines()[1])) == ("", "")


def test_errors_are_the_ends_of_tracebacks(tmp_path: Path) -> None:
    """Each once, and no more than the bound."""
    log = tmp_path / "a.log"
    log.write_text("".join(FAILED.format(error=f"ValueError: {i}") * 2 for i in range(ERRORS_SHOWN + 1)))
    assert Process("orders-1", log).errors() == [f"orders-1: ValueError: {i}" for i in range(ERRORS_SHOWN)]


def test_a_replica_knows_who_it_is_and_keeps_its_port(tmp_path: Path) -> None:
    """Three replicas are on two hosts, each on a port of its own, with the one token of their service."""
    fleet = Fleet(Shop(tmp_path))
    replicas = [fleet.add("inventory", version) for version in ("v1", "v1", "v2")]
    assert [host.name for host in sorted(hosts(replicas))] == ["host-1", "host-2"]
    told = [replica.variables() for replica in replicas]
    assert [one["MESHLIB_INSTANCE"] for one in told] == ["inventory-1", "inventory-2", "inventory-3"]
    assert [one["MESHLIB_LABELS"] for one in told] == ["version=v1", "version=v1", "version=v2"]
    assert len({one["PORT"] for one in told}) == 3
    assert {one["MESHLIB_TOKEN_FILE"] for one in told} == {str(tmp_path / "inventory.token")}
    assert "MESHLIB_LABELS" not in fleet.add("orders").variables()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ConfigService]:
    """A config service that listens."""
    service = ConfigService(Shop(tmp_path))
    service.start()
    yield service
    service.close()


@pytest.mark.process
def test_the_config_service_is_asked_as_the_operator(control: ConfigService, tmp_path: Path) -> None:
    """Tokens, versions and status come from a real `meshlib control`; one killed and started again knows them still."""
    token = control.create_token("orders", uses=2)
    assert (tmp_path / "orders.token").read_text() == f"{token}\n"
    assert (tmp_path / "orders.token").stat().st_mode & 0o777 == 0o600
    version = control.version("inventory")
    control.kill()
    control.start()
    assert (control.uses(), control.ready(), control.version("inventory")) == (0, set(), version)
    assert control.status()["problems"] == []


@pytest.mark.process
def test_why_a_process_does_not_start(tmp_path: Path) -> None:
    """The end of its log is in the error."""
    shop = Shop(tmp_path)
    shop.file.write_text("version: 1\nmesh: shop\nnonsense: 1\n")
    control = ConfigService(shop)
    with pytest.raises(DemoError, match=r"control did not start(.|\n)*nonsense"):
        control.start()
    control.close()


@pytest.mark.process
@pytest.mark.parametrize("program", ["inventory", "control"])
def test_a_program_ends_with_the_demo(tmp_path: Path, program: str) -> None:
    """However the demo ended: the pipe it held is closed, and the process is gone."""
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text("version: 1\nmesh: shop\n" if program == "inventory" else Shop(tmp_path).file.read_text())
    process = subprocess.Popen(
        [sys.executable, "-m", "meshlib.demo.replica", program],
        env={**os.environ, "MESHLIB_CONFIG": str(mesh), "PORT": "0"},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "listening on" not in process.stderr.readline():
        assert process.poll() is None
    process.communicate(timeout=20)
    assert process.returncode == 1


def test_only_programs_of_the_demo_are_run() -> None:
    """Another name is one sentence."""
    ran = subprocess.run(
        [sys.executable, "-m", "meshlib.demo.replica", "nothing"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr.splitlines()[-1][:30]) == (1, "'nothing' is no program of the")
