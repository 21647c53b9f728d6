"""The config service as a process: what it starts with, what it refuses to start with, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from meshlib.control.server import FILES_BESIDE, Settings, _connections_max, _listen_at, serve
from meshlib.control.watch import parse_policy
from meshlib.errors import ConfigError
from meshlib.identity.join_token import JoinToken

from .config_service import MESH
from .running import Running, reply_of, request_of

STORED = MESH.replace("mesh: shop", "mesh: shop\npolicy_source: store")


def timeout_of(service: Running) -> str:
    """What `inventory` has as its timeout, by the policy in force."""
    policy: dict[str, Any] = service.within(lambda: service.plane.catalog.content("service/inventory.default"))
    return str(policy["policy"]["timeout"])


def test_the_first_start_makes_the_operators_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a private file of a private folder; the log has where it is and never what; the next start keeps it."""
    with caplog.at_level(logging.DEBUG), Running(tmp_path) as service:
        token, file = service.token, service.state / "control" / "operator-token"
        assert service.operate("GET", "/v1/status")["mesh"] == "shop"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert str(file) in caplog.text
    assert token.secret not in caplog.text
    with Running(tmp_path) as service:
        assert service.token == token


def test_a_removed_operators_token_is_replaced(tmp_path: Path) -> None:
    """The one before is void, the new one is heard."""
    with Running(tmp_path) as service:
        before = service.token
    (service.state / "control" / "operator-token").unlink()
    with Running(tmp_path) as service:
        assert service.token.id != before.id
        assert service.request(service.pinned(before), "GET", "/v1/status", bearer=before.bearer)[0] == 401
        assert service.operate("GET", "/v1/status")["polling"] == 0


def test_a_token_that_has_leaked_is_replaced_while_it_runs(tmp_path: Path) -> None:
    """Its file is removed: another one is there soon, which is heard, and the old one is not; no restart."""
    with Running(tmp_path) as service:
        before = service.token
        file = service.state / "control" / "operator-token"
        file.unlink()
        service.until(lambda: file.exists() and service.plane.gate.operator[0] != before.id)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert service.request(service.pinned(before), "GET", "/v1/status", bearer=before.bearer)[0] == 401
        assert service.operate("GET", "/v1/status")["polling"] == 0
        after = service.token
    with Running(tmp_path) as service:
        assert service.token == after


def test_the_operators_token_survives_a_lost_store(tmp_path: Path) -> None:
    """The file is what counts: a store that knows nothing learns the token from it (F04)."""
    with Running(tmp_path) as service:
        token = service.token
    for file in (service.state / "control").glob("store.sqlite*"):
        file.unlink()
    with Running(tmp_path) as service:
        assert service.token == token
        assert service.operate("GET", "/v1/tokens") == {"tokens": []}


def test_the_operators_token_follows_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two rotations of the root it names one that is still believed, and the operator is still heard."""
    monkeypatch.setattr("meshlib.control.plane.PROPAGATION_S", 0.0)
    with Running(tmp_path) as service:
        before = service.token
        for _ in range(2):
            service.operate("POST", "/v1/ca/rotate", {"root": True, "force": True})
            service.until(lambda: service.plane.tick() or service.plane.authority.read().coming is None)
            service.until(lambda: service.plane.rotation is None)
        after = service.token
        assert (after.id, after.secret) == (before.id, before.secret)
        assert after.root_sha256 != before.root_sha256
        assert service.operate("GET", "/v1/ca")["rotating"] is False


def test_a_broken_file_is_kept_out_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a policy in the store it starts with that, and says so loudly; the mended file is then taken."""
    with Running(tmp_path) as service:
        n = service.operate("GET", "/v1/policy")["n"]
    with Running(tmp_path, MESH.replace("1s", "soon")) as service:
        assert service.operate("GET", "/v1/policy")["n"] == n
        assert timeout_of(service) == "1s"
        assert [one.levelname for one in caplog.records if "BROKEN" in one.message] == ["ERROR"]
        status = service.operate("GET", "/v1/status")
        assert (status["edits_kept_out"], [one["line"] for one in status["problems"]]) == (1, [6])
        service.file.write_text(MESH.replace("1s", "7s"))
        service.until(lambda: service.plane.policy.n != n)
        assert timeout_of(service) == "7s"
        assert service.operate("GET", "/v1/status")["problems"] == []


