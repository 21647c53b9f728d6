"""Storefront: a plain FastAPI application; its last line puts it on the mesh. The client is an `httpx.AsyncClient`."""

from __future__ import annotations

import os

from fastapi import FastAPI

from meshlib import Mesh

app = FastAPI()
mesh = Mesh("storefront")
orders = mesh.client("orders")


@app.get("/pages/{order}")
async def page(order: int) -> dict[str, object]:
    """A page about an order."""
    reply = await orders.get(f"/orders/{order}")
    reply.raise_for_status()
    return {"title": f"Order {order}", "order": reply.json()}


if __name__ == "__main__":
    mesh.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "0")))
