"""Virtual time: user code on the production engine, without a clock."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from meshlib import DeadlineExceeded
from meshlib.testing import FakeMesh, FakeRequest, Simulation, simulate, simulation

from .policies import one_service, two_endpoints


async def _busy_hour(sim: Simulation) -> int:
    """Ten callers for ten minutes, faults and an outage in the middle."""
    mesh = FakeMesh(two_endpoints(timeout="1s"))
    inventory = mesh.service("inventory").delay(0.02)
    mesh.fault("inventory", abort=503, percent=5)
    failed = 0

    async def caller() -> None:
        nonlocal failed
        for _ in range(60):
            await sim.sleep(sim.rng.random() * 20)
            try:
                await mesh.client("inventory").get("/items/7")
            except httpx.TransportError:
                failed += 1

    callers = [sim.spawn(caller()) for _ in range(10)]
    await sim.sleep(200)
    inventory.fail("refused")
    await sim.sleep(60)
    inventory.reply(200)
    for task in callers:
        await task
    return failed


def test_the_same_seed_gives_the_same_transcript():
    """And another seed another one; both have an outage in which calls fail."""
    first, again, other = simulate(_busy_hour, seed=1), simulate(_busy_hour, seed=1), simulate(_busy_hour, seed=2)
    assert first == again
    assert first.digest != other.digest
    assert first.result > 20
    assert first.duration_s > 400
    assert any("→ refused" in line for line in first.transcript)


def test_a_call_takes_its_time_in_virtual_seconds():
    """Delay, back-off and deadline run on the simulated clock."""

    async def main(sim: Simulation) -> float:
        mesh = FakeMesh(one_service(timeout="20s", retries={"max_retries": 0}))
        mesh.service("inventory").delay(15)
        await mesh.client("inventory").get("/")
        mesh.service("inventory").fail("timeout")
        with pytest.raises(DeadlineExceeded):
            await mesh.client("inventory").get("/")
        return sim.now()

    assert simulate(main).result == 35.0


def test_breakers_and_their_gauges_are_on_the_simulated_clock():
    """A refused endpoint is unreachable, then on probation, and the metrics say so."""

    async def main(sim: Simulation) -> list[str]:
        mesh = FakeMesh(one_service(retries={"max_retries": 0}))
        mesh.service("inventory").fail("refused")
        with pytest.raises(httpx.ConnectError):
            await mesh.client("inventory").get("/")
        states = []
        for _ in range(2):
            shown = [line for line in mesh.metrics.splitlines() if line.startswith("meshlib_endpoint_state{")]
            states += [line.partition('state="')[2].partition('"')[0] for line in shown if line.endswith(" 1")]
            await sim.sleep(1)
        return states

    assert simulate(main).result == ["unreachable", "probation"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get("/items/7"),
        lambda client: client.request("GET", "/items/7", params={"a": "b c"}),
        lambda client: client.post("/items", data={"a": "b"}),
        lambda client: client.get("/items/7", auth=("ada", "secret")),
        lambda client: client.get("/items/7", follow_redirects=True),
    ],
    ids=["fast path", "params", "form", "auth", "redirects"],
)
def test_every_httpx_method_runs_in_it(ask):
    """The fast path and httpx's own."""

    async def main(sim: Simulation) -> int:
        mesh = FakeMesh(one_service())
        mesh.service("inventory").delay(1)
        return (await ask(mesh.client("inventory"))).status_code

    ended = simulate(main)
    assert (ended.result, ended.duration_s) == (200, 1.0)


def test_streams_and_the_own_transport_run_in_it():
    """`client.stream` and an httpx.AsyncClient of the user's."""

    async def main(sim: Simulation) -> list[bytes]:
        async with (
            FakeMesh(one_service()) as mesh,
            httpx.AsyncClient(transport=mesh.transport()) as own,
            own.stream("GET", "http://inventory/") as reply,
        ):
            return [piece async for piece in reply.aiter_bytes()]

    assert simulate(main).result == [b'{"service": "inventory", "endpoint": "127.0.0.1:1"}']


