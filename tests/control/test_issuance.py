"""Who gets a certificate, for what, and who does not any more."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from meshlib.control import store as store_module
from meshlib.control.catalog import Catalog
from meshlib.control.clock import HybridClock
from meshlib.control.issuance import Issuer, RotationTooSoon
from meshlib.control.store import CertificateRevoked, Store, TokenRefused
from meshlib.errors import PermissionDenied
from meshlib.identity.authority_file import AuthorityFile
from meshlib.identity.ca import BACKDATE_S
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken, parse_bearer
from meshlib.identity.roots import Roots
from meshlib.identity.signature import Verifier
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import PeerIdentityError, Svid, TrustBundle, enrolment_of, leaf_facts, verify_svid

TRUST_DOMAIN = "shop.example"
START, HOUR, DAY = 1_800_000_000.0, 3600.0, 86_400.0


class World:
    """An issuer over a real store and a real authority, at a time that the test sets."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.now, self.folder, self.more = START, folder, more
        self.folder.mkdir(mode=0o700)
        self.start()

    def start(self) -> None:
        self.store = Store.open(self.folder / "store.sqlite")
        self.authority = AuthorityFile(self.folder / "ca")
        self.issuer = Issuer(self.store, self.authority, TRUST_DOMAIN, wall=lambda: self.now, **self.more)

    def restart(self) -> None:
        self.store.close()
        self.start()

    def enrol(self, token: JoinToken, csr: bytes, **more: Any) -> Any:
        """By what goes over the wire."""
        bearer = parse_bearer(f"Bearer {token.bearer}")
        assert bearer is not None
        return self.issuer.enrol(*bearer, csr, **more)

    def bundle(self) -> TrustBundle:
        return TrustBundle(TRUST_DOMAIN, self.issuer.trust_content(1.0)["bundle"].encode())

    def verified(self, pem: bytes, bundle: TrustBundle | None = None) -> str:
        """The service that a chain proves now."""
        chain = Svid.load(pem, self.key).chain()
        return str(verify_svid(chain, {TRUST_DOMAIN: bundle or self.bundle()}, self.now).service)

    def csr(self, service: str = "orders.default") -> bytes:
        """A request with a new key, which `verified` then uses."""
        csr, self.key = make_csr(SpiffeId.for_service(TRUST_DOMAIN, service))
        return csr


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "control")
    yield world
    world.store.close()


def serial_of(pem: bytes) -> int:
    return leaf_facts(pem).serial


def test_a_token_lets_one_process_in_as_the_service_it_is_for(world):
    """Whatever the request says of itself: every field is the authority's."""
    token = world.issuer.create_token("inventory")
    issued = world.enrol(token, world.csr("orders.default"), instance="ab")
    assert world.verified(issued.chain_pem) == "inventory.default"
    facts = leaf_facts(issued.chain_pem)
    assert (facts.not_before, facts.not_after) == (START - BACKDATE_S, START + DAY)
    assert issued.bundle_pem == world.bundle().pem
    assert issued.generation == world.issuer.generation == 1


def test_the_token_names_the_root_and_the_store_keeps_no_secret(world):
    """F24: what is on the disk is of no use to whoever reads it."""
    token = world.issuer.create_token("inventory.stock", uses=3, ttl_s=60.0)
    assert token.root_sha256 == world.issuer.root_sha256 == world.authority.read().signer.sha256
    (kept,) = world.store.tokens(START)
    assert (kept.id, kept.service, kept.uses, kept.expires) == (token.id, "inventory.stock", 3, START + 60.0)
    world.store.close()
    assert all(token.secret.encode() not in path.read_bytes() for path in world.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("service", "uses", "ttl_s", "sentence"),
    [
        ("control.meshlib", 1, 60.0, "the config service's own"),
        ("signer.meshlib", 1, 60.0, "the config service's own"),
        ("any.meshlib", 1, 60.0, "the config service's own"),
        ("Inventory", 1, 60.0, "DNS labels"),
        ("a.b.c", 1, 60.0, "DNS labels"),
        ("inventory", 0, 60.0, "at least one use"),
        ("inventory", 1, 0.0, "some time"),
        ("inventory", 1, float("nan"), "some time"),
        ("inventory", 1, 40 * DAY, "at most"),
    ],
)
def test_no_token_for_what_must_not_be(world, service, uses, ttl_s, sentence):
    """Whoever could enrol as the control service would be everybody."""
    with pytest.raises(ValueError, match=sentence):
        world.issuer.create_token(service, uses, ttl_s)
    assert world.store.tokens(START) == []


