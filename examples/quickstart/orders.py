"""The service `orders`: it calls `inventory` with an httpx client; the mesh does the rest."""

from meshlib import Mesh

mesh = Mesh("orders")


@mesh.get("/orders/{order}")
async def order(order: str):
    reply = await mesh.client("inventory").get("/items/apple")
    return {"order": order, "stock": reply.json()}


mesh.run(port=8001)
