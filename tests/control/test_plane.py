"""The config service in virtual time: what a process gets and when, what is stored before it is said, restarts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from meshlib.control.plane import COALESCE_S, PACE_S, RETRY_S
from meshlib.control.registry import ABSENT_S, TTL_S, Instance
from meshlib.control.store import PolicyChanged, StoreError
from meshlib.control.watch import parse_policy
from meshlib.errors import ConfigError

from .config_service import MESH, Follower, Service, played
from .virtual_time import passes, steps


async def ticking(service: Service, seconds: float) -> None:
    """Let time pass, with a tick each second."""
    for _ in range(round(seconds)):
        await passes(1)
        service.plane.tick()
    await passes(PACE_S + COALESCE_S)


def test_a_new_process_gets_what_it_needs_at_once(tmp_path: Path):
    """Trust, defaults, its own service, and of what it calls the policy and the endpoints: signed, and nothing else."""

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1", "inventory.default")
        came = await follower.poll()
        assert came == [
            "trust", "defaults", "service/orders.default", "service/inventory.default", "endpoints/inventory.default",
        ]  # fmt: skip
        assert follower.contents["service/inventory.default"]["policy"]["timeout"] == "1s"
        assert follower.contents["endpoints/inventory.default"] == []

    played(tmp_path, scenario)


def test_a_process_that_has_everything_waits(tmp_path: Path):
    """Nothing is newer: the poll is held for its time, and then answered with nothing."""

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1", "inventory.default")
        await follower.poll()
        began = service.plane.now()
        assert await follower.poll(wait_s=16.0) == []
        assert 16.0 <= service.plane.now() - began <= 17.0
        assert follower.last["signer"] == ""

    played(tmp_path, scenario)


def test_a_change_is_told_to_those_who_wait_for_it(tmp_path: Path):
    """Only the changed resource is sent, to those who call the service; others go on waiting."""

    async def scenario(service: Service) -> None:
        caller = Follower(service, "orders", "o1", "inventory.default")
        other = Follower(service, "orders", "o2", "payments.default")
        for follower in (caller, other):
            await follower.poll()
        held = [asyncio.create_task(follower.poll()) for follower in (caller, other)]
        await steps(10)
        await service.plane.publish_policy(parse_policy(MESH.replace("1s", "2s"), "mesh.yaml"))
        assert await held[0] == ["service/inventory.default"]
        assert not held[1].done()
        assert await held[1] == []

    played(tmp_path, scenario)


def test_a_new_route_brings_what_it_names(tmp_path: Path):
    """Where a route begins to name another service, its callers get that service's policy and endpoints with it."""
    routed = MESH.replace(
        "timeout: 1s, ",
        "timeout: 1s, routes: [{name: all, backends: [{service: payments, weight: 1}]}], ",
    ).replace("payments: {", "payments: {allow_routes_from: [inventory], ")

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1", "inventory.default")
        await follower.poll()
        held = asyncio.create_task(follower.poll())
        await steps(10)
        await service.plane.publish_policy(parse_policy(routed, "mesh.yaml"))
        assert {"service/inventory.default", "service/payments.default", "endpoints/payments.default"} == set(
            await held
        )

    played(tmp_path, scenario)


def test_who_missed_the_same_gets_the_same_bytes(tmp_path: Path):
    """A wake-up makes one reply for all who have missed the same."""

    async def scenario(service: Service) -> None:
        plane = service.plane
        followers = [Follower(service, "orders", f"o{number}", "inventory.default") for number in range(3)]
        for follower in followers:
            await follower.poll()
        held = [asyncio.create_task(follower.poll()) for follower in followers]
        await steps(10)
        made: list[bytes] = []
        original = plane._reply
        plane._reply = lambda *args: made.append(original(*args)) or made[-1]  # type: ignore[func-returns-value,method-assign]
        await plane.publish_policy(parse_policy(MESH.replace("1s", "2s"), "mesh.yaml"))
        await asyncio.gather(*held)
        assert len(made) == 1

    played(tmp_path, scenario)


def test_a_registration_is_answered_once_it_is_stored(tmp_path: Path):
    """Not before the row is committed, and then callers have it too; what comes within 100 ms is one transaction."""

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1", "inventory.default")
        await follower.poll()
        held = asyncio.create_task(follower.poll())
        servers = [Follower(service, "inventory", f"i{number}") for number in range(5)]
        await steps(10)
        service.writer.done.clear()
        began = service.plane.now()
        await asyncio.gather(*(one.register(f"10.0.0.{at}:80") for at, one in enumerate(servers, 1)))
        assert service.plane.now() - began == pytest.approx(COALESCE_S)
        assert service.writer.done == ["save"]
        assert len(service.store.instances()) == 5
        assert await held == ["endpoints/inventory.default"]
        states = [one["state"] for one in follower.contents["endpoints/inventory.default"]]
        assert states == ["ready"] * 5

    played(tmp_path, scenario)


