"""One table: every policy of a route that both protocols have, through the four ways to call, with one result.

A row is a mesh.yaml route, what the backends do, what is asked and what is seen; it is asked as an HTTP POST and as a
unary gRPC call of the same path, on asyncio and on threads. What a protocol does not have is named in NOT_APPLICABLE.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import grpc
import pytest
from http_backend import HttpBackend, body_of, respond

from meshlib import Mesh
from meshlib.errors import DeadlineExceeded
from meshlib.grpc_code import HTTP_STATUS, code_of_status

from .echo import SERVICE, Echo, fails, hangs, serving
from .test_aio_channel import method

PATH = f"/{SERVICE}/UnaryUnary"
ANYTHING: dict[str, Any] = {"name": "rest"}

NOT_APPLICABLE = {
    "url_rewrite.hostname": "gRPC: the authority is the channel's, not the call's",
    "request_redirect": "gRPC: no client follows one; it is the code UNKNOWN",
    "matches.method": "gRPC: it is always POST",
    "matches.query_params": "gRPC: a method has no query",
    "hash_key.query_param": "gRPC: a method has no query",
    "cors": "a service's routes: it is of gateways, and of browsers",
}


@dataclass
class Row:
    """`fails_with`: statuses that the backends answer first, by name. `served`: who got an attempt, in order where there
    is one at a time; `status`: of the answer. `seen`: header fields that the last backend got, None for none.
    """

    routes: list[dict[str, Any]]
    status: int = 200
    served: str = "a"
    headers: dict[str, str] = field(default_factory=dict)
    fails_with: dict[str, list[int]] = field(default_factory=dict)
    seen: dict[str, str | None] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    answered: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    times: int = 1


V1, V2 = [{"subset": "v1"}], [{"subset": "v2"}]
TO_V1 = {"name": "main", "backends": V1}
TABLE: dict[str, Row] = {
    "the first route that matches": Row(
        [{"name": "one", "matches": [{"path": {"exact": PATH}}], "backends": V2}, ANYTHING], served="b"
    ),
    "path prefix": Row([{"name": "p", "matches": [{"path": {"prefix": f"/{SERVICE}"}}], "backends": V2}], served="b"),
    "path pattern": Row(
        [{"name": "p", "matches": [{"path": {"regular_expression": "/shop.*Unary"}}], "backends": V2}], served="b"
    ),
    "grpc method": Row(
        [{"name": "p", "matches": [{"grpc": {"service": SERVICE, "method": "UnaryUnary"}}], "backends": V2}], served="b"
    ),
    "no route": Row([{"name": "p", "matches": [{"path": {"exact": "/other"}}]}], status=404, served=""),
    "header exact": Row(
        [{"name": "h", "matches": [{"headers": {"x-a": "1"}}], "backends": V2}, TO_V1], served="b", headers={"X-A": "1"}
    ),
    "header absent": Row(
        [{"name": "h", "matches": [{"headers": {"x-a": {"present": False}}}], "backends": V2}, TO_V1], served="b"
    ),
    "header pattern": Row(
        [{"name": "h", "matches": [{"headers": {"x-a": {"regular_expression": "v[0-9]"}}}], "backends": V2}, TO_V1],
        served="b",
        headers={"x-a": "v7"},
    ),
    "source": Row([{"name": "s", "matches": [{"from": ["orders"]}], "backends": V2}, TO_V1], served="b"),
    "another source": Row([{"name": "s", "matches": [{"from": ["web"]}], "backends": V2}, TO_V1], served="a"),
    "predicate": Row([{"name": "s", "matches": [{"predicate": "is_beta"}], "backends": V2}, TO_V1], served="b", headers={"x-beta": "1"}),
    "weights": Row([{"name": "w", "backends": [{"subset": "v1", "weight": 0}, {"subset": "v2", "weight": 3}]}], served="bbbbb", times=5),
    "hash split": Row(
        [{"name": "w", "backends": [*V1, *V2], "hash_key": {"header": "x-user"}}],
        served="bbbbb",
        headers={"x-user": "bob"},
        times=5,
    ),
    "hash key of the call": Row(
        [{"name": "w", "backends": [*V1, *V2]}], served="bbbbb", policy={"hash_key": "kim"}, times=5
    ),
    "request headers": Row(
        [{**TO_V1, "request_headers": {"set": {"x-a": "2"}, "add": {"x-b": "3"}, "remove": ["x-c"]}}],
        headers={"x-a": "1", "x-c": "1"},
        seen={"x-a": "2", "x-b": "3", "x-c": None},
    ),
    "headers of one backend": Row(
        [{"name": "w", "backends": [{"subset": "v2", "request_headers": {"set": {"x-a": "2"}}}]}],
        served="b",
        seen={"x-a": "2"},
    ),
    "response headers": Row([{**TO_V1, "response_headers": {"set": {"x-d": "1"}}}], answered={"x-d": "1"}),
    "direct response": Row([{"name": "d", "direct_response": {"status": 403, "body": "closed"}}], status=403, served=""),
    "fault abort": Row([{**TO_V1, "fault": {"abort": {"http_status": 503}}}], status=503, served=""),
    "fault delay": Row([{**TO_V1, "fault": {"delay": {"fixed_delay": "5s"}}, "timeout": "100ms"}], status=504, served=""),
    "path rewrite": Row(
        [{**TO_V1, "url_rewrite": {"path": {"replace_full_path": f"/{SERVICE}/UnaryUnary"}}, "matches": [{"path": {"prefix": "/shop.v1.Echo"}}]}],
    ),
    "not idempotent": Row([TO_V1], status=503, fails_with={"a": [503]}),
    "retry": Row([{**TO_V1, "idempotent": True}], served="aa", fails_with={"a": [503]}),
    "retry by the call": Row(
        [TO_V1], served="aa", fails_with={"a": [503]}, policy={"idempotent": True, "max_retries": 1}
    ),
    "retries are bounded": Row(
        [{**TO_V1, "idempotent": True, "retries": {"max_retries": 2}}],
        status=503,
        served="aaa",
        fails_with={"a": [503] * 9},
    ),
    "retry_on does not name it": Row([{**TO_V1, "idempotent": True}], status=500, fails_with={"a": [500]}),
    "an injected failure is tried again": Row(
        [{**TO_V1, "retries": {"max_retries": 3}, "fault": {"abort": {"http_status": 503, "percent": "0%"}}}]
    ),
    "timeout": Row([{**TO_V1, "timeout": "200ms"}], status=504, hangs=True),
    "timeout by the call": Row([TO_V1], status=504, hangs=True, policy={"timeout": 0.2}),
    "per_try_timeout": Row(
        [{**TO_V1, "idempotent": True, "timeout": "5s", "retries": {"per_try_timeout": "200ms"}}],
        status=200,
        served="aa",
        hangs=True,
    ),
    "session header": Row(
        [{**TO_V1, "session_persistence": {"header": {"name": "x-session"}}}], answered={"x-session": "*"}
    ),
}  # fmt: skip


class Backends:
    """Two backends, of either protocol: who was asked, with which fields."""

    def __init__(self, row: Row) -> None:
        self.row, self.asked, self.fields = row, [], []  # type: Row, list[str], list[dict[str, str]]
        self.fails = {name: list(statuses) for name, statuses in row.fails_with.items()}
        self.hang_once = row.hangs
        self.released = threading.Event()

    def asked_by(self, name: str, fields: dict[str, str]) -> int:
        """Note it, and give the status to answer; 0: do not answer."""
        self.asked.append(name)
        self.fields.append(fields)
        if self.hang_once:
            self.hang_once = False
            return 0
        left = self.fails.get(name)
        return left.pop(0) if left else 200


def http_backend(name: str, backends: Backends) -> HttpBackend:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        body_of(handler)
        status = backends.asked_by(name, {key.lower(): value for key, value in handler.headers.items()})
        if status:
            respond(handler, status, name.encode())
        else:
            backends.released.wait(10)
            handler.close_connection = True

    return HttpBackend(answer)


class ScriptedEcho(Echo):
    def __init__(self, name: str, backends: Backends) -> None:
        super().__init__(name)
        self.backends = backends

    async def _begin(self, context: Any) -> None:
        status = self.backends.asked_by(self.name, dict(context.invocation_metadata()))
        if not status:
            await hangs(self)(context)
        elif status != 200:
            await fails(CODES[code_of_status(status)])(context)


CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass
class Answer:
    status: int
    fields: dict[str, str]


def document(tmp_path: Path, ports: list[int], row: Row) -> dict[str, Any]:
    static = [{"address": f"127.0.0.1:{port}", "labels": {"v": v}} for port, v in zip(ports, "12", strict=True)]
    echo = {
        "mtls": "disabled",
        "endpoints": [{"static": static}],
        "subsets": {"v1": {"v": "1"}, "v2": {"v": "2"}},
        "routes": row.routes,
    }
    services = {"echo": echo, "orders": {}, "web": {}}
    return {"version": 1, "mesh": "shop", "state_dir": str(tmp_path), "services": services}


def of_grpc(error: grpc.RpcError) -> Answer:
    return Answer(HTTP_STATUS[error.code().value[0]], {})


async def by_client(mesh: Mesh, row: Row) -> Answer:
    try:
        with mesh.policy(**row.policy):
            reply = await mesh.client("echo").post(PATH, headers=row.headers, content=b"x")
    except DeadlineExceeded:
        return Answer(504, {})
    return Answer(reply.status_code, dict(reply.headers))


def by_sync_client(mesh: Mesh, row: Row) -> Answer:
    try:
        with mesh.policy(**row.policy):
            reply = mesh.sync_client("echo").post(PATH, headers=row.headers, content=b"x")
    except DeadlineExceeded:
        return Answer(504, {})
    return Answer(reply.status_code, dict(reply.headers))


async def by_channel(mesh: Mesh, row: Row) -> Answer:
    with mesh.policy(**row.policy):
        call = method(mesh.channel("echo"), "unary_unary")(b"x", metadata=tuple(row.headers.items()))
        try:
            await call
        except grpc.RpcError as error:
            return of_grpc(error)
    return Answer(200, {**dict(await call.initial_metadata()), **fields_of(call._reply)})


def by_sync_channel(mesh: Mesh, row: Row) -> Answer:
    with mesh.policy(**row.policy):
        try:
            future = method(mesh.sync_channel("echo"), "unary_unary").future(b"x", metadata=tuple(row.headers.items()))
            future.result(20)
        except grpc.RpcError as error:
            return of_grpc(error)
    return Answer(200, fields_of(future._reply))


def fields_of(reply: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in reply.headers}


def on_loop(ask: Callable[..., Any]) -> Callable[..., list[Answer]]:
    def run(tmp_path: Path, ports: list[int], row: Row) -> list[Answer]:
        async def main() -> list[Answer]:
            async with Mesh("orders", document(tmp_path, ports, row)) as mesh:
                mesh.predicate("is_beta")(lambda request: request.header("x-beta") == "1")
                return [await ask(mesh, row) for _ in range(row.times)]

        return asyncio.run(main())

    return run


def on_threads(ask: Callable[..., Any]) -> Callable[..., list[Answer]]:
    def run(tmp_path: Path, ports: list[int], row: Row) -> list[Answer]:
        with Mesh("orders", document(tmp_path, ports, row)) as mesh:
            mesh.predicate("is_beta")(lambda request: request.header("x-beta") == "1")
            return [ask(mesh, row) for _ in range(row.times)]

    return run


WAYS: dict[str, tuple[str, Callable[..., list[Answer]]]] = {
    "client": ("http", on_loop(by_client)),
    "sync_client": ("http", on_threads(by_sync_client)),
    "channel": ("grpc", on_loop(by_channel)),
    "sync_channel": ("grpc", on_threads(by_sync_channel)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TABLE)
def test_a_policy_does_the_same_whichever_way_it_is_called(name: str, way: str, tmp_path: Path) -> None:
    """The status, who was asked and how often, what they got, and what is in the answer."""
    row = TABLE[name]
    protocol, run = WAYS[way]
    backends = Backends(row)
    if protocol == "http":
        servers = [http_backend(name, backends) for name in "ab"]
        try:
            answers = run(tmp_path, [server.port for server in servers], row)
        finally:
            backends.released.set()
            for server in servers:
                server.close()
    else:
        with serving(*(ScriptedEcho(name, backends) for name in "ab")) as (_, ports):
            answers = run(tmp_path, ports, row)
    expected = row.status if protocol == "http" else HTTP_STATUS[code_of_status(row.status)]
    assert {answer.status for answer in answers} == {expected}
    assert "".join(backends.asked) == row.served
    for key, value in row.seen.items():
        assert backends.fields[-1].get(key) == value
    for key, value in row.answered.items():
        found = answers[-1].fields.get(key)
        assert found if value == "*" else found == value


def test_the_cells_that_do_not_apply_are_named() -> None:
    """Each with its reason; none of them is a row."""
    assert all(reason for reason in NOT_APPLICABLE.values())
    assert not set(NOT_APPLICABLE) & set(TABLE)
