"""Who asks: certificates, tokens, roles, and how often one may be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.control import who as module
from meshlib.control.protocol import CONNECTION, Connection
from meshlib.control.who import FAILURES_BURST, Gate, Member, Newcomer, Operator, Refused
from meshlib.identity.join_token import JoinToken
from meshlib.identity.spiffe import SpiffeId
from meshlib.transport.headers import PEER

OPERATOR, OTHER = JoinToken.create("0" * 64), JoinToken.create("0" * 64)


class World:
    """A gate, and a clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wall = 1000.0
        self.gate = Gate((OPERATOR.id, OPERATOR.secret_sha256), lambda: self.now, lambda: self.wall)

    def refused(self, scope: dict[str, Any], role: Any) -> Refused:
        with pytest.raises(Refused) as refused:
            self.gate.admit(scope, role)
        return refused.value


def scope(
    peer: SpiffeId | str | None = None, *authorization: str, serial: int | None = 7, address: str = "10.0.0.1"
) -> dict[str, Any]:
    """A request; `peer`: a service, or a whole id."""
    if isinstance(peer, str):
        peer = SpiffeId.for_service("shop.dev", peer)
    return {
        "headers": [(b"host", b"x"), *((b"authorization", value.encode("latin-1")) for value in authorization)],
        "state": {PEER: peer, CONNECTION: Connection(None if peer is None else serial)},
        "client": (address, 1234),
    }


def bearer(token: JoinToken) -> str:
    return f"Bearer {token.bearer}"


def test_each_is_taken_for_what_it_proves():
    """A process by its certificate, the operator by its token, a newcomer by whatever token: it is looked at later."""
    gate = World().gate
    assert gate.admit(scope("orders"), "member") == Member("orders.default", 7)
    assert gate.admit(scope("orders.shop"), "member or operator") == Member("orders.shop", 7)
    assert gate.admit(scope(None, bearer(OPERATOR)), "operator") == Operator()
    assert gate.admit(scope("orders", bearer(OPERATOR)), "member or operator") == Operator()
    assert gate.admit(scope(None, bearer(OTHER)), "newcomer") == Newcomer(OTHER.id, OTHER.secret_sha256)
    assert gate.admit({"headers": []}, "anyone") is None


@pytest.mark.parametrize(
    ("asks", "role", "status"),
    [
        (scope(), "member", 401),
        (scope(), "operator", 401),
        (scope(), "member or operator", 401),
        (scope(), "newcomer", 401),
        ({"headers": []}, "member", 401),
        (scope(None, bearer(OPERATOR)), "member", 401),
        (scope("orders", serial=None), "member", 401),
        (scope("orders"), "operator", 403),
        (scope("orders", bearer(OTHER)), "operator", 401),
        (scope("orders"), "newcomer", 401),
        (scope("control.meshlib"), "member", 403),
        (scope("signer.meshlib"), "member or operator", 403),
        (scope(SpiffeId("shop.dev", "/somebody")), "member", 403),
        (scope(None, f"Basic {OPERATOR.bearer}"), "operator", 401),
        (scope(None, OPERATOR.bearer), "operator", 401),
        (scope(None, bearer(OPERATOR) + " "), "operator", 401),
        (scope(None, f"Bearer {OPERATOR}"), "operator", 401),
        (scope(None, bearer(OPERATOR), bearer(OPERATOR)), "operator", 401),
        (scope(None, f"Bearer {OPERATOR.id}.{OTHER.secret}"), "operator", 401),
        (scope(None, f"Bearer {OTHER.id}.{OPERATOR.secret}"), "operator", 401),
        (scope(None, "Bearer " + "x" * 5000), "newcomer", 401),
        (scope(None, "Bearer \xff\xfe"), "newcomer", 401),
        (scope(None, ""), "operator", 401),
    ],
)
def test_everybody_else_is_turned_away(asks: dict[str, Any], role: Any, status: int):
    """No credentials or invalid ones: 401. Valid ones for something else: 403."""
    assert World().refused(asks, role).status == status


