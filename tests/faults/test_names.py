"""F11 in full length: name servers that are silent or say too much, and an event loop that does not notice."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import httpx
import pytest
from discovery.name_server import name_server
from http_backend import backends

from meshlib import Mesh


@pytest.mark.faults
def test_a_loop_does_not_wait_for_a_name_server():
    """F11: a silent name server, 500 addresses, and a loop that is never held up for 50 ms by either."""
    with name_server() as names, backends("a") as made:
        names.records["items.test", "A"] = (0, ["127.0.0.1"])
        names.records["many.test", "A"] = (0, [f"127.1.{n // 250}.{n % 250 + 1}" for n in range(500)])
        services = {
            name: {"endpoints": [{"dns": f"{name}.test:{made['a'].port}"}], "timeout": "1s"}
            for name in ("items", "many", "silent")
        }
        names.trouble["silent.test"] = "silent"
        config = {"version": 1, "mesh": "shop", "defaults": {"mtls": "disabled"}, "services": services}
        config["dns"] = {"nameservers": [f"127.0.0.1:{names.port}"]}

        async def main() -> tuple[float, float]:
            async with Mesh("shop", config) as mesh:
                quiet = await _worst_lag_s(asyncio.sleep(2.0))
                calls = asyncio.gather(*(_calls(mesh, name) for name in services))
                return quiet, await _worst_lag_s(calls)

        gc.collect()
        gc.freeze()  # the collector's own pauses grow with what the whole test run has in memory
        try:
            quiet, busy = asyncio.run(main())
        finally:
            gc.unfreeze()
        print(f"the loop was held up for {busy * 1e3:.0f} ms at most; {quiet * 1e3:.0f} ms without a call")
        assert busy < max(0.05, 2 * quiet)
        asked = [name for name, _, by in names.asked if by == "udp"]
        print({name: asked.count(name) for name in dict.fromkeys(asked)})
        assert asked.count("items.test") <= 10


async def _calls(mesh: Mesh, name: str) -> None:
    give_up = time.monotonic() + 8.0
    while time.monotonic() < give_up:
        try:
            await mesh.client(name).get("/")
        except httpx.HTTPError:
            await asyncio.sleep(0.05)


async def _worst_lag_s(work: Any) -> float:
    worst, task = 0.0, asyncio.ensure_future(work)
    while not task.done():
        began = time.monotonic()
        await asyncio.sleep(0.005)
        worst = max(worst, time.monotonic() - began - 0.005)
    await task
    return worst
