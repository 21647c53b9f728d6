"""Calls through several services: one deadline, one trace, no cookie of anybody else."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from meshlib import Mesh
from meshlib.identity.credentials import Credentials
from meshlib.identity.dev import DevSource
from meshlib.identity.spiffe import SpiffeId
from process.replicas import World, until

CONFIG: dict[str, Any] = {"telemetry": {"tracing": {"sample": "100%"}}}
PRELUDE = (
    "import os\nfrom meshlib import Mesh, current\nfrom process.apps import spans\nmesh = Mesh()\nfailed = set()\n"
)
END = "\nmesh.run(app, port=int(os.environ['PORT']))\n"

FASTAPI = (
    PRELUDE
    + """
from fastapi import FastAPI
app = FastAPI()

@app.get("/hop/{word}")
async def hop(word: str):
    mine = current().remaining_s
    below = (await mesh.client("middle").get(f"/hop/{word}")).json()
    return [{"service": "front", "remaining_s": mine, "trace": current().trace_id}, *below]

@app.get("/login/{user}")
async def login(user: str):
    reply = await mesh.client("last").get(f"/cookie/{user}")
    return {"had": reply.text}
"""
    + END
)
FLASK = (
    PRELUDE
    + """
import time
from flask import Flask, jsonify
app = Flask(__name__)

@app.get("/hop/<word>")
def hop(word):
    mine = current().remaining_s
    time.sleep(0.02)
    below = mesh.sync_client("last").get(f"/hop/{word}").json()
    return jsonify([{"service": "middle", "remaining_s": mine, "trace": current().trace_id}, *below])
"""
    + END
)
DECORATED = (
    PRELUDE
    + """
import asyncio
from starlette.requests import Request
from starlette.responses import Response
app = None

@mesh.get("/hop/{word}")
async def hop(word: str):
    if word.startswith("flaky") and word not in failed:
        failed.add(word)
        return Response(status_code=503)
    return [{"service": "last", "remaining_s": current().remaining_s, "trace": current().trace_id}]

@mesh.get("/cookie/{user}")
async def cookie(user: str, request: Request):
    await asyncio.sleep(0.005)
    return Response(request.headers.get("cookie", ""), headers={"set-cookie": f"session={user}; Path=/"})
"""
    + END
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("journeys")
    with World(folder, {"front": {}, "middle": {}, "last": {}, "backend": {}}, **CONFIG) as world:
        spans = {"SPANS": str(folder / "spans")}
        for service, script in (("last", DECORATED), ("middle", FLASK), ("front", FASTAPI)):
            world.serve(service, script=script, **spans)
        world.serve("backend")
        yield world


def test_time_that_remains_only_decreases(world: World) -> None:
    """Three hops, one of them blocking threads: each has less of the caller's 3 s than the one before."""
    with Mesh("caller", world.config) as mesh:
        hops = mesh.sync_client("front").get("/hop/x", timeout=3.0).json()
    left = [hop["remaining_s"] for hop in hops]
    print(f"remaining over three hops: {[round(seconds, 3) for seconds in left]}")
    assert [hop["service"] for hop in hops] == ["front", "middle", "last"]
    assert 3.0 > left[0] > left[1] >= left[2] + 0.02 > 0.02


def test_one_trace_over_three_services(world: World) -> None:
    """FastAPI, Flask and decorated handlers, no header touched: one trace, each server below the attempt that called it.

    The last service answers 503 once: both attempts are children of the same call.
    """
    with Mesh("caller", world.config) as mesh:
        hops = mesh.sync_client("front").get("/hop/flaky1").json()
    (trace,) = {hop["trace"] for hop in hops}

    def recorded() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (world.folder / "spans").read_text().splitlines()]
        return [span for span in lines if span["trace"] == trace]

    # A span is written when it has ended, which may be after its reply has arrived.
    def servers() -> list[str]:
        return [span["service"] for span in recorded() if (span["kind"], span["name"][:3]) == ("SERVER", "GET")]

    # FastAPI may record a SERVER span of its own.
    until(lambda: {"front", "middle"} <= set(servers()) and servers().count("last") == 2, "all spans")
    spans = recorded()
    by_id = {span["span"]: span for span in spans}
    assert len(by_id) == len(spans)

    def only(service: str, kind: str, name: str = "") -> list[dict[str, Any]]:
        return [s for s in spans if (s["service"], s["kind"]) == (service, kind) and name in s["name"]]

    def above(span: dict[str, Any]) -> list[tuple[str, str, str]]:
        """Every ancestor, nearest first, but for the framework's own INTERNAL spans."""
        found = []
        while (parent := by_id.get(span["parent"])) is not None:
            span = parent
            if span["kind"] != "INTERNAL":
                found.append((span["service"], span["kind"], span["name"].partition("/")[0].rstrip()))
        return found

    front_call = [
        ("front", "CLIENT", "attempt 1"),
        ("front", "CLIENT", "GET middle.default"),
        ("front", "SERVER", "GET"),
    ]
    (middle,) = only("middle", "SERVER")
    assert above(middle) == front_call
    attempts = sorted(only("middle", "CLIENT", "attempt"), key=lambda span: str(span["name"]))
    assert [(span["name"], span["status"]) for span in attempts] == [("attempt 1", 503), ("attempt 2", 200)]
    below_middle = [("middle", "CLIENT", "GET last.default"), ("middle", "SERVER", "GET"), *front_call]
    assert [above(span) for span in attempts] == [below_middle] * 2
    last = only("last", "SERVER")
    assert sorted(span["parent"] for span in last) == sorted(span["span"] for span in attempts)


def test_two_users_never_share_a_cookie(world: World) -> None:
    """Forty users at once behind one handler: what a service sets for one is never sent for another."""

    async def scenario() -> list[str]:
        async with Mesh("caller", world.config) as mesh:
            client = mesh.client("front")
            had: list[str] = []
            for _ in range(5):
                replies = await asyncio.gather(*(client.get(f"/login/user{n}") for n in range(40)))
                assert [reply.status_code for reply in replies] == [200] * 40
                had += [reply.json()["had"] for reply in replies]
            return had

    assert set(asyncio.run(scenario())) == {""}


def test_expired_work_is_refused_unstarted(world: World) -> None:
    """A request whose caller's deadline has passed: 504 of the mesh, and the handler has not run; one in time has."""
    server = next(process for process in world.processes if process.name == "backend-0")
    credentials = Credentials(DevSource(world.folder / ".meshlib", "test.dev", "caller"), "test.dev")
    context = credentials.client(SpiffeId.for_service("test.dev", "backend")).context()
    late = _ask(server.port, context, 0, "late")
    assert late.startswith(b"HTTP/1.1 504")
    assert b"x-meshlib-refused: rejected" in late.lower() or b"x-meshlib-refused: deadline" in late.lower()
    assert _ask(server.port, context, 5000, "in-time").startswith(b"HTTP/1.1 200")
    assert world.executed() == ["in-time"]


def _ask(port: int, context: ssl.SSLContext, deadline_ms: int, order: str) -> bytes:
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="backend.default.test.dev") as tls,
    ):
        head = f"POST /orders/{order} HTTP/1.1\r\nhost: b\r\nx-meshlib-deadline-ms: {deadline_ms}\r\n"
        tls.sendall(f"{head}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        while piece := tls.recv(65536):
            received += piece
    return received
