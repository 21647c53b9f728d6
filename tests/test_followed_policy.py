"""The policy as it is followed: what a signer says, what a forger says, and what is in force after either."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Collection
from typing import Any

import pytest
from discovery.fragments import endpoint

from meshlib.config import MeshConfig, config_of
from meshlib.discovery.fragment import FragmentError, Reply, Signed, parse_reply
from meshlib.followed_policy import SIGNER_SERVICE, FollowedPolicy
from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.signature import Signer
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import TrustBundle
from meshlib.telemetry.metrics import Metrics

RUNS = int(os.environ.get("MESHLIB_FUZZ", "500"))
DOMAIN = "shop.dev"
BOOTSTRAP = config_of({"version": 1, "mesh": "shop", "control": {"urls": ["https://127.0.0.1:7443"]}})
AUTHORITY = CertificateAuthority.create(DOMAIN, now=time.time())
BUNDLE = TrustBundle(DOMAIN, AUTHORITY.certificate_pem)
REGISTRY = {"endpoints": [{"registry": {}}]}


def signer_of(authority: CertificateAuthority, service: str = SIGNER_SERVICE) -> Signer:
    return Signer(authority.issue(SpiffeId.for_service(authority.trust_domain, service), now=time.time()))


SIGNER = signer_of(AUTHORITY)


def contents(n: int = 1, **policy: Any) -> dict[str, Any]:
    """What the config service would publish."""
    return {
        "trust": {"bundle": AUTHORITY.certificate_pem.decode(), "generation": n, "spread_s": 0.0, "revoked": []},
        "defaults": {"timeout": "2s"},
        "service/front.default": {"policy": {}, "needs": []},
        "service/items.default": {"policy": {**REGISTRY, **policy}, "needs": []},
        "endpoints/items.default": [endpoint(f"127.0.0.1:{port}") for port in range(1001, 1005)],
    }


def signed(resource: str, n: int, content: Any, signer: Signer = SIGNER, **fields: Any) -> Signed:
    payload = json.dumps({"resource": resource, "epoch": "e1", "n": n, "mesh": "shop", "content": content, **fields})
    return Signed(payload, signer.sign(payload.encode()), signer.chain_pem.decode())


def replied(*fragments: Signed) -> Reply:
    return Reply("e1", True, 1.0, fragments)


def everything(n: int, signer: Signer = SIGNER, **policy: Any) -> Reply:
    return replied(*(signed(resource, n, content, signer) for resource, content in contents(n, **policy).items()))


class Process:
    """A followed policy, and all that it has put in force or told to believe."""

    def __init__(self) -> None:
        self.configs: list[tuple[MeshConfig, Collection[str], bool]] = []
        self.believed: list[tuple[TrustBundle, int, float]] = []
        self.metrics = Metrics()
        self.policy = FollowedPolicy(
            BOOTSTRAP, "front.default", "https://127.0.0.1:7443", self.metrics, self._put,
            lambda *trust: self.believed.append(trust),
        )  # fmt: skip
        self.policy.subscription.want(["items.default"])

    def _put(self, config: MeshConfig, known: Collection[str], *, quiet: bool) -> None:
        self.configs.append((config, known, quiet))

    def takes(self, reply: Reply, bundle: TrustBundle = BUNDLE) -> None:
        self.policy.verify(reply.signed, bundle)
        self.policy.take(reply, 0.0)

    @property
    def config(self) -> MeshConfig:
        return self.configs[-1][0]


def test_what_is_signed_is_put_in_force() -> None:
    """Policy, defaults, endpoints of the registry, roots: one configuration, and who is known."""
    process = Process()
    process.takes(everything(1, timeout="500ms"))
    assert process.config.services["items.default"].timeout == 0.5
    assert process.config.defaults.timeout == 2.0
    assert [e.port for e in process.config.endpoints("items.default")] == [1001, 1002, 1003, 1004]
    known = set(process.configs[-1][1])
    assert "items.default" in known
    assert "front.default" not in known  # a server alone follows nobody's endpoints, not even its own
    assert [(b.pem, generation) for b, generation, _ in process.believed] == [(AUTHORITY.certificate_pem, 1)]
    assert 'meshlib_policy_version{resource="service/items.default"} 1' in process.metrics.render()


def test_endpoints_alone_are_no_new_policy() -> None:
    """They are put in force quietly; the policy is not composed again."""
    process = Process()
    process.takes(everything(1))
    process.takes(
        replied(signed("endpoints/items.default", 2, [endpoint("127.0.0.1:1001"), endpoint("127.0.0.1:1002")]))
    )
    config, _, quiet = process.configs[-1]
    assert quiet
    assert [e.port for e in config.endpoints("items.default")] == [1001, 1002]
    assert config.services["items.default"] is process.configs[0][0].services["items.default"]


@pytest.mark.parametrize("forger", ["another root", "another service", "no signature", "another payload"])
def test_nothing_of_a_forged_reply_is_believed(forger: str) -> None:
    """Not even its fragments that are signed well (F03)."""
    process = Process()
    process.takes(everything(1))
    text = signed("defaults", 9, {"timeout": "9s"})
    forged = {
        "another root": signed("defaults", 9, {}, signer_of(CertificateAuthority.create(DOMAIN, now=time.time()))),
        "another service": signed("defaults", 9, {}, signer_of(AUTHORITY, "items.default")),
        "no signature": Signed(text.payload, "", text.signer),
        "another payload": Signed(text.payload.replace("9s", "8s"), text.signature, text.signer),
    }[forger]
    good = signed("service/items.default", 9, {"policy": {"timeout": "9s"}, "needs": []})
    with pytest.raises(FragmentError):
        process.takes(replied(good, forged))
    assert len(process.configs) == 1


def test_a_new_root_comes_only_with_the_word_of_an_old_one() -> None:
    """A service that has lost its CA signs with another: it says nothing to those who knew it (F04)."""
    process = Process()
    process.takes(everything(1))
    stranger = CertificateAuthority.create(DOMAIN, now=time.time())
    told = {**contents()["trust"], "bundle": stranger.certificate_pem.decode()}
    with pytest.raises(FragmentError):
        process.takes(replied(signed("trust", 9, told, signer_of(stranger))))
    process.takes(
        replied(signed("trust", 9, {**told, "bundle": (AUTHORITY.certificate_pem + stranger.certificate_pem).decode()}))
    )
    assert process.believed[-1][0].pem == AUTHORITY.certificate_pem + stranger.certificate_pem


def test_what_cannot_be_used_is_counted_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """By resource, with its field; the last good version stays; the next poll says so."""
    process = Process()
    process.takes(everything(1, timeout="500ms"))
    bad = signed("service/items.default", 2, {"policy": {**REGISTRY, "timeout": "soon"}, "needs": []})
    process.takes(replied(bad))
    process.takes(replied(bad))
    assert process.config.services["items.default"].timeout == 0.5
    assert caplog.text.count("services.items.default.timeout: 'soon' is not a duration") == 1
    assert 'meshlib_policy_rejected_total{resource="service/items.default"} 1' in process.metrics.render()
    assert "'soon'" in process.policy.subscription.request()["rejected"]["service/items.default"]["why"]


def test_a_snapshot_is_verified_like_a_reply(caplog: pytest.LogCaptureFixture) -> None:
    """What a disk has changed is left out, the rest is in force."""
    first = Process()
    first.takes(everything(1, timeout="500ms"))
    kept = first.policy.subscription.signed()
    forged = [
        Signed(s.payload.replace("127.0.0.1:1001", "127.0.0.1:6666"), s.signature, s.signer) for s in kept
    ]  # fmt: skip
    second = Process()
    second.policy.take_snapshot(forged, BUNDLE, 0.0)
    second.policy.publish(0.0)
    assert "items.default" not in second.config.services, "it waits for its endpoints"
    third = Process()
    third.policy.take_snapshot(kept, BUNDLE, 0.0)
    assert third.configs == [], "it is put in force when nothing newer comes"
    third.policy.publish(0.0)
    assert [e.port for e in third.config.endpoints("items.default")] == [1001, 1002, 1003, 1004]
    assert "not signed by the config service" in caplog.text


def mutated(value: Any, rng: random.Random) -> Any:
    """The same plain data with one thing changed, somewhere."""
    value = copy.deepcopy(value)
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            del value[key]
        else:
            value[key] = mutated(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        value[at] = mutated(value[at], rng)
        return value[: rng.randint(0, len(value))] if rng.random() < 0.3 else value
    return rng.choice(
        [None, 0, -1, 1e308, True, "", "x" * 3000, [], {}, [[[]]], {"a": {"b": {}}}, "\u2028\x00", "10s", 2**70]
    )


@pytest.mark.fuzz
def test_a_service_that_talks_garbage_changes_nothing() -> None:
    """F03: mutated replies, byte by byte: refused as a whole, or ignored; nothing else is ever in force."""
    rng, process = random.Random(3), Process()
    process.takes(everything(1))
    good = everything(2, timeout="9s")
    body = json.dumps({
        "epoch": "e1", "registered": True, "reconnect_s": 1.0, "signer": SIGNER.chain_pem.decode(),
        "fragments": [{"payload": s.payload, "signature": s.signature} for s in good.signed],
    }).encode()  # fmt: skip
    refused = 0
    for _ in range(RUNS):
        text = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text))
            kind = rng.randint(0, 3)
            if kind == 0:
                text[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del text[at : at + rng.randint(1, 50)]
            elif kind == 2:
                text[at:at] = rng.choice([b"{", b"null", b'"', b"\xff", b"1e999", b"\\u0000"])
            else:
                del text[at:]
                text += b"<html>"
        try:
            process.takes(parse_reply(bytes(text)))
        except FragmentError:
            refused += 1
        else:
            # what the signature does not cover was hit, or a fragment was lost whole: the rest is the signer's word
            process = Process()
            process.takes(everything(1))
        assert process.config.services["items.default"].timeout is None
    assert refused > RUNS / 2


@pytest.mark.fuzz
def test_a_signer_that_talks_garbage_breaks_nothing() -> None:
    """F03: signed, and nonsense: rejected per resource, never an exception; what is in force is always whole."""
    rng, process = random.Random(4), Process()
    process.takes(everything(1))
    for n in range(2, RUNS + 2):
        resource, content = rng.choice(
            list(contents(n, routes=[{"name": "r", "timeout": "1s", "backends": [{"weight": 1}]}]).items())
        )
        process.takes(replied(signed(resource, n, mutated(content, rng))))
        assert {"front.default", "items.default"} >= set(process.config.services)
    process.takes(everything(RUNS + 10))
    process.takes(everything(RUNS + 11))
    assert [e.port for e in process.config.endpoints("items.default")] == [1001, 1002, 1003, 1004]
    assert process.policy.subscription.rejected == {}
