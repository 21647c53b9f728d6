"""F36: the servers cannot reach the config service, their callers can. Ten minutes of it, in virtual time.

Everything but the network is production's: the registry and the catalog of the config service, the loop that polls, the
policy as it is followed, and the whole client stack of the caller.
"""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
from test_followed_policy import AUTHORITY, BOOTSTRAP, SIGNER

from meshlib.config import MeshConfig
from meshlib.control.catalog import Catalog
from meshlib.control.clock import HybridClock
from meshlib.control.registry import TTL_S, Instance, Registry
from meshlib.discovery.fragment import Reply, parse_reply
from meshlib.discovery.poll_schedule import WAIT_S, PollSchedule
from meshlib.errors import TransportError
from meshlib.followed_policy import FollowedPolicy
from meshlib.follower import follow
from meshlib.telemetry.metrics import Metrics
from meshlib.testing import FakeMesh, Simulation, simulate

SERVERS = 5
CALLS_PER_S = 5
PARTITION_S = 600.0
HEALED_S = 5.0
LOOK_S = 0.1


class ConfigService:
    """Registry and catalog, and a poll that is held; changes are published every 100 ms."""

    def __init__(self, sim: Simulation) -> None:
        self.sim, self.registry = sim, Registry()
        self.catalog = Catalog("e1", "shop", HybridClock(0, lambda: time.time() + sim.now()), SIGNER)
        self.publish({
            "trust": {"bundle": AUTHORITY.certificate_pem.decode(), "generation": 1, "spread_s": 0.0, "revoked": []},
            "defaults": {"timeout": "1s"},
            "service/items.default": {"policy": {"endpoints": [{"registry": {}}]}, "needs": []},
            "service/front.default": {"policy": {"endpoints": [{"static": ["127.0.0.1:1"]}]}, "needs": []},
            "endpoints/items.default": [],
        })  # fmt: skip

    def publish(self, contents: dict[str, Any]) -> None:
        self.catalog.put(self.catalog.propose(contents))

    async def run(self) -> None:
        while True:
            await self.sim.sleep(LOOK_S)
            self.registry.expire(self.sim.now())
            changed, _, _ = self.registry.take_changed()
            self.publish({f"endpoints/{name}": self.registry.endpoints(name) for name in changed})

    async def poll(self, instance: str, service: str, want: list[str], have: dict[str, Any], serving: bool) -> Reply:
        resources = self.catalog.closure(service, want)
        registered = self.registry.polling(instance, service, self.sim.now())
        try:
            give_up = self.sim.now() + WAIT_S
            while not self.catalog.has_newer(resources, have) and registered >= serving and self.sim.now() < give_up:
                await self.sim.sleep(LOOK_S)
        finally:
            self.registry.polled(instance, service, self.sim.now())
        fragments = ",".join(f.decode() for f in self.catalog.newer(resources, have, 1 << 23))
        body = (
            f'{{"epoch":"e1","registered":{json.dumps(registered)},"reconnect_s":1.0,'
            f'"signer":{json.dumps(SIGNER.chain_pem.decode())},"fragments":[{fragments}]}}'
        )
        return parse_reply(body.encode())

    def states(self) -> list[str]:
        return [entry["state"] for entry in self.registry.endpoints("items.default")]


class Server:
    """A process of items: it polls, and registers when it is not known. `cut`: it cannot reach the config service."""

    def __init__(self, sim: Simulation, service: ConfigService, number: int) -> None:
        self.sim, self.service, self.cut = sim, service, False
        self.instance = Instance(f"i{number}", "items.default", f"127.0.0.1:{1000 + number}", "", 1, {})
        self.have: dict[str, Any] = {}
        sim.spawn(follow(sim.runtime, PollSchedule(), self._poll, self._take, lambda _error: None))

    async def _poll(self) -> Reply:
        poll = self.sim.spawn(self.service.poll(self.instance.id, "items.default", [], self.have, True))
        while not poll.done:
            if self.cut:
                poll.cancel()
                raise TransportError("no way to the config service", phase="connect", cause="refused", sent=False)
            await self.sim.sleep(LOOK_S)
        reply: Reply = await poll
        return reply

    def _take(self, reply: Reply) -> None:
        self.have = {r: self.service.catalog.version(r) for r in ("trust", "defaults", "service/items.default")}
        if not reply.registered:
            self.service.registry.register(self.instance, self.sim.now())


def caller(sim: Simulation, service: ConfigService) -> FakeMesh:
    """A process that calls items, by what it hears."""
    mesh = FakeMesh(BOOTSTRAP)

    def put(config: MeshConfig, _known: Any, *, quiet: bool) -> None:
        mesh.put_in_force(config)

    policy = FollowedPolicy(BOOTSTRAP, "front.default", "control", Metrics(), put, lambda *_: None)
    policy.subscription.want(["items.default"])

    async def poll() -> Reply:
        return await service.poll(
            "caller", "front.default", ["items.default"], policy.subscription.request()["have"], False
        )

    sim.spawn(follow(sim.runtime, PollSchedule(), poll, lambda reply: policy.take(reply, sim.now()), lambda _e: None))
    return mesh


async def calls(sim: Simulation, mesh: FakeMesh, seconds: float) -> tuple[int, int]:
    """(calls, failures) of so many seconds at `CALLS_PER_S`."""
    client, failed = mesh.client("items"), 0
    count = int(seconds * CALLS_PER_S)
    for _ in range(count):
        try:
            failed += (await client.get("/")).status_code != 200
        except httpx.TransportError:
            failed += 1
        await sim.sleep(1 / CALLS_PER_S)
    return count, failed


async def partition(sim: Simulation) -> dict[str, Any]:
    service = ConfigService(sim)
    sim.spawn(service.run())
    servers = [Server(sim, service, number) for number in range(SERVERS)]
    await sim.sleep(2.0)
    mesh = caller(sim, service)
    await sim.sleep(2.0)
    mesh.service("items").delay(0.005)
    before = await calls(sim, mesh, 10.0)
    for server in servers:
        server.cut = True
    lost = await calls(sim, mesh, WAIT_S + TTL_S + 5.0)
    absent = service.states()
    rest = await calls(sim, mesh, PARTITION_S - WAIT_S - TTL_S - 5.0)
    mark = sim.now()
    late = await calls(sim, mesh, 30.0)
    addresses = {request.endpoint for request in mesh.service("items").requests if request.at >= mark}
    for server in servers:
        server.cut = False
    healed = sim.now()
    while service.states() != ["ready"] * SERVERS:
        await sim.sleep(LOOK_S)
    back_s = sim.now() - healed
    after = await calls(sim, mesh, 10.0)
    return {
        "calls": sum(c for c, _ in (before, lost, rest, late, after)),
        "failed": sum(f for _, f in (before, lost, rest, late, after)),
        "absent": absent, "addresses": len(addresses), "back_s": back_s,
    }  # fmt: skip


def test_a_partition_between_servers_and_the_config_service_costs_no_call() -> None:
    """Leases end, the endpoints are listed as absent, and all are called for ten minutes; healed, they are back in 5 s."""
    found = simulate(partition, seed=36).result
    print(f"F36: {found}")
    assert found["failed"] == 0
    assert found["absent"] == ["absent"] * SERVERS
    assert found["addresses"] == SERVERS
    assert found["back_s"] <= HEALED_S
