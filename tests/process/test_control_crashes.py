"""Must survive: kill -9 of the config service at any moment. What it has answered is there, and nothing is half there."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path

import pytest
import yaml

from meshlib.config import config_of
from meshlib.control_link import ControlLink, RemoteAuthority
from meshlib.errors import MeshError
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, TrustBundle
from meshlib.identity.svid_tls import SvidTls
from process.controlled import DOMAIN, Controlled

KILLS = 6 if os.environ.get("MESHLIB_FUZZ", "") == "" else 40
WRITES_PER_KILL = 5


class Writer:
    """Writes all the time: policies, join tokens, registrations; `done` has what was acknowledged."""

    def __init__(self, world: Controlled, link: ControlLink) -> None:
        self.world, self.link = world, link
        self.number = 0
        self.tokens: list[str] = []
        self.instances: list[str] = []
        self.policy = 0
        self.stop = threading.Event()
        self.written = 0

    def run(self) -> None:
        while not self.stop.is_set():
            self.number += 1
            try:
                (self._policy, self._token, self._instance)[self.number % 3](self.number)
                self.written += 1
            except MeshError:
                time.sleep(0.02)  # it is down just now: whether this one was written is not known

    def _policy(self, number: int) -> None:
        document = {**self.world.document, "services": {"backend": {"timeout": f"{number}ms"}}}
        self.world.ask("PUT", "/v1/policy", {"document": yaml.safe_dump(document)}, headers={"If-Match": "*"})
        self.policy = number

    def _token(self, _number: int) -> None:
        self.tokens.append(
            self.world.ask("POST", "/v1/tokens", {"service": "backend.default", "uses": 1, "ttl_s": 600})["id"]
        )

    def _instance(self, number: int) -> None:
        name = f"i{number}"
        self.link.ask("POST", "/v1/register", {"instance": name, "address": f"127.0.0.1:{1000 + number}"})
        self.instances.append(name)


@pytest.mark.fuzz
def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    """Killed at random moments while it is written to: policies, tokens, registrations that were acknowledged are
    there; the policy is one that was sent, whole, and what processes are told is that policy.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {KILLS} kills")
    rng = random.Random(seed)
    with Controlled(tmp_path, {"backend": {}}, policy_source="store") as world:
        link = member(world)
        for _ in range(KILLS):
            writer = Writer(world, link)
            writer.number = rng.randrange(1, 20_000)
            thread = threading.Thread(target=writer.run)
            thread.start()
            while writer.written < WRITES_PER_KILL:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.15)
            world.control.kill()
            writer.stop.set()
            thread.join()
            world.control.again()
            world.control.wait_listening()
            check(world, link, writer)
        link.close()


def member(world: Controlled) -> ControlLink:
    """A link with a certificate of backend."""
    csr, key = make_csr(SpiffeId.for_service(DOMAIN, "backend"))
    issued = RemoteAuthority([world.url], DOMAIN, "x").enrol(JoinToken.parse(world.token("backend")), csr)
    svid, bundle = Svid.load(issued.chain_pem, key), TrustBundle(DOMAIN, issued.bundle_pem)
    return ControlLink([world.url], SvidTls(svid, bundle, SpiffeId.for_service(DOMAIN, "control.meshlib")))


def check(world: Controlled, link: ControlLink, writer: Writer) -> None:
    tokens = {token["id"] for token in world.ask("GET", "/v1/tokens")["tokens"]}
    assert set(writer.tokens) <= tokens
    shown = {s["name"]: s for s in world.ask("GET", "/v1/services?service=backend.default")["services"]}
    instances = {instance["instance"] for instance in shown["backend.default"]["shown"]}
    assert set(writer.instances) <= instances
    document = yaml.safe_load(world.ask("GET", "/v1/policy")["document"])
    config_of(document)
    timeout = int(document["services"]["backend"]["timeout"].removesuffix("ms"))
    assert timeout >= writer.policy
    reply = link.ask("POST", "/v1/poll", {"instance": "reader", "wait_s": 0, "want": []})
    told = {f["resource"]: f["content"] for f in (json.loads(item["payload"]) for item in reply["fragments"])}
    assert told["service/backend.default"]["policy"]["timeout"] == f"{timeout}ms"
