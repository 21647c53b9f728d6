"""An hour of calls with an outage of ten minutes, in virtual time: it takes seconds, and always ends the same.

Two endpoints, ten calls a second. From minute 20 one endpoint is down; from 25 to 30 both are.
"""

from collections import Counter

from meshlib import MeshError
from meshlib.testing import FakeMesh, simulate

POLICY = {
    "version": 1,
    "mesh": "shop",
    "services": {"stock": {"timeout": "1s", "endpoints": [{"static": ["127.0.0.1:1", "127.0.0.1:2"]}]}},
}


async def hour(sim):
    mesh = FakeMesh(POLICY, "web")
    stock = mesh.service("stock").delay(0.02)
    first, second = (stock.endpoint(address) for address in stock.addresses)
    calls, good, attempts = Counter(), Counter(), Counter()

    async def outage():
        await sim.sleep(20 * 60)
        first.fail("refused")
        await sim.sleep(5 * 60)
        second.fail("refused")
        await sim.sleep(5 * 60)
        first.reply(200)
        second.reply(200)

    async def call():
        minute = int(sim.now() // 60)
        calls[minute] += 1
        try:
            reply = await mesh.client("stock").get("/items/7")
            good[minute] += reply.is_success
            attempts[minute] += len(reply.extensions["meshlib.trail"])
        except MeshError as error:
            attempts[minute] += len(error.trail or ())

    sim.spawn(outage())
    while sim.now() < 3600:
        sim.spawn(call())
        await sim.sleep(0.1)
    await sim.sleep(5)
    return calls, good, attempts


ended = simulate(hour, seed=1)
calls, good, attempts = ended.result
print("minutes  calls  attempts  success")
for begin in range(0, 60, 5):
    made, won, tried = (sum(c[minute] for minute in range(begin, begin + 5)) for c in (calls, good, attempts))
    print(f"{begin:3}-{begin + 5:<3} {made:6} {tried:9}  {won / made:8.2%}")
print(f"{ended.duration_s:.0f} s of virtual time, {len(ended.transcript)} attempts, digest {ended.digest[:12]}")
