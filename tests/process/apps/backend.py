"""The usual backend: says who it is, keeps a ledger of what it executed, shows what it was sent.

`MODE=broken`: every answer of `/who` is a 503 at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from meshlib import Mesh, current

REPLICA, BROKEN = os.environ["REPLICA"], os.environ.get("MODE") == "broken"
LEDGER = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND)

mesh = Mesh()


@mesh.get("/who")
async def who() -> Response:
    return Response(REPLICA, 503 if BROKEN else 200)


@mesh.get("/orders/{order}")
async def order(order: str) -> dict[str, str]:
    os.write(LEDGER, f"{order}\n".encode())
    return {"order": order, "replica": REPLICA}


@mesh.post("/orders/{order}")
async def create(order: str) -> dict[str, str]:
    os.write(LEDGER, f"{order}\n".encode())
    return {"order": order, "replica": REPLICA}


@mesh.get("/echo/{word}")
async def echo(word: str) -> str:
    return word


@mesh.get("/slow/{milliseconds}")
async def slow(milliseconds: int) -> str:
    await asyncio.sleep(milliseconds / 1000)
    return REPLICA


@mesh.get("/bytes/{count}")
async def content(count: int) -> bytes:
    return bytes(count)


@mesh.get("/pieces/{count}")
async def pieces(count: int) -> Response:
    async def made() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"p" * 1000
            await asyncio.sleep(0.02)

    return StreamingResponse(made(), media_type="application/octet-stream")


@mesh.get("/seen")
async def seen(request: Request) -> dict[str, object]:
    served = current()
    assert served is not None
    return {
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers.raw],
        "peer": None if served.peer is None else str(served.peer),
        "remaining_s": min(served.remaining_s, 1e9),
        "attempt": served.attempt,
        "criticality": served.criticality,
        "trace_id": served.trace_id,
    }


@mesh.get("/cookie/{user}")
async def cookie(user: str, request: Request) -> Response:
    return Response(request.headers.get("cookie", ""), headers={"set-cookie": f"session={user}"})


mesh.run(port=int(os.environ["PORT"]))
