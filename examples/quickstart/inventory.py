"""The service `inventory`: one handler, served with mTLS."""

from meshlib import Mesh, current

mesh = Mesh("inventory")


@mesh.get("/items/{item}")
def item(item: str):
    return {"item": item, "stock": 7, "asked_by": str(current().peer)}


mesh.run(port=8002)