def test_of_fifty_who_redeem_one_use_with_different_keys_one_wins(world):
    """F24: at once, as threads; the others learn that it is used."""
    token = world.issuer.create_token("inventory")
    csrs, barrier = [world.csr() for _ in range(50)], threading.Barrier(50)

    def redeem(csr: bytes) -> str:
        barrier.wait()
        try:
            world.enrol(token, csr)
        except TokenRefused as refused:
            return refused.reason
        return "won"

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(redeem, csrs))
    assert sorted(answers) == ["used"] * 49 + ["won"]


def test_a_lost_answer_may_be_asked_for_again(world):
    """With the same key, as often as need be, also after a restart; it costs no use, and is the same enrolment."""
    token, csr = world.issuer.create_token("inventory"), world.csr()
    first = world.enrol(token, csr)
    world.restart()
    second = world.enrol(token, csr)
    serials = serial_of(first.chain_pem), serial_of(second.chain_pem)
    assert serials[0] != serials[1]
    assert enrolment_of(serials[0]) == enrolment_of(serials[1])
    assert world.store.tokens(START)[0].used == 1


def test_a_bad_request_costs_no_use(world):
    """A client with a defect can be mended and try again."""
    token = world.issuer.create_token("inventory")
    with pytest.raises(ValueError, match="certificate request"):
        world.enrol(token, b"no request")
    world.enrol(token, world.csr())


def test_a_token_of_another_service_is_refused_and_not_used_up(world):
    """A file is named by mistake: who says who it is to be can try again."""
    token = world.issuer.create_token("inventory")
    with pytest.raises(TokenRefused, match=r"of inventory\.default, not of orders\.default"):
        world.enrol(token, world.csr(), expected="orders.default")
    world.enrol(token, world.csr(), expected="inventory.default")


def test_a_token_ends_and_its_secret_matters(world):
    """Expired and wrong are refused."""
    token = world.issuer.create_token("inventory", ttl_s=60.0)
    with pytest.raises(TokenRefused, match="unknown"):
        world.issuer.enrol(token.id, "0" * 64, world.csr())
    world.now += 60.0
    with pytest.raises(TokenRefused, match="expired"):
        world.enrol(token, world.csr())


def test_who_has_a_leaf_gets_another_for_itself(world):
    """The service is the certificate's, never the request's."""
    first = world.enrol(world.issuer.create_token("inventory"), world.csr())
    world.now += 12 * HOUR
    second = world.issuer.renew("inventory.default", serial_of(first.chain_pem), world.csr("orders.default"))
    assert world.verified(second.chain_pem) == "inventory.default"
    assert leaf_facts(second.chain_pem).not_after == world.now + DAY


def test_nobody_renews_as_the_config_service(world):
    """Not even with its certificate: it issues its own."""
    with pytest.raises(PermissionDenied, match="own"):
        world.issuer.renew("control.meshlib", world.issuer.own_svid().serial, world.csr())


