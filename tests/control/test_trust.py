"""Rotation, revocation and the service's own certificates; in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from meshlib.control.messages import Rotate
from meshlib.control.plane import UPKEEP_S
from meshlib.control.registry import GRACE_S, TTL_S
from meshlib.control.rotation import ROTATION_WAIT_S
from meshlib.identity.csr import make_csr
from meshlib.identity.roots import PROPAGATION_S
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, enrolment_of

from .config_service import Follower, Service, enrolled, played
from .virtual_time import passes, steps


async def ticking(service: Service, seconds: float) -> None:
    """Let time pass, by both clocks, with a tick each second."""
    for _ in range(round(seconds)):
        await passes(1)
        service.now += 1
        service.plane.tick()
        await steps(20)


def test_rotating_leaves_asks_everybody_for_a_new_one(tmp_path: Path):
    """`trust` has the next generation, and a time over which the renewals are spread."""

    async def scenario(service: Service) -> None:
        follower, operator = Follower(service, "orders", "o1"), service.operating()
        await follower.poll()
        before = follower.contents["trust"]
        told = await operator.told("POST", "/v1/ca/rotate", Rotate().model_dump())
        assert await follower.poll() == ["trust"]
        after = follower.contents["trust"]
        assert told["generation"] == after["generation"] == before["generation"] + 1
        assert (after["bundle"], after["spread_s"]) == (before["bundle"], 1.0)

    played(tmp_path, scenario)


def test_a_new_root_signs_once_all_believe_it(tmp_path: Path):
    """Begun, it is believed beside the old one. It signs when every live process has it, not before PROPAGATION_S."""

    async def scenario(service: Service) -> None:
        followers = [Follower(service, "orders", f"o{number}") for number in range(2)]
        for follower in followers:
            await follower.poll()
        old = service.authority.read().signer.sha256
        await service.operating().told("POST", "/v1/ca/rotate", {"root": True})
        await followers[0].poll()
        held = [asyncio.create_task(followers[0].poll(wait_s=60.0))]
        assert followers[0].contents["trust"]["bundle"].count("BEGIN CERT") == 2
        await ticking(service, PROPAGATION_S + 3)
        assert service.authority.read().coming is not None, "the other does not believe it yet"
        await followers[1].poll(wait_s=0.0)
        held.append(asyncio.create_task(followers[1].poll(wait_s=60.0)))
        await steps(10)
        await ticking(service, 2)
        roots = service.authority.read()
        assert (roots.coming, roots.previous and roots.previous.sha256) == (None, old)
        assert await asyncio.gather(*held) == [["trust"], ["trust"]]
        assert service.plane.rotation is None

    played(tmp_path, scenario)


def test_nobody_is_waited_for_beyond_a_minute(tmp_path: Path):
    """A process that polls and does not take the new root holds the rotation up to ROTATION_WAIT_S."""

    async def scenario(service: Service) -> None:
        stubborn = Follower(service, "orders", "o1")
        await stubborn.poll()
        await service.operating().told("POST", "/v1/ca/rotate", {"root": True})
        for _ in range(round(ROTATION_WAIT_S / 5) - 1):
            await stubborn.client.told("POST", "/v1/poll", {"instance": "o1"})
            await ticking(service, 5)
            assert service.authority.read().coming is not None
        await ticking(service, 7)
        assert service.authority.read().coming is None

    played(tmp_path, scenario)


def test_the_dead_are_not_waited_for(tmp_path: Path):
    """A process that has been silent for as long as a lease does not hold up the rotation."""

    async def scenario(service: Service) -> None:
        await Follower(service, "orders", "gone").poll()
        await service.operating().told("POST", "/v1/ca/rotate", {"root": True})
        await ticking(service, TTL_S + 2)
        assert service.authority.read().coming is None

    played(tmp_path, scenario)


def test_the_operators_token_names_the_root_that_all_believe(tmp_path: Path):
    """After a rotation the service tells whoever keeps the token, so that it can be written anew."""

    async def scenario(service: Service) -> None:
        told: list[str] = []
        service.plane._after_rotation = lambda: told.append(service.issuer.root_sha256)
        await service.operating().told("POST", "/v1/ca/rotate", {"root": True})
        await ticking(service, PROPAGATION_S + 2)
        assert told[-1] == service.issuer.root_sha256

    played(tmp_path, scenario)


def test_what_is_revoked_is_told_and_turned_away(tmp_path: Path):
    """Its poll ends, its next request is 403, everybody's `trust` has its enrolment; so it is for all of that enrolment,
    whichever leaf was named, and for nobody else.
    """

    async def scenario(service: Service) -> None:
        svid = await enrolled(service, "inventory")
        follower = Follower(service, "inventory", "i1", serial=svid.serial)
        sibling = await _renewed(service.client("inventory", svid.serial))
        other = Follower(service, "inventory", "i2", serial=(await enrolled(service, "inventory")).serial)
        for one in (follower, other):
            await one.poll()
        held = asyncio.create_task(follower.poll(wait_s=60.0))
        await steps(10)
        told = await service.operating().told("POST", "/v1/ca/revoke", {"serial": f"{sibling.serial:X}"})
        assert told == {"serials": [f"{sibling.serial:x}", f"{svid.serial:x}"]}
        with pytest.raises(AssertionError, match="this certificate is revoked"):
            await held
        assert (await follower.client.ask("POST", "/v1/poll", {"instance": "i1"})).status_code == 403
        assert await other.poll() == ["trust"]
        assert other.contents["trust"]["revoked"] == [f"{enrolment_of(svid.serial):x}"]
        assert (await service.operating().told("GET", "/v1/ca"))["revoked"] == [f"{enrolment_of(svid.serial):x}"]
        await _renewed(other.client)

    played(tmp_path, scenario)


def test_who_polls_can_be_revoked_whatever_the_store_knows(tmp_path: Path):
    """A backup from before it enrolled came back: its certificate is good, so it was issued. What nobody shows: 400."""

    async def scenario(service: Service) -> None:
        service.now += 86_400.0
        follower = Follower(service, "inventory", "i1", serial=5 << 96 | 1)
        await follower.poll()
        operator = service.operating()
        unknown = await operator.ask("POST", "/v1/ca/revoke", {"serial": f"{6 << 96:x}"})
        assert (unknown.status_code, "was issued" in unknown.json()["message"]) == (400, True)
        await operator.told("POST", "/v1/ca/revoke", {"serial": f"{5 << 96 | 2:x}"})
        assert (await follower.client.ask("POST", "/v1/poll", {"instance": "i1"})).status_code == 403

    played(tmp_path, scenario)


def test_the_revoked_cannot_renew(tmp_path: Path):
    """Neither with the certificate, nor with any other of its enrolment, whichever was named."""

    async def scenario(service: Service) -> None:
        svid = await enrolled(service, "inventory")
        client = service.client("inventory", svid.serial)
        renewed = await _renewed(client)
        await service.operating().told("POST", "/v1/ca/revoke", {"serial": f"{renewed.serial:x}"})
        for serial in (svid.serial, renewed.serial):
            csr, _ = make_csr(svid.id)
            reply = await service.client("inventory", serial).ask("POST", "/v1/renew", {"csr": csr.decode()})
            assert reply.status_code == 403

    played(tmp_path, scenario)


async def _renewed(client: Any) -> Svid:
    csr, key = make_csr(SpiffeId.for_service("shop.dev", "inventory"))
    issued = await client.told("POST", "/v1/renew", {"csr": csr.decode()})
    return Svid.load(issued["chain"].encode(), key)


def test_its_own_leaf_is_renewed_before_half_of_its_life(tmp_path: Path):
    """New handshakes get a new leaf in time, and fragments a signer whose certificate is valid."""

    async def scenario(service: Service) -> None:
        shown: list[Svid] = []
        original = service.listening.prepared

        def prepared(svid: Svid, bundle: Any) -> Any:
            shown.append(svid)
            return original(svid, bundle)

        service.listening.prepared = prepared  # type: ignore[method-assign]
        await ticking(service, 300)
        assert len(shown) >= 4
        assert all(after.not_before - before.not_before <= 55 for before, after in itertools.pairwise(shown))
        follower = Follower(service, "orders", "o1")
        await follower.poll()  # which verifies the signatures by the time of this service

    played(tmp_path, scenario, leaf_life_s=100.0)


def test_a_renewal_that_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """While the disk fails the leaf stays; the next tick tries again."""

    async def scenario(service: Service) -> None:
        failing = True

        def before(name: str) -> None:
            if failing and name == "_equipment":
                raise OSError("no")

        service.writer.before = before
        await ticking(service, 60)
        service.writer.done.clear()
        failing = False
        await ticking(service, 2)
        assert "_equipment" in service.writer.done

    played(tmp_path, scenario, leaf_life_s=100.0)
    assert "renewal failed" in caplog.text


def test_a_rotation_that_was_interrupted_is_ended(tmp_path: Path):
    """A service that died half way through a rotation, perhaps before it told anybody, takes the second step by itself
    after its restart: once all believe the new root by what they say, however long it was away.
    """

    async def begin(service: Service) -> None:
        service.issuer.rotate_root_begin()

    async def after(service: Service) -> None:
        service.now += 100 * 86_400.0
        assert service.authority.read().coming is not None
        follower = Follower(service, "orders", "o1")
        await follower.poll()
        assert follower.contents["trust"]["bundle"].count("BEGIN CERT") == 2
        await ticking(service, ROTATION_WAIT_S - 2)
        assert service.authority.read().coming is not None, "others may not have come back yet"
        await ticking(service, 4)
        assert service.authority.read().coming is None

    played(tmp_path, begin)
    played(tmp_path, after)


async def _signs_after(service: Service, within_s: float) -> float:
    """How many seconds it takes until the root that is coming signs."""
    began = service.plane.now()
    while service.authority.read().coming is not None:
        await ticking(service, 1)
        assert service.plane.now() - began <= within_s
    return service.plane.now() - began


@pytest.mark.parametrize("state", ["not back yet", "absent", "ready"])
def test_who_serves_and_does_not_poll_is_waited_for(tmp_path: Path, state: str):
    """F36. It may be cut off from here and be called all the same: the whole wait, not only for those who poll."""

    async def before(service: Service) -> None:
        await Follower(service, "inventory", "i1").register("10.0.0.1:80")

    async def after(service: Service) -> None:
        await ticking(service, GRACE_S + 1 if state != "not back yet" else 0)
        other, one = Follower(service, "orders", "o1"), Follower(service, "inventory", "i1")
        await other.poll()
        if state == "ready":
            await one.poll()
        await service.operating().told("POST", "/v1/ca/rotate", {"root": True})
        for follower in (other, *([one] if state == "ready" else [])):
            await follower.poll()
            await follower.poll(wait_s=0.0)
        took_s = await _signs_after(service, ROTATION_WAIT_S + 2)
        assert (took_s >= ROTATION_WAIT_S) == (state != "ready"), took_s

    played(tmp_path, before)
    played(tmp_path, after)


def test_who_rejects_the_new_root_does_not_believe_it(tmp_path: Path):
    """It counts as had, so that it is not sent again, and not as believed."""

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1")
        await follower.poll()
        await service.operating().told("POST", "/v1/ca/rotate", {"root": True})
        before = follower.have["trust"]
        await follower.poll()
        follower.rejected = {"trust": {"version": follower.have["trust"], "why": "no"}}
        follower.have["trust"] = before
        held = asyncio.create_task(follower.poll(wait_s=60.0))
        await steps(10)
        assert await _signs_after(service, ROTATION_WAIT_S + 2) >= ROTATION_WAIT_S - 2
        await held

    played(tmp_path, scenario)


def test_a_root_is_not_replaced_twice_by_a_retry(tmp_path: Path):
    """409 while leaves of the root before may live, with the time from which on; `force` does it all the same."""

    async def scenario(service: Service) -> None:
        operator = service.operating()
        await operator.told("POST", "/v1/ca/rotate", {"root": True})
        await _signs_after(service, 5)
        reply = await operator.ask("POST", "/v1/ca/rotate", {"root": True})
        assert (reply.status_code, "from 2027-01-16" in reply.json()["message"]) == (409, True)
        assert service.authority.read().coming is None
        await operator.told("POST", "/v1/ca/rotate", {"root": True, "force": True})
        assert service.authority.read().coming is not None

    played(tmp_path, scenario)


def test_a_clock_that_was_ahead_leaves_no_leaf_that_begins_later(tmp_path: Path):
    """When it is set back, our own leaf and the signer are made anew at once, not after half of a life."""

    async def scenario(service: Service) -> None:
        service.now += 10 * 86_400.0
        await ticking(service, 2)
        service.now -= 10 * 86_400.0
        await ticking(service, 2)
        begins, half = service.plane._own_life
        assert begins <= service.now < half
        await Follower(service, "orders", "o1").poll()  # which verifies the signatures by the time of this service

    played(tmp_path, scenario)


def test_a_clock_that_jumps_forgets_nothing(tmp_path: Path):
    """Forty days ahead for a minute: revocations and tokens are still there. As time goes on they go, in their time."""

    async def scenario(service: Service) -> None:
        svid = await enrolled(service, "inventory")
        await service.operating().told("POST", "/v1/ca/revoke", {"serial": f"{svid.serial:x}"})
        service.issuer.create_token("orders", 1, 30 * 86_400.0)
        await ticking(service, 2)
        service.now += 40 * 86_400.0
        await ticking(service, UPKEEP_S + 1)
        service.now -= 40 * 86_400.0
        await ticking(service, UPKEEP_S + 1)
        assert len(service.store.tokens(service.now)) == 2
        assert service.gate.revoked == {enrolment_of(svid.serial)}
        service.now += 40 * 86_400.0
        await ticking(service, 2 * UPKEEP_S + 1)
        assert service.store._database.rows("SELECT * FROM tokens") == []
        assert service.gate.revoked == set()

    played(tmp_path, scenario)
