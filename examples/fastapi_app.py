"""A FastAPI application on the mesh, as the service `web`: the last line puts it there. See flask_app.py."""

from fastapi import FastAPI

from meshlib import Mesh

mesh = Mesh("web")
app = FastAPI()


@app.get("/pages/{item}")
async def page(item: str):
    reply = await mesh.client("stock").get(f"/items/{item}")  # an httpx.AsyncClient
    return {"page": item, **reply.json()}


@app.get("/prices/{item}")
async def price(item: str):
    return {"price": len(item)}


if __name__ == "__main__":
    mesh.run(app, port=8011)  # FastAPI, Starlette, Django …; under uvicorn: app = mesh.asgi(app)