def test_a_revoked_leaf_takes_its_enrolment_with_it(world):
    """Whichever leaf is named, of however many: those before it, beside it and to come; the key does not enrol again."""
    token, csr = world.issuer.create_token("inventory", uses=2), world.csr()
    first = serial_of(world.enrol(token, csr).chain_pem)
    leaves = [serial_of(world.issuer.renew("inventory.default", first, world.csr()).chain_pem) for _ in range(3)]
    leaves.append(serial_of(world.issuer.renew("inventory.default", leaves[1], world.csr()).chain_pem))
    other = serial_of(world.enrol(token, world.csr()).chain_pem)
    enrolment = enrolment_of(first)
    assert {enrolment_of(serial) for serial in leaves} == {enrolment} != {enrolment_of(other)}
    assert world.issuer.revoke(leaves[2]) == enrolment
    assert world.issuer.trust_content(1.0)["revoked"] == [f"{enrolment:x}"]
    for serial in (first, *leaves):
        with pytest.raises(CertificateRevoked):
            world.issuer.renew("inventory.default", serial, world.csr())
    with pytest.raises(CertificateRevoked):
        world.enrol(token, csr)
    world.issuer.renew("inventory.default", other, world.csr())
    world.now += DAY
    assert world.issuer.trust_content(1.0)["revoked"] == [], "all have expired"


def test_what_was_never_issued_is_not_revoked(world):
    """It is a mistake of the operator's, who is told so; unless the store is too young to know, or it is seen in use."""
    known = serial_of(world.enrol(world.issuer.create_token("inventory"), world.csr()).chain_pem)
    for serial in (0, 7, (1 << 160) - 1):
        with pytest.raises(ValueError, match="no certificate"):
            world.issuer.revoke(serial)
    lost = 5 << 96 | 1
    assert world.issuer.revoke(lost) == 5, "the store may be a new one, in the place of one that was lost"
    world.now += DAY - 1.0
    world.restart()
    assert world.issuer.revoke(6 << 96) == 6
    world.now += 1.0
    with pytest.raises(ValueError, match=f"no certificate {7 << 96:x} was issued"):
        world.issuer.revoke(7 << 96)
    assert world.issuer.revoke(7 << 96, seen=True) == 7
    with pytest.raises(ValueError, match="or it has ended"):
        world.store.forget(world.now)
        world.issuer.revoke(known)


def test_more_than_everybody_can_be_told_of_is_said(world, monkeypatch, caplog):
    """The operator can always revoke; beyond the bound of the list only a new root ends the oldest."""
    monkeypatch.setattr(store_module, "REVOKED_MAX", 1)
    monkeypatch.setattr("meshlib.control.issuance.REVOKED_MAX", 1)
    token = world.issuer.create_token("inventory", uses=2)
    serials = [serial_of(world.enrol(token, world.csr()).chain_pem) for _ in range(2)]
    world.issuer.revoke(serials[0])
    assert caplog.text == ""
    world.now += 1.0
    world.issuer.revoke(serials[1])
    assert "2 enrolments are revoked, and processes are told of the last 1: replace the root twice" in caplog.text
    assert world.issuer.trust_content(1.0)["revoked"] == [f"{enrolment_of(serials[1]):x}"]
    with pytest.raises(CertificateRevoked):
        world.issuer.renew("inventory.default", serials[0], world.csr())


def test_an_enrolment_is_in_the_log(world, caplog):
    """Which service, which token, which certificate: what it takes to revoke it."""
    with caplog.at_level(logging.INFO, "meshlib.control"):
        token = world.issuer.create_token("inventory")
        serial = serial_of(world.enrol(token, world.csr()).chain_pem)
        world.issuer.renew("inventory.default", serial, world.csr())
    assert caplog.messages == [f"inventory.default enrolled with join token {token.id}: certificate {serial:x}"]


def test_the_config_service_does_not_revoke_itself(world):
    """Nobody would learn anything any more."""
    world.issuer.signer()
    with pytest.raises(ValueError, match="rotate the root"):
        world.issuer.revoke(world.issuer.own_svid().serial)
    assert world.issuer.trust_content(1.0)["revoked"] == []


def test_the_operator_has_one_token(world):
    """A new one ends the one before."""
    world.issuer.create_operator()
    token = world.issuer.create_operator()
    assert world.store.operator() == parse_bearer(f"Bearer {token.bearer}")


