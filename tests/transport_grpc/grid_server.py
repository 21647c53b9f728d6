"""The server of test_grid.py, a process of its own: `wait ID` waits for `go ID`; `tell ID` says what became of it."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from typing import Any

import grpc

from meshlib import Mesh

messages, services = grpc.protos_and_services("transport_grpc/grid.proto")  # type: ignore[attr-defined]
Note = messages.Note


class Grid(services.GridServicer):  # type: ignore[misc, name-defined]
    """`state`: of each call by its id: began, ended (given up by the caller) or done."""

    def __init__(self) -> None:
        self.state: dict[str, str] = defaultdict(str)
        self.go: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def _wait(self, text: str) -> Any:
        verb, name = text.split()
        if verb == "go":
            self.go[name].set()
        elif verb == "wait":
            self.state[name] = "began"
            try:
                await self.go[name].wait()
            except asyncio.CancelledError:
                self.state[name] = "ended"
                raise
            self.state[name] = "done"
        return Note(text=self.state[name])

    async def Unary(self, request: Any, _context: Any) -> Any:
        """One message, one answer."""
        return await self._wait(request.text)

    async def Serve(self, request: Any, _context: Any) -> Any:
        """The first answer at once."""
        yield Note(text="first")
        yield await self._wait(request.text)

    async def Collect(self, requests: Any, _context: Any) -> Any:
        """By the first message."""
        return await self._wait((await anext(aiter(requests))).text)

    async def Talk(self, requests: Any, _context: Any) -> Any:
        """By the first message, to which the first answer comes at once."""
        first = await anext(aiter(requests))
        yield Note(text="first")
        yield await self._wait(first.text)


def main() -> None:
    """Serve."""
    mesh = Mesh("echo", os.environ["GRID_MESH"])
    server = mesh.grpc_server()
    services.add_GridServicer_to_server(Grid(), server)
    mesh.run(server, host="127.0.0.1", port=int(os.environ["GRID_PORT"]))


if __name__ == "__main__":
    main()
