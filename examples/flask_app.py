"""A Flask application on the mesh, as the service `stock`: the last line puts it there. See fastapi_app.py."""

from flask import Flask

from meshlib import Mesh, current

mesh = Mesh("stock")
app = Flask(__name__)


@app.get("/items/<item>")
def item(item):
    # called within the deadline and the trace of the request being served
    price = mesh.sync_client("web").get(f"/prices/{item}").json()  # an httpx.Client
    return {"stock": 7, "asked_by": str(current().peer), **price}


if __name__ == "__main__":
    mesh.run(app, port=8012)  # Flask, Django …; under gunicorn: app = mesh.wsgi(app)
