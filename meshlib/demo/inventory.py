"""Inventory: decorated handlers, nothing else. The version it says is the one that the canary shifts."""

from __future__ import annotations

import os

from meshlib import Mesh

mesh = Mesh("inventory")
version = os.environ.get("INVENTORY_VERSION", "v1")


@mesh.get("/items/{item}")
async def stock(item: int) -> dict[str, object]:
    """What is left of an item."""
    return {"item": item, "stock": item * 7 % 50, "version": version}


if __name__ == "__main__":
    mesh.run(host="127.0.0.1", port=int(os.environ.get("PORT", "0")))
