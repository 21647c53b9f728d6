"""Storefront: a plain FastAPI application; its last line puts it on the mesh. It calls orders with an
`httpx.AsyncClient` of the mesh, and prices over gRPC.
"""

from __future__ import annotations

import asyncio
import os

from fastapi import FastAPI
from google.protobuf.wrappers_pb2 import Int64Value

from meshlib import Mesh
from meshlib.demo.prices import PRICE

app = FastAPI()
mesh = Mesh("storefront")
orders = mesh.client("orders")
price = mesh.channel("prices").unary_unary(
    PRICE, request_serializer=Int64Value.SerializeToString, response_deserializer=Int64Value.FromString
)


@app.get("/pages/{order}")
async def page(order: int) -> dict[str, object]:
    """A page about an order."""
    reply, cents = await asyncio.gather(orders.get(f"/orders/{order}"), price(Int64Value(value=order % 100)))
    reply.raise_for_status()
    return {"title": f"Order {order}", "order": reply.json(), "cents": cents.value}


if __name__ == "__main__":
    mesh.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "0")))