def test_flapping_is_published_five_times_a_second(tmp_path: Path):
    """Registered and deregistered at 50 Hz, an instance costs its callers five updates a second (F07)."""

    async def scenario(service: Service) -> int:
        flapping = Follower(service, "inventory", "i1")
        service.writer.done.clear()

        async def flap() -> None:
            for _ in range(50):
                service.plane.registry.register(_instance(), service.plane.now())
                service.plane._changed()
                await passes(0.01)
                service.plane.registry.deregister("i1", "inventory.default", service.plane.now())
                service.plane._changed()
                await passes(0.01)

        await flap()
        assert flapping.serving is False
        return service.writer.done.count("save")

    assert played(tmp_path, scenario) <= 6


def _instance() -> Instance:
    return Instance("i1", "inventory.default", "10.0.0.1:80", "", 1, {})


def test_what_cannot_be_stored_is_not_said(tmp_path: Path):
    """While the disk fails a registration is answered 503 and no caller hears of it; then it is stored by itself."""

    async def scenario(service: Service) -> None:
        def full(name: str) -> None:
            if name == "save":
                raise StoreError("the disk is full")

        follower = Follower(service, "orders", "o1", "inventory.default")
        await follower.poll()
        service.writer.before = full
        server = service.client("inventory")
        reply = await server.ask("POST", "/v1/register", {"instance": "i1", "address": "10.0.0.1:80"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
        assert await follower.poll(wait_s=0.0) == []
        service.writer.before = lambda name: None
        await passes(RETRY_S + COALESCE_S + PACE_S)
        assert await follower.poll(wait_s=0.0) == ["endpoints/inventory.default"]

    played(tmp_path, scenario)


def test_the_poll_is_the_lease(tmp_path: Path):
    """While it is open the instance is ready; TTL_S after its connection was lost it is absent; a poll brings it back."""

    async def scenario(service: Service) -> None:
        caller = Follower(service, "orders", "o1", "inventory.default")
        server = Follower(service, "inventory", "i1")
        await server.poll()
        held = asyncio.create_task(server.poll(wait_s=60.0))
        await steps(10)
        await server.register("10.0.0.1:80")
        await ticking(service, TTL_S + 5)
        await caller.poll()
        assert _states(caller) == ["ready"]
        server.client.connection.lost()
        with pytest.raises(AssertionError):  # httpx's transport: there was no answer
            await held
        await ticking(service, TTL_S - 2)
        assert await caller.poll(wait_s=0.0) == []
        await ticking(service, 3)
        await caller.poll(wait_s=0.0)
        assert _states(caller) == ["absent"]
        again = Follower(service, "inventory", "i1")
        again.serving = True
        await again.poll()
        await ticking(service, 1)
        await caller.poll(wait_s=0.0)
        assert _states(caller) == ["ready"]
        await ticking(service, TTL_S + ABSENT_S + 5)
        await caller.poll(wait_s=0.0)
        assert _states(caller) == []

    played(tmp_path, scenario)


def _states(follower: Follower) -> list[str]:
    return [one["state"] for one in follower.contents["endpoints/inventory.default"]]


def test_a_connection_that_is_lost_before_the_poll_began_ends_it(tmp_path: Path):
    """The request was read, then the connection broke, then it was its turn: it is not held for a minute."""

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1")
        await follower.poll()
        follower.client.connection.lost()
        with pytest.raises(AssertionError):
            await follower.poll()
        assert service.plane.polls.find("orders.default", "o1").ended_at < float("inf")  # type: ignore[union-attr]

    played(tmp_path, scenario)


def test_one_who_believes_to_be_registered_and_is_not_learns_it_at_once(tmp_path: Path):
    """`serving` with an instance that is not known is not held (F04); without `serving` it is."""

    async def scenario(service: Service) -> None:
        server = Follower(service, "inventory", "i1")
        await server.poll()
        server.serving = True
        began = service.plane.now()
        assert await server.poll() == []
        assert (server.last["registered"], service.plane.now() - began) == (False, 0.0)
        await server.register("10.0.0.1:80")
        assert await server.poll(wait_s=1.0) == []
        assert server.last["registered"] is True

    played(tmp_path, scenario)


def test_registered_during_a_poll_it_is_said_to_be(tmp_path: Path):
    """The poll that was open while its process registered, or deregistered, says how it is at its end."""

    async def scenario(service: Service) -> None:
        server = Follower(service, "inventory", "i1")
        await server.poll()
        held = asyncio.create_task(server.poll(wait_s=5.0))
        await steps(10)
        await server.register("10.0.0.1:80")
        await held
        assert server.last["registered"] is True
        held = asyncio.create_task(server.poll(wait_s=5.0))
        await steps(10)
        await server.client.told("POST", "/v1/deregister", {"instance": "i1"})
        await held
        assert server.last["registered"] is False

    played(tmp_path, scenario)


def test_a_draining_instance_leaves_at_once(tmp_path: Path):
    """When `drain` is answered, callers do not have it any more."""

    async def scenario(service: Service) -> None:
        caller, server = Follower(service, "orders", "o1", "inventory.default"), Follower(service, "inventory", "i1")
        await server.register("10.0.0.1:80")
        await caller.poll()
        await server.client.told("POST", "/v1/drain", {"instance": "i1"})
        await caller.poll(wait_s=0.0)
        assert _states(caller) == []

    played(tmp_path, scenario)


def test_what_a_process_cannot_use_is_not_sent_again(tmp_path: Path):
    """A rejected version counts as had, so that it does not spin; the next version comes; the status says why."""

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1", "inventory.default")
        await follower.poll()
        version = follower.have.pop("service/inventory.default")
        follower.rejected = {"service/inventory.default": {"version": version, "why": "no such subset"}}
        assert await follower.poll(wait_s=1.0) == []
        status = await service.operating().told("GET", "/v1/status")
        assert status["processes"][0]["ignored"] == {"service/inventory.default": "no such subset"}
        await service.plane.publish_policy(parse_policy(MESH.replace("1s", "2s"), "mesh.yaml"))
        assert await follower.poll(wait_s=1.0) == ["service/inventory.default"]

    played(tmp_path, scenario)


def test_a_second_poll_of_a_process_ends_the_first_empty(tmp_path: Path):
    """At once; and the lease goes on with the second."""

    async def scenario(service: Service) -> None:
        first, second = Follower(service, "orders", "o1"), Follower(service, "orders", "o1")
        await first.poll()
        second.have = dict(first.have)
        held = asyncio.create_task(first.poll())
        await steps(10)
        later = asyncio.create_task(second.poll())
        assert await held == []
        assert not later.done()
        assert await later == []

    played(tmp_path, scenario)


def test_a_restart_keeps_versions_instances_and_policy(tmp_path: Path):
    """An unchanged resource keeps its n, the policy its place in the history; instances are ready until their grace ends."""
    have: dict[str, Any] = {}

    async def before(service: Service) -> None:
        caller, server = Follower(service, "orders", "o1", "inventory.default"), Follower(service, "inventory", "i1")
        await server.register("10.0.0.1:80")
        await caller.poll()
        have.update(caller.have)

    async def after(service: Service) -> None:
        caller, server = Follower(service, "orders", "o1", "inventory.default"), Follower(service, "inventory", "i1")
        await caller.poll(wait_s=0.0)
        assert {name: n for name, (_, n) in caller.have.items()} == {name: n for name, (_, n) in have.items()}
        server.serving = True
        await server.poll()
        assert server.last["registered"] is True
        assert [policy.n for policy in service.store.history()] == [service.plane.policy.n]

    played(tmp_path, before)
    played(tmp_path, after)


def test_a_lost_store_is_another_epoch(tmp_path: Path):
    """Everything is sent again under a new epoch, and servers are told that they are not known (F04)."""
    have: dict[str, Any] = {}

    async def before(service: Service) -> None:
        server = Follower(service, "inventory", "i1")
        await server.register("10.0.0.1:80")
        await server.poll()
        have.update(server.have)

    async def after(service: Service) -> None:
        server = Follower(service, "inventory", "i1")
        server.have, server.serving = dict(have), True
        assert await server.poll() == list(have)
        assert server.last["registered"] is False
        assert server.have["trust"][0] != have["trust"][0]

    played(tmp_path, before)
    for file in tmp_path.glob("store.sqlite*"):
        file.unlink()
    played(tmp_path, after)


def test_a_broken_edit_is_kept_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """What is in force stays; the log has file and line, the status a count and the problems; a good edit ends it."""

    async def scenario(service: Service) -> None:
        n = service.plane.policy.n
        try:
            parse_policy(MESH.replace("1s", "soon"), "mesh.yaml")
        except ConfigError as error:
            await service.plane.edited(error)
        status = await service.operating().told("GET", "/v1/status")
        assert (status["edits_kept_out"], status["policy"]["n"]) == (1, n)
        assert status["problems"][0]["line"] == 6
        await service.plane.edited(parse_policy(MESH.replace("1s", "2s"), "mesh.yaml"))
        status = await service.operating().told("GET", "/v1/status")
        assert (status["problems"], status["policy"]["n"] > n) == ([], True)

    with caplog.at_level(logging.ERROR, "meshlib.control"):
        played(tmp_path, scenario)
    assert "mesh.yaml:6:" in caplog.text


def test_an_edit_that_cannot_be_stored_is_not_lost(tmp_path: Path):
    """While the disk fails it is tried again; one that came after it takes its place."""

    async def scenario(service: Service) -> None:
        def full(name: str) -> None:
            if name == "add_policy":
                raise StoreError("the disk is full")

        service.writer.before = full
        for seconds in (2, 3):
            edit = parse_policy(MESH.replace("1s", f"{seconds}s"), "mesh.yaml")
            service.plane.spawn("the edited policy", service.plane.edited, edit)
            await passes(0.1)
        await passes(3 * RETRY_S)
        service.writer.before = lambda name: None
        await passes(2 * RETRY_S)
        assert "timeout: 3s" in service.plane.policy.document
        assert len(service.store.history()) == 2

    played(tmp_path, scenario)


def test_what_is_read_at_the_start_is_said_to_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """An edit of more than the policy: the policy is in force, the rest waits for a restart."""

    async def scenario(service: Service) -> None:
        await service.plane.edited(parse_policy(MESH.replace("1s", "2s") + "ca: {leaf_ttl: 1h}\n", "mesh.yaml"))
        assert "timeout: 2s" in service.plane.policy.document

    played(tmp_path, scenario)
    assert "ca: read when the config service is started again" in caplog.text


def test_another_mesh_is_not_taken_for_an_edit(tmp_path: Path):
    """A file that is suddenly of another mesh or trust domain is kept out."""

    async def scenario(service: Service) -> None:
        for other in (MESH.replace("mesh: shop", "mesh: shed"), "trust_domain: other.example\n" + MESH):
            with pytest.raises(ConfigError, match="another mesh"):
                await service.plane.publish_policy(parse_policy(other, "mesh.yaml"))
        await service.plane.edited(parse_policy(MESH.replace("mesh: shop", "mesh: shed"), "mesh.yaml"))
        assert service.plane.edits_kept_out == 1

    played(tmp_path, scenario)


def test_a_policy_replaces_the_one_that_was_read(tmp_path: Path):
    """Compare and set: of two who read the same version one wins, the other is told the new one."""

    async def scenario(service: Service) -> None:
        plane, n = service.plane, service.plane.policy.n
        edits = [parse_policy(MESH.replace("1s", f"{seconds}s"), "put") for seconds in (2, 3)]
        won, lost = await asyncio.gather(*(plane.publish_policy(edit, n) for edit in edits), return_exceptions=True)
        assert won == plane.policy.n
        assert isinstance(lost, PolicyChanged)
        assert lost.n == won

    played(tmp_path, scenario)


def test_a_service_that_is_gone_is_null(tmp_path: Path):
    """Removed from the policy, it is published as null, and comes back as another version."""
    without = MESH.replace("  payments: {endpoints: [{registry: {}}]}\n", "")

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1", "payments.default")
        await follower.poll()
        await service.plane.publish_policy(parse_policy(without, "mesh.yaml"))
        assert await follower.poll(wait_s=0.0) == ["service/payments.default", "endpoints/payments.default"]
        assert follower.contents["service/payments.default"] is None
        await service.plane.publish_policy(parse_policy(MESH, "mesh.yaml"))
        assert await follower.poll(wait_s=0.0) == ["service/payments.default", "endpoints/payments.default"]

    played(tmp_path, scenario)


def test_at_the_end_every_poll_is_refused(tmp_path: Path):
    """At once, with the wish to close; none is held any more. Who is refused waits, each for as long as chance says."""

    async def scenario(service: Service) -> None:
        follower = Follower(service, "orders", "o1")
        await follower.poll()
        asked = {"instance": "o1", "have": follower.have, "wait_s": 60}
        held = asyncio.create_task(follower.client.ask("POST", "/v1/poll", asked))
        await steps(10)
        service.plane.stop_holding()
        for reply in (await held, await follower.client.ask("POST", "/v1/poll", asked)):
            assert (reply.status_code, reply.headers["connection"]) == (503, "close")
            assert "is ending" in reply.json()["message"]

    played(tmp_path, scenario)
