"""What a handler that raises leaves behind, and where the dev identity serves."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from meshlib import Mesh
from process.replicas import World

DECORATED = """
from meshlib import Mesh
mesh = Mesh("backend")

@mesh.get("/boom")
async def boom():
    raise RuntimeError("on purpose")

@mesh.post("/orders/{number}")
async def order(number: int):
    return {"number": number}

mesh.run()
"""
FASTAPI = """
from fastapi import FastAPI
from meshlib import Mesh
app = FastAPI()

@app.get("/boom")
async def boom():
    raise RuntimeError("on purpose")

@app.post("/orders/{number}")
async def order(number: int):
    return {"number": number}

Mesh("backend").run(app)
"""
EVERYWHERE = """
import sys, uvicorn
from meshlib import Mesh
from meshlib.transport.uvicorn import PeerProtocol
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})
uvicorn.run(Mesh("backend").asgi(app), host="0.0.0.0", port=int(sys.argv[1]), http=PeerProtocol, log_level="error")
"""


@pytest.mark.parametrize("script", [DECORATED, FASTAPI], ids=["decorated", "fastapi"])
def test_the_call_after_a_500_is_served(tmp_path: Path, script: str) -> None:
    """The connection of a handler that raised can be used again, or is announced as closed: 50 POSTs, none fails."""
    with World(tmp_path, {"backend": {}}) as world:
        (server,) = world.serve("backend", script=script)

        async def scenario() -> list[int]:
            async with Mesh("caller", world.config) as mesh:
                client, statuses = mesh.client("backend"), []
                for number in range(50):
                    assert (await client.get("/boom")).status_code == 500
                    statuses.append((await client.post(f"/orders/{number}")).status_code)
                return statuses

        assert asyncio.run(scenario()) == [200] * 50
        assert server.log().count("RuntimeError: on purpose") == 50, "the error must be logged, once each"


def test_the_dev_identity_serves_the_loopback_only_under_any_server(tmp_path: Path) -> None:
    """uvicorn told to listen everywhere: a connection to another address of this machine is cut before TLS."""
    other = next((a for a in socket.gethostbyname_ex(socket.gethostname())[2] if not a.startswith("127.")), None)
    if other is None:
        pytest.skip("this machine has no address but the loopback one")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with World(tmp_path, {"backend": {}}) as world:
        world.run(EVERYWHERE, "everywhere", str(port))
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        world.endpoints("backend", [f"127.0.0.1:{port}"])
        with Mesh("caller", world.config, defaults={"retries": {"max_retries": 3}}) as mesh:
            from process.replicas import until

            until(lambda: _answers(mesh), "the server answers on the loopback address")
        with socket.create_connection((other, port), 5) as plain, pytest.raises(OSError):
            context.wrap_socket(plain).recv(1)


def _answers(mesh: Mesh) -> bool:
    import httpx

    try:
        return mesh.sync_client("backend").get("/").text == "inside"
    except httpx.HTTPError:
        return False