def test_without_any_policy_it_does_not_start(tmp_path: Path) -> None:
    """A broken file or none, and no store: every problem with its place, and nothing is made."""
    with pytest.raises(ConfigError, match=r"mesh\.yaml:6:"), Running(tmp_path, MESH.replace("1s", "soon")):
        pass
    with pytest.raises(ConfigError, match="cannot be read"), Running(tmp_path / "nowhere", None):
        pass
    assert not (tmp_path / "state").exists()


def test_an_edit_is_published_and_a_broken_one_kept_out(tmp_path: Path) -> None:
    """The watched file: what is valid is in force within a second, what is not is counted."""
    with Running(tmp_path) as service:
        service.file.write_text(MESH.replace("1s", "2s"))
        service.until(lambda: service.plane.catalog.content("service/inventory.default")["policy"]["timeout"] == "2s")
        service.file.write_text(MESH.replace("1s", "soon"))
        service.until(lambda: service.plane.edits_kept_out == 1)
        assert timeout_of(service) == "2s"
        newest = service.operate("GET", "/v1/policy/history")["policies"][0]
        assert newest["n"] == service.operate("GET", "/v1/policy")["n"]


def test_a_stored_policy_outlives_the_service(tmp_path: Path) -> None:
    """With `policy_source: store` the file begins it; what was put is in force after a restart, whatever the file says."""
    with Running(tmp_path, STORED) as service:
        service.operate("PUT", "/v1/policy", {"document": STORED.replace("1s", "9s")}, if_match="*")
    with Running(tmp_path, STORED.replace("1s", "3s")) as service:
        assert timeout_of(service) == "9s"


@pytest.mark.parametrize("broken", [STORED.replace("1s", "soon"), "services: ["])
def test_a_broken_file_does_not_end_a_stored_policy(tmp_path: Path, broken: str) -> None:
    """Whatever can be read of it: what was put stays, also when the file is mended, and another may be put."""
    put = MESH.replace("1s", "9s")  # which says nothing of where policies come from
    with Running(tmp_path, STORED) as service:
        service.operate("PUT", "/v1/policy", {"document": put}, if_match="*")
    with Running(tmp_path, broken) as service:
        assert timeout_of(service) == "9s"
        assert service.operate("GET", "/v1/status")["problems"] != []
        service.file.write_text(STORED)
        service.operate("PUT", "/v1/policy", {"document": put.replace("9s", "8s")}, if_match="*")
    with Running(tmp_path, None) as service:
        assert timeout_of(service) == "8s"


@pytest.mark.parametrize(("before", "after"), [(STORED, MESH), (MESH, STORED)])
def test_another_source_of_the_policy_is_never_a_slip(tmp_path: Path, before: str, after: str) -> None:
    """The start is refused with what would be lost and what to do; set back, or done on purpose, it starts."""
    with Running(tmp_path, before) as service:
        n = service.operate("GET", "/v1/policy")["n"]
    source = service.state / "control" / "policy-source"
    assert stat.S_IMODE(source.stat().st_mode) == 0o600
    for broken in ("", "  stock: {timeout: soon}\n"):
        with pytest.raises(ConfigError, match=rf"policy_source is .* in force any more.*remove {source}"):
            Running(tmp_path, after + broken).__enter__()
    with Running(tmp_path, before) as service:
        assert service.operate("GET", "/v1/policy")["n"] == n
    source.unlink()
    with Running(tmp_path, after):
        assert source.read_text() == ("store\n" if after == STORED else "file\n")


def test_a_start_that_fails_is_not_remembered(tmp_path: Path) -> None:
    """Where the first one does not come to serve, the next may have another source."""
    with pytest.raises(ConfigError, match="--listen"):
        asyncio.run(serve(Settings(Running(tmp_path, "version: 1\nmesh: shop\n").file, "", tmp_path / "state")))
    with Running(tmp_path, STORED):
        pass


def test_the_folder_of_a_broken_file_is_the_one_that_it_says(tmp_path: Path) -> None:
    """`state_dir` is not policy, so it counts also where the policy is broken."""
    versions = []
    for text in (MESH, MESH.replace("1s", "soon")):
        running = Running(tmp_path, text + "state_dir: here\n")
        running.state = None  # type: ignore[assignment]
        with running as service:
            versions.append(service.plane.policy.n)
    assert versions[0] == versions[1]
    assert (tmp_path / "here" / "control" / "store.sqlite").exists()


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """It says what to do."""
    (tmp_path / "state").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="chmod 700"), Running(tmp_path):
        pass


def test_another_trust_domain_needs_another_folder(tmp_path: Path) -> None:
    """The authority is that of the first: nobody would believe it."""
    with Running(tmp_path):
        pass
    with pytest.raises(ValueError, match="trust domain"), Running(tmp_path, "trust_domain: other.example\n" + MESH):
        pass