def test_an_async_handler_sleeps_in_virtual_time_and_is_ended_by_the_deadline():
    """A fake that calls on, in a simulation, is a whole chain of services."""

    async def main(sim: Simulation) -> list[float]:
        services = {"orders": {"timeout": "2s", "retries": {"max_retries": 0}}, "inventory": {}}
        mesh = FakeMesh({"version": 1, "mesh": "shop", "services": services})
        mesh.service("inventory").delay(1)
        moments = []

        async def orders(request: FakeRequest) -> str:
            moments.append(sim.now())
            await mesh.client("inventory").get("/")
            moments.append(sim.now())
            await sim.sleep(60)
            return "late"

        mesh.service("orders").handler(orders)
        with pytest.raises(httpx.ReadTimeout):
            await mesh.client("orders").get("/")
        return [*moments, sim.now()]

    assert simulate(main).result == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("wait", "arguments"),
    [(asyncio.sleep, (1,)), (asyncio.Event.wait, (asyncio.Event(),)), (asyncio.to_thread, (print,))],
)
def test_asyncio_is_refused_with_a_sentence(wait, arguments):
    """A real wait would never end; the sentence says what to use."""

    async def main(sim: Simulation) -> None:
        await wait(*arguments)

    with pytest.raises(RuntimeError, match=r"no asyncio: await sim\.sleep"):
        simulate(main)


@pytest.mark.parametrize("run", [asyncio.gather, asyncio.create_task])
def test_tasks_of_asyncio_are_refused_with_a_sentence(run):
    """And the coroutine is closed, so that Python does not warn that it was never awaited."""

    async def main(sim: Simulation) -> None:
        await run(_nothing())

    with pytest.raises(RuntimeError, match=r"no asyncio: await sim\.sleep"):
        simulate(main)


async def _nothing() -> None: ...


def test_threads_are_refused_with_a_sentence():
    """A sync client would sleep for real."""

    async def main(sim: Simulation) -> None:
        FakeMesh(one_service()).sync_client("inventory").get("/")

    with pytest.raises(RuntimeError, match=r"call through mesh\.client"):
        simulate(main)


def test_a_mesh_belongs_to_one_time():
    """What it learned on one clock means nothing on another."""
    mesh = FakeMesh(one_service())

    async def main(sim: Simulation) -> int:
        return (await mesh.client("inventory").get("/")).status_code

    assert simulate(main).result == 200
    with pytest.raises(RuntimeError, match="another time"):
        simulate(main)
    with pytest.raises(RuntimeError, match="another time"):
        mesh.sync_client("inventory").get("/")


def test_an_error_names_seed_and_time():
    """So that a found failure is one line to repeat."""

    async def main(sim: Simulation) -> None:
        await sim.sleep(2.5)
        raise ValueError("found")

    with pytest.raises(ValueError, match="found") as caught:
        simulate(main, seed=42)
    assert caught.value.__notes__ == ["in a simulation at t=2.500000 s; seed=42 repeats it"]
    assert asyncio._get_running_loop() is None


def test_it_runs_below_a_real_event_loop_too():
    """The outer loop is the running one again afterwards."""

    async def inner(sim: Simulation) -> float:
        await sim.sleep(3600)
        return sim.now()

    async def main() -> float:
        result = simulate(inner).result
        await asyncio.sleep(0)
        return result

    assert asyncio.run(main()) == 3600


def test_a_transcript_is_bounded_and_its_digest_is_not(monkeypatch: pytest.MonkeyPatch):
    """The last lines are kept; a difference in a forgotten one is still a difference."""
    monkeypatch.setattr(simulation, "TRANSCRIPT_MAX", 2)

    def main(first: str):
        async def run(sim: Simulation) -> None:
            for line in (first, "b", "c"):
                sim.note(line)

        return run

    one, two = simulate(main("a")), simulate(main("x"))
    assert one.transcript == two.transcript == ("0.000000 b", "0.000000 c")
    assert one.digest != two.digest
