"""F13: certificates that live for seconds, and a new root, while calls go on."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from meshlib import Mesh
from process.controlled import Controlled
from process.load import Figures, load
from process.replicas import until


def caller(world: Controlled) -> Mesh:
    os.environ["MESHLIB_TOKEN_FILE"] = str(world.folder / "caller.token")
    return Mesh("caller", world.config)


async def short_lived(world: Controlled, rps: float, seconds: float) -> tuple[Figures, int]:
    """Calls, POSTs among them, for so long; and how many generations of its identity the caller has seen."""
    async with caller(world) as mesh:
        client = mesh.client("backend")
        await client.get("/who")
        began = mesh._engine.credentials.generation  # type: ignore[union-attr]
        async with load(lambda n: client.request("POST" if n % 2 else "GET", f"/orders/{n}"), rps) as running:
            await asyncio.sleep(seconds)
        return running.figures, mesh._engine.credentials.generation - began  # type: ignore[union-attr]


def test_certificates_that_live_for_seconds_cost_no_call(tmp_path: Path) -> None:
    """leaf_ttl 5 s for 12 s: everybody is somebody new every few seconds, over old connections and new: 0 failed."""
    with Controlled(tmp_path, {"backend": {}}, ca={"leaf_ttl": "5s"}) as world:
        world.serve("backend", 2)
        figures, generations = asyncio.run(short_lived(world, 100, 12.0))
        print(f"F13: {figures}; {generations} renewals of the caller")
        assert figures.failures == []
        assert generations >= 3


async def new_root(world: Controlled, rps: float) -> tuple[Figures, float]:
    """A rotation of the root under load; the seconds until it signs everywhere."""
    async with caller(world) as mesh:
        client = mesh.client("backend")
        await client.get("/who")
        async with load(lambda _: client.get("/who"), rps) as running:
            await asyncio.sleep(0.5)
            began = time.monotonic()
            before = await asyncio.to_thread(world.ask, "GET", "/v1/ca")
            old = {root["sha256"] for root in before["roots"] if root["role"] == "signer"}
            await asyncio.to_thread(world.ask, "POST", "/v1/ca/rotate", {"root": True})

            def signs() -> bool:
                roots = {root["role"]: root["sha256"] for root in world.ask("GET", "/v1/ca")["roots"]}
                return "coming" not in roots and roots["signer"] not in old

            await asyncio.to_thread(until, signs, "the new root signs", 40)
            took = time.monotonic() - began
            issuer = mesh._engine.credentials.svid.certificate_pem  # type: ignore[union-attr]
            await asyncio.to_thread(
                until, lambda: mesh._engine.credentials.svid.certificate_pem != issuer, "a new leaf"
            )  # type: ignore[union-attr]
            await asyncio.sleep(1.0)
    return running.figures, took


def wakes(world: Controlled) -> None:
    """A process that is not there but for one call, which is its first each time."""
    with Mesh("sleeper", world.config) as mesh:
        assert mesh.sync_client("backend").get("/who").status_code == 200


def test_a_new_root_costs_no_call_and_strands_no_sleeper(tmp_path: Path) -> None:
    """Under load with short-lived connections: 0 failed. Who slept through it comes back by itself, without a token, and
    its first call is answered, although everybody else is somebody of a root that it has never heard of.
    """
    with Controlled(tmp_path, {"backend": {"connection_pool": {"max_age": "300ms"}}, "sleeper": {}}) as world:
        backends = world.serve("backend", 2)
        os.environ["MESHLIB_TOKEN_FILE"] = str(world.folder / "sleeper.token")
        wakes(world)
        until(lambda: (world.state / "sleeper.default" / "snapshot.json").exists(), "it has kept a snapshot")
        figures, took = asyncio.run(new_root(world, 50))
        print(f"F13: a new root: {figures}; it signs after {took:.1f} s")
        assert figures.failures == []
        os.environ["MESHLIB_TOKEN_FILE"] = "/nonexistent"
        wakes(world)
        for process in backends:
            assert "Traceback" not in process.log()


def test_a_revoked_certificate_is_nobody(tmp_path: Path) -> None:
    """Revoked by serial: no peer answers it or calls it. With it goes its whole enrolment: a second process of this host
    cannot get round it by the files. Another host, which has come with a token of its own, is served.
    """
    with Controlled(tmp_path, {"backend": {}}) as world:
        world.serve("backend", 1)
        with caller(world) as mesh:
            client = mesh.sync_client("backend")
            assert client.get("/who").status_code == 200
            serial = f"{mesh._engine.credentials.svid.serial:x}"  # type: ignore[union-attr]
            until(lambda: f"{mesh._engine.credentials.svid.serial:x}" != serial, "a leaf of its own")  # type: ignore[union-attr]
            own = f"{mesh._engine.credentials.svid.serial:x}"  # type: ignore[union-attr]
            assert own in world.ask("POST", "/v1/ca/revoke", {"serial": own})["serials"]
            refused = until(lambda: _fails(mesh), "nobody answers a revoked caller")
            print(f"revoked: {refused}")
        with caller(world) as sibling:
            assert until(lambda: _fails(sibling), "nobody answers a sibling either")
        other = tmp_path / "another host" / "mesh.yaml"
        other.parent.mkdir()
        other.write_bytes(world.config.read_bytes())
        os.environ["MESHLIB_TOKEN_FILE"] = str(world.folder / "caller.token")
        with Mesh("caller", other) as mesh:
            assert mesh.sync_client("backend").get("/who").status_code == 200
            assert _fails(mesh) == ""


def _fails(mesh: Mesh) -> str:
    try:
        mesh.sync_client("backend", headers={"connection": "close"}).get("/who")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
