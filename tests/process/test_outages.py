"""F08, F10, F21, F28: endpoints that answer fast and wrong, that are all gone, or that answer too much."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshlib import Mesh, NoHealthyEndpoint, TransportError
from process.load import Figures, load
from process.replicas import Process, World

RPS = 200.0
HOSTILE = """
import asyncio, os, zlib
from meshlib import Mesh
mesh = Mesh()

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    kind, _, size = scope["path"][1:].partition("/")
    headers = [(b"content-type", b"application/octet-stream")]
    if kind == "headers":
        headers.append((b"x-large", b"h" * int(size)))
    if kind == "fields":
        headers += [(b"x-%d" % n, b"v") for n in range(int(size))]
    if kind == "bomb":
        headers.append((b"content-encoding", b"gzip"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if kind == "bomb":
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        for _ in range(int(size)):
            await send({"type": "http.response.body", "body": packer.compress(bytes(1 << 20)), "more_body": True})
        await send({"type": "http.response.body", "body": packer.flush()})
    elif kind == "body":
        for _ in range(int(size)):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.body", "body": b"ok"})

mesh.run(app, port=int(os.environ["PORT"]))
"""


@pytest.fixture(scope="module")
def attractive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three replicas of backend, the last of which answers 503 in no time."""
    with World(tmp_path_factory.mktemp("attractor"), {"backend": {}}) as world:
        world.serve("backend", 2)
        world.serve("backend", MODE="broken")
        yield world


async def attracted(world: World, balancer: str, retries: int, rps: float, seconds: float) -> Figures:
    """Load on replicas one of which answers 503 at once."""
    async with Mesh("caller", world.config, defaults={"load_balancer": {"policy": balancer}}) as mesh:
        client = mesh.client("backend")

        async def send(_: int) -> httpx.Response:
            with mesh.policy(max_retries=retries):
                return await client.get("/who")

        async with load(send, rps) as running:
            await asyncio.sleep(seconds)
    return running.figures


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("balancer", ["least_request", "peak_ewma"])
def test_an_endpoint_that_fails_fast_attracts_nobody(attractive: World, balancer: str, retries: int) -> None:
    """One of three answers 503 in no time (F10): at most 10 errors without retries, none with one."""
    *healthy, broken = attractive.processes
    figures = asyncio.run(attracted(attractive, balancer, retries, RPS, 1.5))
    print(f"503 at once, {balancer}, {retries} retries: {figures}")
    assert len(figures.failures) <= (0 if retries else 10)
    assert figures.retried <= 10
    assert set(figures.answers) == {replica.name for replica in healthy}
    assert broken.alive


async def outage(world: World, replicas: list[Process], calls: int) -> tuple[list[float], float]:
    """Everything dies; how long each of `calls` refused calls took; how long after one came back a call succeeded."""
    async with Mesh("caller", world.config) as mesh:
        client = mesh.client("backend")
        for _ in range(20):
            await client.get("/who")
        for replica in replicas:
            await asyncio.to_thread(replica.kill)
        ends = Counter[str]()
        took = []
        for _ in range(calls):
            began = time.monotonic()
            with pytest.raises(httpx.TransportError) as caught:
                await client.get("/who")
            took.append(time.monotonic() - began)
            ends[type(caught.value).__name__] += 1
            if isinstance(caught.value, NoHealthyEndpoint):
                assert set(caught.value.why) == {replica.address for replica in replicas}
        print(f"all dead: {dict(ends)}")
        assert ends["HttpxNoHealthyEndpoint"] > calls / 2
        replicas[0].again()
        await asyncio.to_thread(replicas[0].wait_listening)
        back = time.monotonic()
        while True:
            try:
                response = await client.get("/who")
                assert response.text == replicas[0].name
                return took, time.monotonic() - back
            except httpx.ConnectError:
                assert time.monotonic() - back < 10, "no call succeeded within 10 s of its return"
                await asyncio.sleep(0.02)


def test_when_all_are_dead_a_call_says_so_at_once(tmp_path: Path) -> None:
    """F08: typed NoHealthyEndpoint with a reason for each; no queue; and the first that returns is found."""
    with World(tmp_path, {"backend": {}}) as world:
        replicas = world.serve("backend", 3)
        took, found_s = asyncio.run(outage(world, replicas, calls=60))
        took.sort()
        print(
            f"all dead: p50 {took[30] * 1e3:.2f} ms, longest {took[-1] * 1e3:.1f} ms; found again after {found_s:.2f} s"
        )


def test_when_all_answer_badly_the_load_stays_spread(tmp_path: Path) -> None:
    """F08: all return 503: they are answers, not refusals of ours, and at least half of the endpoints stay in use."""
    with World(tmp_path, {"backend": {"load_balancer": {"policy": "round_robin"}}}) as world:
        world.serve("backend", 4, MODE="broken")

        async def scenario() -> Counter[str]:
            async with Mesh("caller", world.config) as mesh:
                client = mesh.client("backend")
                with mesh.policy(max_retries=0):
                    replies = [await client.get("/who") for _ in range(200)]
            assert {reply.status_code for reply in replies} == {503}
            return Counter(reply.text for reply in replies[100:])

        spread = asyncio.run(scenario())
        print(f"all answer 503: {dict(spread)}")
        assert len(spread) >= 2
        assert min(spread.values()) >= 40


CASES: dict[str, Any] = {
    "headers/70000": "too_large",
    "fields/150": "too_large",
    "body/120": "too_large",
    "bomb/300": "decode",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One backend that answers more than anybody asked for."""
    with World(tmp_path_factory.mktemp("hostile"), {"backend": {"timeout": "20s"}}) as world:
        world.serve("backend", script=HOSTILE)
        yield world


@pytest.mark.parametrize("target", CASES)
def test_an_answer_that_is_too_much_is_a_typed_error(hostile: World, target: str) -> None:
    """F21, F28, client side: refused with its cause, by both clients; the service is still called afterwards."""

    async def scenario() -> httpx.HTTPError:
        async with Mesh("caller", hostile.config) as mesh:
            client = mesh.client("backend")
            with pytest.raises(httpx.HTTPError) as caught:
                await client.get(f"/{target}")
            assert (await client.get("/fine")).text == "ok"
        return caught.value

    errors = [asyncio.run(scenario())]
    with Mesh("caller", hostile.config) as mesh:
        client = mesh.sync_client("backend")
        with pytest.raises(httpx.HTTPError) as caught:
            client.get(f"/{target}")
        errors.append(caught.value)
        assert client.get("/fine").text == "ok"
    for error in errors:
        assert isinstance(error, TransportError)
        assert error.cause == CASES[target]


def test_the_limits_of_mesh_yaml_are_the_limits(hostile: World) -> None:
    """limits.max_response_body and max_decoded_body are in force, not only the built-in ones."""
    limits = {"max_response_body": "2MiB", "max_decoded_body": "3MiB"}
    with Mesh("caller", hostile.config, defaults={"limits": limits}) as mesh:
        client = mesh.sync_client("backend")
        assert len(client.get("/body/1").content) == 1 << 20
        for target, cause in (("/body/3", "too_large"), ("/bomb/4", "decode")):
            with pytest.raises(TransportError) as caught:
                client.get(target)
            assert caught.value.cause == cause


def test_the_bomb_is_a_bomb() -> None:
    """The control: what the backend sends as a bomb is small on the wire."""
    assert len(gzip.compress(bytes(300 << 20), 1)) < 2 << 20
