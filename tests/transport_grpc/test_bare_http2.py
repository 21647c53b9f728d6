"""What a peer says in HTTP/2 alone: which calls are tried again, and which code an answer has that is no gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshlib import Mesh
from meshlib.grpc_code import GrpcCode, code_of_http

from .bare_peer import Answer, bare_peer, goaway, headers, rst_stream
from .echo import SERVICE, Echo, mesh_of, serving

both = pytest.mark.parametrize("kind", ["aio", "threads"])
CALLS = 12


def calls(kind: str, mesh: Mesh, count: int) -> list[Any]:
    """The answer, or the error, of each of so many unary calls."""
    path, made = f"/{SERVICE}/UnaryUnary", []

    async def main() -> None:
        async with mesh:
            for _ in range(count):
                try:
                    made.append(await mesh.channel("echo").unary_unary(path)(b"x", timeout=5))
                except grpc.RpcError as error:
                    made.append(error)

    if kind == "aio":
        asyncio.run(main())
        return made
    with mesh:
        for _ in range(count):
            try:
                made.append(mesh.sync_channel("echo").unary_unary(path)(b"x", timeout=5))
            except grpc.RpcError as error:
                made.append(error)
    return made


@both
@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (rst_stream(7), True),
        (goaway(seen=False), True),
        (rst_stream(2), False),
        (lambda _stream: b"", False),
    ],
    ids=["refused stream", "goaway without it", "internal error", "closed"],
)
def test_only_what_the_server_has_not_seen_is_tried_again(
    kind: str, answer: Answer, again: bool, tmp_path: Path
) -> None:
    """A call that may be processed once: at another endpoint where it was refused, nowhere where it may have run."""
    service = {"load_balancer": {"policy": "round_robin"}, "retries": {"max_retries": 2}}
    with bare_peer(answer) as peer, serving(Echo()) as (_, ports):
        answers = calls(kind, Mesh("orders", mesh_of(tmp_path, [peer.port, *ports], **service)), CALLS)
    failed = [each for each in answers if isinstance(each, grpc.RpcError)]
    assert peer.streams > 0
    assert len(failed) == (0 if again else peer.streams)


@both
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 418, 429, 431, 502, 503, 504])
def test_an_answer_that_is_no_grpc(kind: str, status: int, tmp_path: Path) -> None:
    """Its HTTP status decides (http-grpc-status-mapping.md)."""
    with bare_peer(headers((":status", str(status)), ("content-type", "text/html"))) as peer:
        (error,) = calls(kind, Mesh("orders", mesh_of(tmp_path, [peer.port], retries={"max_retries": 0})), 1)
    assert error.code().value[0] == code_of_http(status)


def test_the_code_of_a_status_that_is_not_in_the_table() -> None:
    """UNKNOWN."""
    assert code_of_http(200) is code_of_http(418) is GrpcCode.UNKNOWN