def test_a_revoked_certificate_is_nobody_here():
    """From the moment that its enrolment is among the revoked, also on a connection that was open before; and so is
    what was renewed from it.
    """
    world, asks = World(), scope("orders", serial=(7 << 96) + 1)
    world.gate.admit(asks, "member")
    world.gate.trust(frozenset({7}), frozenset())
    assert world.refused(asks, "member").status == 403
    assert world.refused(scope("orders", serial=(7 << 96) + 2), "member").status == 403
    assert world.gate.admit(scope("orders", serial=8 << 96), "member") == Member("orders.default", 8 << 96)


def test_a_certificate_must_be_one_now():
    """Not only in the handshake: one that has ended, or whose root is believed no more, is 401, as is one that does not
    say whose it is. Its connection does not stay.
    """
    world = World()
    world.gate.trust(frozenset(), frozenset({b"root"}))
    asks = scope("orders")
    connection = asks["state"][CONNECTION] = Connection(7 << 96, 2000.0, b"root")
    world.gate.admit(asks, "member")
    assert connection.keep
    world.wall = 2000.0
    refused = world.refused(asks, "member")
    assert (refused.status, "connect anew" in str(refused), connection.keep) == (401, True, False)
    world.wall = 1999.0
    world.gate.admit(asks, "member")
    world.gate.trust(frozenset(), frozenset({b"another"}))
    assert (world.refused(asks, "member").status, connection.keep) == (401, False)
    asks["state"][CONNECTION] = Connection(7 << 96, 2000.0, b"")
    assert world.refused(asks, "member").status == 401


def test_connections_end_with_what_they_hang_on():
    """The moment that a certificate is revoked, or its root dropped, the connections of it are told to end; others, and
    those that are gone, are not.
    """
    world, ended = World(), list[str]()
    world.gate.trust(frozenset(), frozenset({b"old", b"new"}))
    kept = []
    for name, serial, issuer in (
        ("revoked", 7, b"new"),
        ("dropped", 8, b"old"),
        ("good", 9, b"new"),
        ("gone", 7, b"new"),
    ):
        asks = scope("orders")
        connection = Connection(serial << 96, 2000.0, issuer, lambda name=name: ended.append(name))
        kept.append(connection)
        asks["state"][CONNECTION] = connection
        world.gate.admit(asks, "member")
    idle = Connection(7 << 96, 2000.0, b"new", lambda: ended.append("of no request but for its health"))
    world.gate.admit({"headers": [], "state": {CONNECTION: idle}}, "anyone")
    kept[3].lost()
    world.gate.trust(frozenset({7}), frozenset({b"new"}))
    with pytest.raises(Refused):
        world.gate.check(kept[3])  # what it has asked for is not done, although nobody waits for the answer
    assert sorted(ended) == ["dropped", "of no request but for its health", "revoked"]
    assert [connection.keep for connection in kept[:3]] == [False, False, True]


def test_the_operators_connection_stays_and_a_strangers_does_not():
    """Who has shown nothing holds no place once it is answered."""
    world = World()
    operating, nobody = scope(None, bearer(OPERATOR)), scope(None, bearer(OTHER))
    world.gate.admit(operating, "operator")
    world.gate.admit(nobody, "newcomer")
    world.refused(nobody, "operator")
    assert operating["state"][CONNECTION].keep
    assert not nobody["state"][CONNECTION].keep


