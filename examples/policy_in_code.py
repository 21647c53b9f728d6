"""Policy per call, errors and trails. The services are fakes, so that it runs anywhere; with Mesh it is the same."""

import httpx

import meshlib
from meshlib.testing import FakeMesh

mesh = FakeMesh("mesh.yaml", "checkout")
stock = mesh.service("stock")
client = mesh.sync_client("stock")

print("-- a retry: the trail says what happened")
stock.reply(503).then.reply(json={"stock": 7})
print(client.get("/items/apple").extensions["meshlib.trail"])

print("-- a POST is not sent twice, unless it is said to be idempotent")
stock.reply(503).then.reply(201)
print(client.post("/items", json={"item": "pear"}).status_code)
stock.reply(503).then.reply(201)
with mesh.policy(idempotent=True, max_retries=1):
    print(client.post("/items", json={"item": "pear"}).status_code)

print("-- a deadline for everything inside the block; the error is httpx's and meshlib's at once")
stock.fail("timeout")
try:
    with mesh.policy(timeout=0.05):
        client.get("/items/apple")
except httpx.TimeoutException as error:
    print(f"{error.kind} in phase {error.phase}, sent: {error.sent}, ours: {isinstance(error, meshlib.MeshError)}")
    print(error.trail)

print("-- nobody listens: the first call finds out, the next one is told without trying")
stock.fail("refused")
for _ in range(2):
    try:
        client.get("/items/apple")
    except meshlib.MeshError as error:
        print(f"{error.kind}: {error}")

print("-- a name that is not in the policy")
try:
    mesh.sync_client("stok").get("/")
except meshlib.UnknownService as error:
    print(error)
