"""Calls from threads: one httpx.Client for all of them. Run flask_app.py and fastapi_app.py beside it."""

from concurrent.futures import ThreadPoolExecutor

from meshlib import Mesh

with Mesh("reporter") as mesh, ThreadPoolExecutor(4) as threads:
    stock = mesh.sync_client("stock")
    replies = threads.map(lambda item: stock.get(f"/items/{item}"), ["apple", "pear", "plum"])
    for reply in replies:
        print(reply.request.url.path, reply.status_code, reply.json())