def test_a_service_is_limited_too(monkeypatch: pytest.MonkeyPatch):
    """Renewing gives another certificate, and no more requests: a service has a burst and a rate, another one its own;
    so many are remembered, no more.
    """
    monkeypatch.setattr(module, "SERVICE_REQUESTS_BURST", 5)
    monkeypatch.setattr(module, "SERVICES_MAX", 2)
    world = World()
    for serial in range(5):
        world.gate.admit(scope("orders", serial=serial), "member")
    refused = world.refused(scope("orders", serial=6), "member")
    assert (refused.status, refused.retry_after_s) == (429, pytest.approx(1 / module.SERVICE_REQUESTS_PER_S))
    world.gate.admit(scope("inventory", serial=7), "member")
    world.now += 1.0
    world.gate.admit(scope("orders", serial=9), "member")
    world.gate.admit(scope("payments", serial=8), "member")
    assert set(world.gate._of_service) == {"orders.default", "payments.default"}


def test_who_is_wrong_too_often_is_not_heard():
    """After a burst of wrong tokens an address is answered 429 with a time; others are not; after that time it is. A join
    token is heard: whether it is wrong is not known yet.
    """
    world = World()
    wrong = scope(None, bearer(OTHER))
    for _ in range(FAILURES_BURST):
        assert world.refused(wrong, "operator").status == 401
    refused = world.refused(wrong, "operator")
    assert (refused.status, refused.retry_after_s) == (429, 1.0)
    assert world.gate.admit(wrong, "newcomer") == Newcomer(OTHER.id, OTHER.secret_sha256)
    assert world.refused(scope(None, bearer(OTHER), address="10.0.0.2"), "operator").status == 401
    world.now += 1.0
    assert world.refused(wrong, "operator").status == 401
    assert world.refused(wrong, "operator").status == 429


def test_the_operator_is_heard_whoever_shares_the_address():
    """Somebody's wrong tokens from the same address do not lock the operator out, nor processes with certificates."""
    world = World()
    for _ in range(FAILURES_BURST + 5):
        world.refused(scope(None, bearer(OTHER)), "operator")
    assert world.gate.admit(scope(None, bearer(OPERATOR)), "operator") == Operator()
    assert world.gate.admit(scope("orders"), "member") == Member("orders.default", 7)


def test_a_join_token_that_the_store_refuses_counts(monkeypatch: pytest.MonkeyPatch):
    """What enrolling finds invalid is counted like any other wrong token; so many addresses are remembered, no more."""
    monkeypatch.setattr(module, "ADDRESSES_MAX", 3)
    world = World()
    for _ in range(FAILURES_BURST):
        world.gate.failed("10.0.0.1")
    with pytest.raises(Refused) as refused:
        world.gate.failed("10.0.0.1")
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1.0)
    for number in range(2, 6):
        world.gate.failed(f"10.0.0.{number}")
    assert len(world.gate._failures) == 3
    assert world.gate.admit(scope(None, bearer(OTHER)), "newcomer") == Newcomer(OTHER.id, OTHER.secret_sha256)


def test_no_refusal_shows_a_secret():
    """Neither the operator's secret, nor the one that was brought."""
    world = World()
    for role in ("operator", "newcomer", "member"):
        said = str(world.refused(scope(None, f"Bearer {OPERATOR.id}.{OTHER.secret}x"), role))
        assert OTHER.secret not in said
        assert OPERATOR.secret not in said


def test_a_certificate_that_asks_in_a_loop_is_not_heard_for_a_while():
    """A burst, then a rate, of each certificate by itself; and it is said when to come back."""
    world = World()
    for _ in range(module.REQUESTS_BURST):
        world.gate.admit(scope("orders"), "member")
    refused = world.refused(scope("orders"), "member")
    assert refused.status == 429
    assert refused.retry_after_s == pytest.approx(1 / module.REQUESTS_PER_S)
    assert world.gate.admit(scope("orders", serial=8), "member") == Member("orders.default", 8)
    world.now += 1.0
    world.gate.admit(scope("orders"), "member")


def test_certificates_that_are_counted_are_bounded(monkeypatch):
    """Who asked longest ago is forgotten."""
    monkeypatch.setattr(module, "MEMBERS_MAX", 2)
    gate = World().gate
    for serial in range(5):
        gate.admit(scope("orders", serial=serial), "member")
    assert set(gate._requests) == {3, 4}