def test_the_config_service_and_its_signer_are_who_they_say(world):
    """A fragment of the catalog verifies by the trust that the catalog publishes, as long as the root lives: a snapshot is
    not worthless for having seen no edit for a week.
    """
    world.key = world.issuer.own_svid().private_key_pem
    svid, signer = world.issuer.own_svid(), world.issuer.signer()
    chain = {TRUST_DOMAIN: world.bundle()}
    assert str(verify_svid(svid.chain(), chain, START)) == f"spiffe://{TRUST_DOMAIN}/ns/meshlib/sa/control"
    assert svid.not_after == START + DAY
    catalog = Catalog(world.store.epoch, "shop", HybridClock(0, lambda: START), signer)
    catalog.put(catalog.propose({"trust": world.issuer.trust_content(1.0)}))
    fragment = json.loads(catalog.newer(["trust"], {}, 1 << 20)[0])
    expected = SpiffeId.for_service(TRUST_DOMAIN, "signer.meshlib")
    verifier = Verifier.of(signer.chain_pem, world.bundle(), expected, START + 364 * DAY)
    verifier.verify(fragment["payload"].encode(), fragment["signature"])
    with pytest.raises(ValueError, match="signature"):
        verifier.verify(fragment["payload"].replace("shop", "shup").encode(), fragment["signature"])


def test_the_authority_outlives_a_restart_and_is_one_trust_domain_s(world):
    """Another trust domain in mesh.yaml is refused: nobody would believe anybody."""
    before = world.issuer.root_sha256
    world.restart()
    assert world.issuer.root_sha256 == before
    with pytest.raises(ValueError, match=re.escape("trust domain shop.example, not of other.example")):
        Issuer(world.store, world.authority, "other.example")


def test_a_rotation_of_leaves_asks_everybody_for_a_new_one(world):
    """The generation says so; the roots are the same."""
    bundle = world.bundle()
    assert world.issuer.rotate_leaves() == 2
    assert world.bundle() == bundle
    assert world.issuer.trust_content(30.0)["generation"] == 2
    assert world.issuer.trust_content(30.0)["spread_s"] == 30.0


def test_a_root_is_believed_before_it_signs(world):
    """F13. Between the two steps leaves are the old root's, and everybody believes both."""
    token = world.issuer.create_token("inventory", uses=3)
    old = world.bundle()
    proposed = world.issuer.rotate_root_begin()
    assert len(world.bundle().roots()) == 2
    assert world.verified(world.enrol(token, world.csr()).chain_pem, old) == "inventory.default"
    assert world.issuer.rotate_root_end(proposed) == 3
    issued = world.enrol(token, world.csr())
    assert world.verified(issued.chain_pem) == "inventory.default"
    with pytest.raises(PeerIdentityError):
        world.verified(issued.chain_pem, old)
    assert world.issuer.rotate_root_end(proposed) == 3, "ended twice is ended once"


def test_who_slept_through_a_rotation_still_believes_the_config_service(world):
    """And a join token from before it is still good: both know the old root only."""
    token, old = world.issuer.create_token("inventory", ttl_s=HOUR), world.bundle()
    world.issuer.rotate_root_end(world.issuer.rotate_root_begin())
    svid = world.issuer.own_svid()
    world.key = svid.private_key_pem
    assert world.verified(svid.certificate_pem, old) == "control.meshlib"
    assert world.issuer.root_sha256 == token.root_sha256
    Verifier.of(world.issuer.signer().chain_pem, old, SpiffeId.for_service(TRUST_DOMAIN, "signer.meshlib"), START)
    world.enrol(token, world.csr())


def test_two_who_rotate_at_once_end_with_one_root(world):
    """The second joins; and one who comes late with an old rotation ends nothing that is newer."""
    first, second = world.issuer.rotate_root_begin(), world.issuer.rotate_root_begin()
    assert world.issuer.rotate_root_end(first) == world.issuer.rotate_root_end(second) == 3
    world.issuer.rotate_root_begin(force=True)
    assert world.issuer.rotate_root_end(second) == 4, "a root signed that was not known yet"
    assert world.authority.read().coming is not None


