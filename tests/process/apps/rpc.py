"""A replica that serves gRPC: `KIND` is aio or threads; it answers with its name."""

from __future__ import annotations

import os
from typing import Any

import grpc

from meshlib import Mesh

NAME = os.environ["REPLICA"]
mesh = Mesh()


async def aio_who(_request: bytes, _context: Any) -> bytes:
    return NAME.encode()


def who(_request: bytes, _context: Any) -> bytes:
    return NAME.encode()


def main() -> None:
    aio = os.environ["KIND"] == "aio"
    server: Any = mesh.grpc_server() if aio else mesh.sync_grpc_server()
    made = grpc.unary_unary_rpc_method_handler(aio_who if aio else who)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Names", {"Who": made}),))
    mesh.run(server, port=int(os.environ["PORT"]))


main()
