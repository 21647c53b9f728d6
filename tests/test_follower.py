"""The follower without a network: a config service that is an object, and ticks that the test makes."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from test_followed_policy import BOOTSTRAP, BUNDLE, SIGNER, contents, signed

from meshlib.config import MeshConfig
from meshlib.control_link import ControlRefusal
from meshlib.discovery.fragment import Signed
from meshlib.errors import MeshError
from meshlib.follower import Follower
from meshlib.identity.credentials import Credentials
from meshlib.runtime.blocking import drive
from meshlib.telemetry.metrics import Metrics


class Service:
    """A config service: what it was asked, and what it answers. `away`: every call fails. Stands for every link too."""

    def __init__(self) -> None:
        self.polls: list[dict[str, Any]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.away, self.registered, self.n = False, False, 1
        self.refuses: dict[str, int] = {}

    def __call__(self, *_: object) -> Service:
        return self

    def call(self, _method: str, _path: str, document: dict[str, Any], **_: Any) -> bytes:
        self.polls.append(document)
        if self.away:
            raise OSError("away")
        fragments = [signed(resource, self.n, content) for resource, content in contents(self.n).items()]
        return _reply(fragments, self.registered)

    def ask(self, _method: str, path: str, document: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.told.append((path.removeprefix("/v1/"), document))
        if self.away:
            raise OSError("away")
        if status := self.refuses.get(path.removeprefix("/v1/")):
            raise ControlRefusal(path, status, {"message": "no"})
        self.registered = path == "/v1/register"
        return {}

    def close(self) -> None: ...


def _reply(fragments: list[Signed], registered: bool) -> bytes:
    document = {
        "epoch": "e1",
        "registered": registered,
        "reconnect_s": 1.0,
        "signer": SIGNER.chain_pem.decode(),
        "fragments": [{"payload": f.payload, "signature": f.signature} for f in fragments],
    }
    return json.dumps(document).encode()


class Known:
    """Credentials, as far as a follower looks at them."""

    generation, bundle = 1, BUNDLE

    def client(self, _expected: object) -> None: ...
    def refresh(self) -> None: ...
    def adopt(self, _bundle: object) -> None: ...


class Process:
    """The owner of a follower: `front`, enrolled, at 127.0.0.1:1000."""

    service, instance = "front.default", "front-1"

    def __init__(self, folder: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("meshlib.follower.ControlLink", service)
        self.metrics, self.configs = Metrics(), list[MeshConfig]()
        self.credentials: Any = Known()
        self.follower = Follower(self, BOOTSTRAP, ("https://127.0.0.1:7443",), folder, None)
        monkeypatch.setattr(self.follower, "_now", lambda: self.now)
        self.now = 100.0

    def identified(self, credentials: Credentials) -> None:
        raise AssertionError("it has an identity")

    def put_in_force(self, config: MeshConfig, known: Collection[str] | None = None, *, quiet: bool = False) -> None:
        self.configs.append(config)

    def polls(self) -> None:
        """One poll of the loop, as `follow` makes it."""
        self.follower._take(drive(self.follower._held()))

    def ticks(self, after_s: float = 0.0) -> None:
        self.now += after_s
        self.follower.tick()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def process(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    tmp_path.chmod(0o700)
    return Process(tmp_path, service, monkeypatch)


def test_what_a_call_waits_for_is_asked_for_at_once_and_again_when_that_was_lost(
    service: Service, process: Process
) -> None:
    """A call waits at most two seconds: a lost poll is made again at the next tick, not at the next reconnect."""
    process.polls()
    process.follower.want(["items.default"])
    service.away = True
    process.ticks()
    service.away = False
    process.ticks()
    process.ticks()
    assert [poll["want"] for poll in service.polls] == [[], ["items.default"], ["items.default"]]
    assert [e.port for e in process.configs[-1].endpoints("items.default")] == [1001, 1002, 1003, 1004]


def test_nothing_is_asked_besides_before_the_first_answer(service: Service, process: Process) -> None:
    """The poll that is under way asks for it."""
    process.follower.want(["items.default"])
    process.ticks()
    process.polls()
    assert [poll["want"] for poll in service.polls] == [["items.default"]]


def test_a_storm_of_new_services_is_a_few_polls(service: Service, process: Process) -> None:
    """As many as the bucket has; the rest comes together with the next."""
    process.polls()
    for number in range(100):
        process.follower.want([f"s{number}.default"])
        process.ticks()
    assert len(service.polls) == 1 + 5
    process.ticks(1.0)
    assert len(service.polls[-1]["want"]) == 100


def test_a_server_is_registered_and_again_when_it_is_forgotten(service: Service, process: Process) -> None:
    """F04: the registry is what processes say, so its loss is mended by them."""
    process.polls()
    process.follower.serve_at("127.0.0.1:1000")
    process.ticks()
    process.polls()
    process.ticks()
    assert [what for what, _ in service.told] == ["register"]
    service.registered = False  # it has lost its disk
    process.polls()
    process.ticks()
    assert [(what, document["address"]) for what, document in service.told] == 2 * [("register", "127.0.0.1:1000")]
    assert [poll["serving"] for poll in service.polls] == [False, True, True]


def test_what_could_not_be_told_is_complained_about_once(
    service: Service, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again by schedule; the log says so once, not every second."""
    process.polls()
    process.follower.serve_at("127.0.0.1:1000")
    service.away = True
    for _ in range(5):
        process.ticks(5.0)
    assert len(service.told) == 5
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "the config service could not be told to register this process: away"
    ]


def test_a_process_that_ends_takes_itself_off_the_list(service: Service, process: Process) -> None:
    """First it takes no new calls, then it is gone; stopping twice says nothing twice."""
    process.polls()
    process.follower.serve_at("127.0.0.1:1000")
    process.ticks()
    process.follower.drain()
    process.ticks()
    process.follower.stop()
    process.follower.stop()
    assert [what for what, _ in service.told] == ["register", "drain", "deregister"]


def test_no_last_word_to_one_who_does_not_listen(service: Service, process: Process) -> None:
    """F33: the end waits for nobody who is away."""
    process.polls()
    process.follower.serve_at("127.0.0.1:1000")
    process.ticks()
    process.follower._failed(OSError("away"))
    process.follower.stop()
    assert [what for what, _ in service.told] == ["register"]


def test_what_is_not_registered_need_not_be_taken_back(
    service: Service, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    """A 404 to a drain is what was wanted."""
    process.polls()
    process.follower.serve_at("127.0.0.1:1000")
    process.ticks()
    service.refuses["drain"] = 404
    process.follower.drain()
    process.ticks()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_another_leaf_is_shown_by_the_next_connection(service: Service, process: Process) -> None:
    """The poll that is held is ended by one that is not, and the next comes by a new link."""
    process.polls()
    process.credentials.generation = 2
    process.ticks()
    assert [poll["wait_s"] for poll in service.polls] == [0.0, 0.0]
    process.polls()
    process.ticks()
    assert len(service.polls) == 3


@pytest.mark.parametrize("wrong", [MeshError("no"), KeyError("a fault of ours")])
def test_that_the_service_is_away_is_said_once_and_that_it_is_back(
    process: Process, wrong: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Two lines for an outage, of whatever kind."""
    caplog.set_level(logging.WARNING)
    process.polls()
    process.follower._failed(wrong)
    process.follower._failed(wrong)
    assert "has been away since" in process.follower.why_away()
    process.polls()
    assert process.follower.why_away() == ""
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert ["has been away since" in said[0], said[1].startswith("the config service is back")] == [True, True]
    assert len(said) == 2
