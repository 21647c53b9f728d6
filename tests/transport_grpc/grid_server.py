"""The server of test_grid.py, a process of its own: `wait ID` waits for `go ID`; `tell ID` says what became of it.

`who ID` says which certificate, and which connection, a call came by: `who me` of itself, else of the one that waits.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from typing import Any

import grpc
from cryptography import x509

from meshlib import Mesh

messages, services = grpc.protos_and_services("transport_grpc/grid.proto")  # type: ignore[attr-defined]
Note = messages.Note


def caller(context: Any) -> str:
    """The serial of the caller's certificate, and the port that it called from."""
    (pem,) = context.auth_context()["x509_pem_cert"]
    return f"{x509.load_pem_x509_certificate(pem).serial_number} {context.peer().rpartition(':')[2]}"


class Grid(services.GridServicer):  # type: ignore[misc, name-defined]
    """`state`: of each call by its id: began, ended (given up by the caller) or done. `callers`: whose it is."""

    def __init__(self) -> None:
        self.state: dict[str, str] = defaultdict(str)
        self.callers: dict[str, str] = {}
        self.go: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def _wait(self, text: str, context: Any) -> Any:
        verb, name = text.split()
        if verb == "go":
            self.go[name].set()
        elif verb == "who":
            return Note(text=caller(context) if name == "me" else self.callers[name])
        elif verb == "wait":
            self.callers[name] = caller(context)
            self.state[name] = "began"
            try:
                await self.go[name].wait()
            except asyncio.CancelledError:
                self.state[name] = "ended"
                raise
            self.state[name] = "done"
        return Note(text=self.state[name])

    async def Unary(self, request: Any, context: Any) -> Any:
        """One message, one answer."""
        return await self._wait(request.text, context)

    async def Serve(self, request: Any, context: Any) -> Any:
        """The first answer at once."""
        yield Note(text="first")
        yield await self._wait(request.text, context)

    async def Collect(self, requests: Any, context: Any) -> Any:
        """By the first message."""
        return await self._wait((await anext(aiter(requests))).text, context)

    async def Talk(self, requests: Any, context: Any) -> Any:
        """By the first message, to which the first answer comes at once."""
        first = await anext(aiter(requests))
        yield Note(text="first")
        yield await self._wait(first.text, context)


def main() -> None:
    """Serve."""
    mesh = Mesh("echo", os.environ["GRID_MESH"])
    server = mesh.grpc_server()
    services.add_GridServicer_to_server(Grid(), server)
    mesh.run(server, host="127.0.0.1", port=int(os.environ["GRID_PORT"]))


if __name__ == "__main__":
    main()