def test_the_signer_is_one_until_another_root_is_the_anchor(world):
    """What is signed stays as good as its root. A clock that went back makes another, which is valid already."""
    first = world.issuer.signer()
    world.now += 100 * DAY
    assert world.issuer.signer() is first
    world.now = START - HOUR
    second = world.issuer.signer()
    assert second is not first
    expected = SpiffeId.for_service(TRUST_DOMAIN, "signer.meshlib")
    world.now = START
    world.issuer.rotate_root_end(world.issuer.rotate_root_begin())
    assert world.issuer.signer() is second, "the anchor is the same"
    world.now += DAY
    world.issuer.rotate_root_end(world.issuer.rotate_root_begin())
    third = world.issuer.signer()
    assert third is not second
    Verifier.of(third.chain_pem, world.bundle(), expected, world.now + 300 * DAY)


def test_a_root_that_was_replaced_lately_is_not_replaced_again(world):
    """Who slept through the first would be lost: refused until all leaves of it have ended, unless it is forced."""
    first, old = world.issuer.rotate_root_begin(), world.bundle()
    assert world.issuer.rotate_root_begin().generation == first.generation, "while one is coming, it is that one"
    world.issuer.rotate_root_end(first)
    world.now += DAY - 2.0
    with pytest.raises(RotationTooSoon, match=r"from 2027-01-16 .* UTC on it may be replaced again"):
        world.issuer.rotate_root_begin()
    assert world.authority.read().coming is None
    assert world.issuer.rotate_root_begin(force=True).coming is not None
    world.restart()
    world.now += 2.0
    world.issuer.rotate_root_end(world.issuer.coming)
    with pytest.raises(RotationTooSoon):
        world.issuer.rotate_root_begin()
    world.now += DAY
    world.issuer.rotate_root_begin()
    assert {root.serial_number for root in old.roots()} & {root.serial_number for root in world.bundle().roots()}


def test_a_rotation_that_was_left_half_way_is_not_ended_by_its_age(world):
    """Killed between the steps, perhaps before anybody was told: neither a start nor time lets the new root sign."""
    assert (world.issuer.coming, world.issuer.is_new) == (None, True)
    proposed = world.issuer.rotate_root_begin()
    world.now += 100 * DAY
    world.restart()
    assert not world.issuer.due()
    assert world.issuer.coming.generation == proposed.generation
    assert world.authority.read().coming is not None
    assert not world.issuer.is_new
    assert world.issuer.rotate_root_end(world.issuer.coming) == 3


def test_a_root_that_ends_soon_is_replaced_without_anybody(tmp_path):
    """Over ten lives of a root: whoever looked a minute ago believes every new leaf, whoever looked ten minutes ago the
    config service.
    """
    world = World(tmp_path / "control", leaf_life_s=300.0, root_life_s=7200.0)
    token = world.issuer.create_token("inventory", uses=10_000, ttl_s=DAY)
    long_ago = a_minute_ago = world.bundle()
    for minute in range(1200):
        world.now += 60.0
        coming = world.issuer.coming
        if coming is not None:
            world.issuer.rotate_root_end(coming)
        if world.issuer.due() or coming is not None or minute % 10 == 0:
            assert world.verified(world.enrol(token, world.csr()).chain_pem, a_minute_ago) == "inventory.default"
            svid = world.issuer.own_svid()
            world.key = svid.private_key_pem
            assert world.verified(svid.certificate_pem, long_ago) == "control.meshlib"
        a_minute_ago = world.bundle()
        long_ago = a_minute_ago if minute % 10 == 0 else long_ago
    assert world.issuer.generation >= 20
    world.store.close()


def test_a_service_that_was_away_until_its_root_had_ended_starts_with_a_new_one(world):
    """No leaf is valid, so there is nobody to wait for."""
    world.now += 400 * DAY
    world.restart()
    issued = world.enrol(world.issuer.create_token("inventory"), world.csr())
    assert world.verified(issued.chain_pem) == "inventory.default"


def test_an_authority_whose_folder_was_lost_is_written_again(world):
    """The process that has it in memory is the last that has it."""
    before = world.issuer.root_sha256
    for path in (world.folder / "ca").iterdir():
        path.unlink()
    world.issuer.rotate_leaves()
    assert world.authority.read().signer.sha256 == before
    assert isinstance(world.authority.read(), Roots)
