"""What gRPC's core decides on the wire, seen from both ends: a bare HTTP/2 client calls servers of the mesh, and channels
of the mesh call a bare HTTP/2 server. Every check runs on asyncio and on threads.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
Pairs = list[tuple[str, str]]
KINDS = ("aio", "threads")
METHOD = "/vectors.Wire/Ask"
TIME_S = 10.0
"""No call takes longer."""
NO_DEADLINE_S = 1e9
"""From here on (31 years) a deadline is shown as none: grpc on threads tells them apart no longer."""


@functools.cache
def bare() -> Any:
    """The module of bare peers, by its place."""
    path = Path(__file__).resolve().parents[1] / "transport_grpc" / "bare_peer.py"
    spec = importlib.util.spec_from_file_location("vectors_bare_peer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mesh_of(name: str, port: int = 1, **service: Any) -> Any:
    """A mesh in plain text whose service `peer` is at this port."""
    from meshlib import Mesh

    peer = {"endpoints": [{"static": [f"127.0.0.1:{port}"]}], "retries": {"max_retries": 0}, **service}
    document = {
        "version": 1,
        "mesh": "vectors",
        "state_dir": tempfile.mkdtemp(),
        "defaults": {"mtls": "disabled", "limits": {"max_timeout": "9999h"}},
        "services": {"peer": peer},
    }
    return Mesh(name, document)


class Served:
    """A server of one kind. `handlers`: by method; `seen`: what each call that was let through showed its handler;
    `answer`: what the handler does with its context. Lives as long as the process.
    """

    def __init__(self, kind: str) -> None:
        import grpc

        self.seen: list[Entry] = []
        self.answer: Callable[[Any], None] = lambda _context: None
        handler = grpc.unary_unary_rpc_method_handler(self._ask if kind == "aio" else self._ask_blocking)
        self.handlers = {METHOD: handler}
        self._handler = handler
        mesh = mesh_of("target")
        server = mesh.grpc_server() if kind == "aio" else mesh.sync_grpc_server()
        server.add_generic_rpc_handlers((self._generic(grpc),))
        if kind == "aio":
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, daemon=True).start()
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(TIME_S)
        else:
            server.start()
        self.server = server
        self.port = int(server.address.rpartition(":")[2])

    def _generic(self, grpc: Any) -> Any:
        served = self

        class Generic(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, handler_call_details: Any) -> Any:
                return served.handlers.get(handler_call_details.method)

        return Generic()

    async def _ask(self, request: bytes, context: Any) -> bytes:
        return self._ask_blocking(request, context)

    def _ask_blocking(self, request: bytes, context: Any) -> bytes:
        from meshlib import current

        served = current()
        self.seen.append(
            {
                "metadata": list(context.invocation_metadata()),
                "remaining_s": None if served is None else served.remaining_s,
            }
        )
        self.answer(context)
        return request

    def serve(self, service: str, method: str) -> None:
        """A method more, as generated code would register it."""
        self.handlers[f"/{service}/{method}"] = self._handler

    def call(self, *more: tuple[str, str], **instead: str) -> tuple[Pairs, int | None]:
        """What a bare client that sends these fields is told."""
        fields = {":method": "POST", ":scheme": "http", ":path": METHOD, ":authority": "x"}
        fields |= {"te": "trailers", "content-type": "application/grpc"}
        fields |= {name if name in fields else f":{name}": value for name, value in instead.items()}
        self.seen.clear()
        return bare().bare_call(self.port, *fields.items(), *more)  # type: ignore[no-any-return]


@functools.cache
def served(kind: str) -> Served:
    return Served(kind)


def code_of(pairs: Pairs) -> str | None:
    """The grpc-status of an answer."""
    return dict(pairs).get("grpc-status")


class Caller:
    """A bare server, and a channel of the mesh to it of one kind. `peer.fields`: what it was sent."""

    def __init__(self, kind: str, **service: Any) -> None:
        self.kind = kind
        self.peer = bare().BarePeer(bare().headers((":status", "200"), ("grpc-status", "0")))
        self.mesh = mesh_of("caller", self.peer.port, timeout="9999h", **service)

    def call(self, *answer: tuple[str, str], first: Callable[[int], bytes] | None = None, **options: Any) -> Any:
        """The error of a call that is answered with these trailers alone, but for its first stream."""
        import grpc

        fields = ((":status", "200"), ("content-type", "application/grpc"), *answer)
        firsts = iter([first] if first is not None else [])
        self.peer.answer = lambda stream: next(firsts, bare().headers(*fields))(stream)
        try:
            if self.kind == "aio":
                asyncio.run(self._call(options))
            else:
                self.mesh.sync_channel("peer").unary_unary(METHOD)(b"x", **options)
        except grpc.RpcError as error:
            return error
        return None

    async def _call(self, options: Entry) -> None:
        await self.mesh.channel("peer").unary_unary(METHOD)(b"x", **options)


@functools.cache
def caller(kind: str) -> Caller:
    return Caller(kind)


def retryable(entry: Entry) -> bool:
    """Every clause of what is tried again where nobody said so."""
    return all(retryable_clauses(entry).values())


def retryable_clauses(entry: Entry) -> dict[str, bool]:
    """The clauses by name; tests/conformance/test_grpc_clauses.py says which hold."""
    from meshlib.grpc_code import GrpcCode, code_of_http
    from meshlib.transport.grpc.errors import _LEAVES

    refused, lost = bare().rst_stream(7), bare().goaway(seen=False)
    unavailable = bare().headers(
        (":status", "200"), ("content-type", "application/grpc"), ("grpc-status", str(GrpcCode.UNAVAILABLE.value))
    )
    made = {code.name for _, code in _LEAVES.values()} | {code_of_http(status).name for status in range(100, 600)}
    return {
        "refused": _streams(refused, max_retries=1) == [2, 2],
        "goaway": _streams(lost, max_retries=1) == [2, 2],
        "not counted in maxAttempts": _streams(refused, max_retries=0) == [2, 2],
        "processed": _streams(unavailable, max_retries=1) == [1, 1],
        "never generated": not made & set(entry["never_generated_by_library"]),
    }


def _streams(first: Callable[[int], bytes], **retries: int) -> list[int]:
    """On each kind, how many streams a call makes whose first one is answered so and every other is not served."""
    found = []
    for kind in KINDS:
        by = Caller(kind, retries=retries)
        by.call(("grpc-status", "12"), first=first)
        found.append(by.peer.streams)
        by.peer.close()
    return found


def timeout_decode(entry: Entry) -> bool:
    """How much time the handler is told it has; a call whose word is none is refused before it is reached."""
    return all(_timeout_decode(served(kind), entry) for kind in KINDS)


def _timeout_decode(server: Served, entry: Entry) -> bool:
    answer, reset = server.call(("grpc-timeout", entry["header"]))
    left_s = server.seen[0]["remaining_s"] if server.seen else None
    if not entry["valid"]:
        return code_of(answer) == "13" and left_s is None
    wanted_s = entry["nanos"] / 1e9
    if wanted_s < 0.1 and (code_of(answer) == "4" or reset is not None):
        return True  # over before its handler was asked, or before it had answered
    if left_s is None:
        return False
    if wanted_s >= NO_DEADLINE_S:
        return bool(left_s == float("inf"))
    return bool(wanted_s - 5.0 <= left_s <= wanted_s * 1.001 + 0.01)


def timeout_encode(entry: Entry) -> bool:
    """What a channel of the mesh sends for a timeout."""
    sent = [_sent(caller(kind), "grpc-timeout", timeout=entry["nanos"] / 1e9) for kind in KINDS]
    return sent == [[entry["header"]]] * len(KINDS)


def _sent(by: Caller, name: str, **options: Any) -> list[str]:
    by.call(("grpc-status", "0"), **options)
    return [value for key, value in by.peer.fields if key == name]


def message_encode(entry: Entry) -> bool:
    """The details that a handler sets, as they are sent."""
    import grpc

    def answer(context: Any) -> None:
        context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
        context.set_details(entry["in"])

    for kind in KINDS:
        server = served(kind)
        server.answer = answer
        try:
            told, _ = server.call()
        finally:
            server.answer = lambda _context: None
        if code_of(told) != "3" or dict(told).get("grpc-message", "") != entry["out"]:
            return False
    return True


def message_decode(entry: Entry) -> bool:
    """The details that a caller is given."""
    found = [caller(kind).call(("grpc-status", "3"), ("grpc-message", entry["in"])) for kind in KINDS]
    return all(error is not None and error.details() == entry["out"] for error in found)


def metadata_encode(entry: Entry) -> bool:
    """A pair that a caller gives, as it is sent."""
    value = entry["in"].encode() if entry["key"].endswith("-bin") else entry["in"]
    sent = [_sent(caller(kind), entry["key"].lower(), metadata=((entry["key"], value),)) for kind in KINDS]
    return sent == [[entry["out"]]] * len(KINDS)


def metadata_decode(entry: Entry) -> bool:
    """A pair that was sent, as the handler is shown it."""
    wanted = entry["out"].encode() if entry["key"].endswith("-bin") else entry["out"]
    for kind in KINDS:
        answer, _ = served(kind).call((entry["key"], entry["in"]))
        shown = [value for call in served(kind).seen for key, value in call["metadata"] if key == entry["key"]]
        if code_of(answer) != "0" or shown != [wanted]:
            return False
    return True


def method_name(entry: Entry) -> bool:
    """A path that names a service and a method reaches it; no other one reaches any, however it could be misread."""
    path = entry["in"]
    names = [("", ""), ("", path.strip("/")), (path.strip("/"), ""), (path, ""), ("", path)]
    if entry["valid"]:
        names = [(entry.get("service") or "", entry.get("method") or "")]
    for kind in KINDS:
        server = served(kind)
        for name in names:
            server.serve(*name)
        answer, _ = server.call(path=path)
        if (code_of(answer) == "0" and bool(server.seen)) is not entry["valid"]:
            return False
    return True


def content_type(entry: Entry) -> bool:
    """Is a request of this content-type served?"""
    for kind in KINDS:
        answer, _ = served(kind).call(**{"content-type": entry["in"]})
        if (code_of(answer) == "0") is not entry["is_grpc"]:
            return False
    return True


CHECKS: dict[str, Callable[[Entry], bool | None]] = {
    "grpc_vectors.grpc_timeout_decode": timeout_decode,
    "grpc_vectors.grpc_timeout_encode": timeout_encode,
    "grpc_vectors.grpc_message_encode": message_encode,
    "grpc_vectors.grpc_message_decode": message_decode,
    "grpc_vectors.metadata_encode": metadata_encode,
    "grpc_vectors.metadata_decode": metadata_decode,
    "grpc_vectors.method_name": method_name,
    "grpc_vectors.content_type": content_type,
    "grpc_vectors.retryable_by_default": retryable,
}
"""Every name of this part."""
