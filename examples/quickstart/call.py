"""A job that calls `orders`, prints the answer and which way the call went."""

from meshlib import Mesh

reply = Mesh("shopper").sync_client("orders").get("/orders/1")
print(reply.text)
print(reply.extensions["meshlib.trail"])
