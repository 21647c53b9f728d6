"""F14: a connection that breaks before, after and inside the reply. Real servers with mTLS behind a toxic proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from meshlib import DeadlineExceeded, Mesh, TransportError
from process.replicas import World
from process.toxic import Toxic, ToxicProxy

BROKEN = ["reset", "cut", "garbage"]
DEFAULTS = {"timeout": "5s", "retries": {"max_retries": 1}, "load_balancer": {"policy": "least_request"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two replicas, with mTLS."""
    with World(tmp_path_factory.mktemp("resets"), {"backend": {}}, defaults=DEFAULTS) as world:
        world.serve("backend", 2)
        yield world


@asynccontextmanager
async def poisoned(world: World, *, healthy: int, **options: Any) -> AsyncIterator[tuple[Mesh, ToxicProxy]]:
    """A mesh whose backend is a replica behind a proxy, and `healthy` ones beside it; the proxy has been used."""
    world.forget()
    behind, *beside = world.processes
    async with ToxicProxy(behind.port) as proxy:
        world.endpoints("backend", [proxy.address, *(replica.address for replica in beside[:healthy])])
        async with Mesh("caller", world.config, **options) as mesh:
            client = mesh.client("backend")
            while proxy.accepted == 0:
                await client.get("/who")
            yield mesh, proxy


async def through_proxy(
    mesh: Mesh, proxy: ToxicProxy, method: str, target: str
) -> tuple[int, httpx.Response | Exception]:
    """Call until one attempt went through the proxy while it was toxic; how many calls were made, and its outcome."""
    for number in range(200):
        try:
            outcome: httpx.Response | Exception = await mesh.client("backend").request(method, f"{target}{number}")
        except httpx.HTTPError as error:
            outcome = error
        if proxy.bitten.is_set():
            return number + 1, outcome
    raise AssertionError("no call went through the proxy")


@pytest.mark.parametrize("toxic", BROKEN)
def test_a_post_is_executed_exactly_once(world: World, toxic: Toxic) -> None:
    """Broken before the first byte of the reply: the server has executed it, so it is not sent again, anywhere."""

    async def scenario() -> None:
        async with poisoned(world, healthy=1) as (mesh, proxy):
            proxy.set(toxic)
            calls, error = await through_proxy(mesh, proxy, "POST", "/orders/")
            assert isinstance(error, TransportError), error
            assert error.sent
            assert len(error.trail or ()) == 1
            assert sorted(map(int, world.executed())) == list(range(calls))

    asyncio.run(scenario())


@pytest.mark.parametrize("toxic", BROKEN)
def test_a_get_is_tried_once_more_elsewhere(world: World, toxic: Toxic) -> None:
    """Idempotent, no byte of a reply: one retry, on the other endpoint, and the caller sees a success."""

    async def scenario() -> None:
        async with poisoned(world, healthy=1) as (mesh, proxy):
            proxy.set(toxic)
            calls, response = await through_proxy(mesh, proxy, "GET", "/orders/")
            assert isinstance(response, httpx.Response), response
            assert response.status_code == 200
            attempts = list(response.extensions["meshlib.trail"])
            assert [attempt.endpoint.port == proxy.port for attempt in attempts] == [True, False]
            executed = sorted(map(int, world.executed()))
            assert executed == sorted([*range(calls), calls - 1])

    asyncio.run(scenario())


@pytest.mark.parametrize("toxic", ["reset", "cut"])
def test_a_body_that_breaks_off_is_an_error_never_a_short_body(world: World, toxic: Toxic) -> None:
    """After the head nothing is retried on a stream; the error is typed, comes at once, and the connection is not reused."""

    async def scenario() -> None:
        async with poisoned(world, healthy=0) as (mesh, proxy):
            client, received = mesh.client("backend"), 0
            async with client.stream("GET", "/pieces/50") as response:
                assert response.status_code == 200
                proxy.set(toxic, after=3000)
                with pytest.raises(httpx.HTTPError) as caught:
                    async for piece in response.aiter_raw():
                        received += len(piece)
            assert isinstance(caught.value, TransportError), caught.value
            assert (caught.value.phase, caught.value.sent) == ("read", True)
            assert received < 50_000
            proxy.set("")
            before = proxy.accepted
            assert (await client.get("/echo/again")).text == "again"
            assert proxy.accepted == before + 1

    asyncio.run(scenario())


@pytest.mark.parametrize("toxic", ["reset", "cut"])
def test_a_collected_body_that_breaks_off(world: World, toxic: Toxic) -> None:
    """Broken inside the body of a call that is not streamed: an error or a whole body, never a part of it."""

    async def scenario() -> None:
        async with poisoned(world, healthy=0) as (mesh, proxy):
            proxy.set(toxic, after=100_000)
            with mesh.policy(max_retries=0), pytest.raises(TransportError):
                await mesh.client("backend").get("/bytes/1000000")
            proxy.set("")
            assert len((await mesh.client("backend").get("/bytes/1000000")).content) == 1_000_000

    asyncio.run(scenario())


def test_a_peer_that_falls_silent_costs_the_deadline_and_no_more(world: World) -> None:
    """F15: half-open, nobody is told. A POST ends at its deadline, typed; a GET with a per-try timeout goes elsewhere."""

    async def scenario() -> None:
        async with poisoned(world, healthy=1, defaults={"retries": {"per_try_timeout": "400ms"}}) as (mesh, proxy):
            proxy.set("silence")
            with mesh.policy(timeout=0.4, max_retries=0):
                _, error = await through_proxy(mesh, proxy, "POST", "/orders/")
            assert isinstance(error, DeadlineExceeded), error
            assert isinstance(error, httpx.ReadTimeout)
            proxy.set("silence")
            began = time.monotonic()
            answers = await asyncio.gather(*(mesh.client("backend").get(f"/echo/{n}") for n in range(40)))
            print(f"40 calls beside a silent peer: {time.monotonic() - began:.2f} s")
            assert [answer.text for answer in answers] == [str(n) for n in range(40)]

    asyncio.run(scenario())