@pytest.mark.parametrize(
    ("listen", "control", "at"),
    [
        ("", "https://127.0.0.1:7443", ("127.0.0.1", 7443)),
        ("", "https://localhost:7443", ("127.0.0.1", 7443)),
        ("", "https://[::1]:7443", ("::1", 7443)),
        ("", "https://control.shop.example:7443", ("0.0.0.0", 7443)),
        ("10.0.0.1:0", "https://127.0.0.1:7443", ("10.0.0.1", 0)),
    ],
)
def test_it_listens_where_it_is_told(listen: str, control: str, at: tuple[str, int]) -> None:
    """As said; else at the first URL's address; a name may be that of a balancer, so then everywhere."""
    config = parse_policy(MESH.replace("https://127.0.0.1:7443", control), "mesh.yaml").config
    assert _listen_at(listen, config) == at


def test_it_must_be_told_where_to_listen() -> None:
    """A file without `control` and no --listen: nobody would come."""
    config = parse_policy("version: 1\nmesh: shop\n", "mesh.yaml").config
    with pytest.raises(ConfigError, match="--listen"):
        _listen_at("", config)
    with pytest.raises(ConfigError, match="--listen: "):
        _listen_at("here", config)


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """With the address, and the folder is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = Running(tmp_path)
        settings = Settings(running.file, f"127.0.0.1:{port}", running.state)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
            asyncio.run(serve(settings))
    with Running(tmp_path):
        pass


def test_connections_are_no_more_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may open 1024 files takes fewer connections, so that it can still open its own."""
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, 1024))
    assert _connections_max() == 1024 - FILES_BESIDE
    monkeypatch.setattr("resource.getrlimit", lambda which: (1 << 20, 1 << 20))
    assert _connections_max() == 20_000


def held(service: Running, context: ssl.SSLContext) -> socket.socket:
    """A connection on which a poll is held."""
    connection = service.connect(context)
    have = {}
    for fragment in service.request(connection, "POST", "/v1/poll", {"instance": "i1"})[2]["fragments"]:
        payload = json.loads(fragment["payload"])
        have[payload["resource"]] = [payload["epoch"], payload["n"]]
    connection.sendall(request_of("POST", "/v1/poll", {"instance": "i1", "have": have, "wait_s": 60}))
    service.until(lambda: service.plane.polls.find("orders.default", "i1").future)
    return connection


def test_the_end_refuses_every_poll_and_waits_for_nobody(tmp_path: Path) -> None:
    """The held poll is refused at once, with the wish to close; an idle connection is cut off; within 2 s."""
    with Running(tmp_path) as service:
        orders = service.member("orders")
        polling, idle = held(service, orders), service.connect(orders)
        began = time.monotonic()
        assert service.server is not None
        service.server.stop()
        status, fields, reply = reply_of(polling)
        assert time.monotonic() - began < 0.5
        assert (status, fields["connection"]) == (503, "close"), reply
        service._thread.join(5)
        assert time.monotonic() - began < 2.0
        polling.close()
        idle.close()


START = [sys.executable, "-m", "meshlib", "control", "--listen", "127.0.0.1:0"]


class Process:
    """`meshlib control` in `folder`, once it listens."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*START, "--config", "mesh.yaml", "--state-dir", "state"], cwd=folder, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        self.listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.listening.wait(20), self.lines

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line)
            if "listening on" in line:
                self.port = int(line.rpartition(":")[2])
                self.listening.set()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(10)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.mark.process
def test_a_signal_ends_it_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    """kill -9 right after a token was made: it is there after the restart. SIGTERM: exit 0 within 2 s."""
    (tmp_path / "mesh.yaml").write_text(MESH)
    first = Process(tmp_path)
    remote = Running(tmp_path, None)
    remote.server = type("Listening", (), {"address": f"127.0.0.1:{first.port}"})()  # type: ignore[assignment]
    made = JoinToken.parse(remote.operate("POST", "/v1/tokens", {"service": "orders.default"})["token"])
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    second = Process(tmp_path)
    remote.server = type("Listening", (), {"address": f"127.0.0.1:{second.port}"})()  # type: ignore[assignment]
    assert [one["id"] for one in remote.operate("GET", "/v1/tokens")["tokens"]] == [made.id]
    began = time.monotonic()
    assert second.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 2.0
    assert made.secret not in "".join([*first.lines, *second.lines])
