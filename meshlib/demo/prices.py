"""Prices: a gRPC service. Its messages are protobuf's own wrappers, so that nothing needs to be generated for the demo;
generated servicers are added to the server in the same way.
"""

from __future__ import annotations

import os
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int64Value

from meshlib import Mesh

SERVICE = "shop.v1.Prices"
PRICE = f"/{SERVICE}/Price"


async def price(item: Int64Value, _context: Any) -> Int64Value:
    """What an item costs, in cents."""
    return Int64Value(value=100 + item.value * 37 % 900)


def main() -> None:
    """Serve."""
    mesh = Mesh("prices")
    server = mesh.grpc_server()
    handler = grpc.unary_unary_rpc_method_handler(
        price, request_deserializer=Int64Value.FromString, response_serializer=Int64Value.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Price": handler}),))
    mesh.run(server, host="127.0.0.1", port=int(os.environ.get("PORT", "0")))


if __name__ == "__main__":
    main()
