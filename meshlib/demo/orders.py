"""Orders: a plain Flask application. It calls inventory with an `httpx.Client` of the mesh, and is served by it."""

from __future__ import annotations

import os

from flask import Flask

from meshlib import Mesh

app = Flask(__name__)
mesh = Mesh("orders")
inventory = mesh.sync_client("inventory")


@app.get("/orders/<int:order>")
def show(order: int) -> dict[str, object]:
    """An order, with what is left of its item."""
    reply = inventory.get(f"/items/{order % 100}")
    reply.raise_for_status()
    return {"order": order, "item": reply.json()}


if __name__ == "__main__":
    mesh.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "0")))
