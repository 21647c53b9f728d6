"""gRFC A6 by grpc-go's own tests: a real server follows a script across the attempts of a call, and a channel of the mesh,
on asyncio and on threads, follows the caller's.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import queue
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

Entry = dict[str, Any]
KINDS = ("aio", "threads")
METHOD = "/vectors.Retries/Ask"
TIME_S = 10.0
"""No call takes longer."""
LARGE = b"x" * (1 << 20)
"""`largePayload`: more than anybody keeps for another attempt."""
POLICY = {
    "maxAttempts": 4,
    "initialBackoff": ".01s",
    "maxBackoff": ".01s",
    "backoffMultiplier": 1,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
"""Of the streaming scripts, by their legend."""

_STEP = re.compile(r"(\w+)(?:\((.*)\))?").fullmatch


def op_of(text: str) -> tuple[str, str]:
    """`sReq(1)` is ("sReq", "1")."""
    match = _STEP(text)
    if match is None:
        raise ValueError(f"{text!r} is no step")
    return match[1], (match[2] or "").strip('"')


def code_named(name: str) -> str:
    """`FailedPrecondition` as gRPC writes it, FAILED_PRECONDITION."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def payload(op: str, argument: str) -> bytes:
    """The message that a step sends or expects."""
    return LARGE if op.endswith("Payload") else argument.encode()


class Script:
    """A server whose attempts take the steps in turn. `wrong`: what came otherwise than a step expected."""

    def __init__(self) -> None:
        import grpc

        self.begin([])
        self.answer: Callable[[Any, Any], Iterator[bytes]] = self._attempt
        handler = grpc.stream_stream_rpc_method_handler(lambda requests, context: self.answer(requests, context))
        service, method = METHOD.strip("/").split("/")
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def begin(self, steps: list[str]) -> None:
        """A new script."""
        self.steps, self.wrong = collections.deque(map(op_of, steps)), list[str]()

    def _expect(self, what: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            self.wrong.append(f"{what}: {found!r:.80} instead of {wanted!r:.80}")

    def _attempt(self, requests: Any, context: Any) -> Iterator[bytes]:
        import grpc

        pushed: list[tuple[str, str]] = []
        while self.steps:
            op, argument = self.steps.popleft()
            if op in ("sReq", "sReqPayload"):
                self._expect(op, next(requests, None), payload(op, argument))
            elif op == "sAttempts":
                said = dict(context.invocation_metadata()).get("grpc-previous-rpc-attempts")
                self._expect(op, said, argument)
            elif op == "sHdr":
                context.send_initial_metadata(())
            elif op == "sRes":
                yield argument.encode()
            elif op == "sPushback":
                pushed.append(("grpc-retry-pushback-ms", argument))
            elif op == "sCloseSend":
                self._expect(op, next(requests, None), None)
            elif op == "sErr":
                context.set_trailing_metadata(tuple(pushed))
                context.set_code(grpc.StatusCode[code_named(argument)])
                return
            else:
                raise ValueError(f"{op!r} is no step of a server")


@functools.cache
def script() -> Script:
    return Script()


def mesh_by(policy: Entry, port: int, **config: Any) -> Any:
    """A mesh whose service `peer` has this retry policy, for calls that may be repeated."""
    from meshlib import Mesh
    from meshlib.interop.grpc_service_config import parse_service_config

    service_config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}], **config}
    service = parse_service_config(service_config).service()
    for route in service["routes"]:
        route["idempotent"] = True
    document = {
        "version": 1,
        "mesh": "vectors",
        "state_dir": tempfile.mkdtemp(),
        "defaults": {"mtls": "disabled"},
        "services": {"peer": {**service, "endpoints": [{"static": [f"127.0.0.1:{port}"]}]}},
    }
    return Mesh("caller", document)


def retry_sequences(entry: Entry) -> bool:
    """Calls in turn: with which code each ends, and how many requests the server has seen by then."""
    return all(_sequence(kind, entry) for kind in KINDS)


def _sequence(kind: str, entry: Entry) -> bool:
    import grpc

    results = dict(entry["server_results"])
    default, seen = results.pop("default"), 0
    by_index = {index: name for name, indices in results.items() for index in indices}

    def answer(requests: Any, context: Any) -> Iterator[bytes]:
        nonlocal seen
        code, seen = by_index.get(seen, default), seen + 1
        next(requests)
        if code == "OK":
            yield b""
        else:
            context.set_code(grpc.StatusCode[code])

    server = script()
    throttling = {"retryThrottling": entry["throttling"]} if "throttling" in entry else {}
    mesh = mesh_by(entry["policy"], server.port, **throttling)
    found: list[Entry] = []

    def note(code: str) -> None:
        found.append({"status": code, "server_call_index_after": seen - 1})

    async def aio() -> None:
        async with mesh:
            for _ in entry["calls"]:
                call = mesh.channel("peer").unary_unary(METHOD)(b"x", timeout=TIME_S)
                note((await call.code()).name)

    server.answer = answer
    try:
        if kind == "aio":
            asyncio.run(aio())
        else:
            with mesh:
                for _ in entry["calls"]:
                    note(_code_of(lambda: mesh.sync_channel("peer").unary_unary(METHOD)(b"x", timeout=TIME_S)))
    finally:
        server.answer = server._attempt
    keys = ("status", "server_call_index_after")
    return found == [{key: call[key] for key in keys} for call in entry["calls"]]


def _code_of(call: Callable[[], Any]) -> str:
    """With which code a blocking call ends."""
    import grpc

    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def streaming_script(entry: Entry) -> bool:
    """A stream whose attempts and whose caller do as the script says; nothing of it may be left over."""
    for kind in KINDS:
        server = script()
        server.begin(entry["server"])
        mesh = mesh_by(POLICY, server.port)
        steps = [op_of(step) for step in entry["client"]]
        wrong = asyncio.run(_follow_aio(mesh, steps)) if kind == "aio" else _follow(mesh, steps)
        if wrong or server.wrong or server.steps:
            return False
    return True


class Clock:
    """The steps about time."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def step(self, op: str) -> list[str]:
        """What is wrong with it."""
        elapsed_s = time.monotonic() - self.began
        if op == "cGetTime":
            self.began = time.monotonic()
        return [f"only {elapsed_s} s"] if op == "cCheckElapsed" and elapsed_s < 1.0 else []


async def _follow_aio(mesh: Any, steps: list[tuple[str, str]]) -> list[str]:
    from grpc import aio

    wrong, clock = list[str](), Clock()
    async with mesh:
        call = mesh.channel("peer").stream_stream(METHOD)(timeout=TIME_S)
        for op, argument in steps:
            try:
                if op in ("cReq", "cReqPayload"):
                    await call.write(payload(op, argument))
                elif op == "cCloseSend":
                    await call.done_writing()
                elif op == "cHdr":
                    await call.initial_metadata()
                elif op == "cCtx":
                    call.time_remaining()
                elif op == "cRes":
                    wrong += [op] if await call.read() != argument.encode() else []
                elif op == "cErr":
                    rest = await call.read()
                    wrong += [f"{rest!r} more"] if rest is not aio.EOF else []
            except aio.AioRpcError:
                wrong += [op] if op != "cErr" else []
            if op == "cErr" and (code := (await call.code()).name) != code_named(argument):
                wrong.append(code)
            wrong += clock.step(op)
        call.cancel()
    return wrong


def _follow(mesh: Any, steps: list[tuple[str, str]]) -> list[str]:
    import grpc

    wrong, clock = list[str](), Clock()
    sent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with mesh:
        call = mesh.sync_channel("peer").stream_stream(METHOD)(iter(sent.get, None), timeout=TIME_S)
        for op, argument in steps:
            try:
                if op in ("cReq", "cReqPayload"):
                    sent.put(payload(op, argument))
                elif op == "cCloseSend":
                    sent.put(None)
                elif op == "cHdr":
                    call.initial_metadata()
                elif op == "cCtx":
                    call.time_remaining()
                elif op == "cRes":
                    wrong += [op] if next(call, None) != argument.encode() else []
                elif op == "cErr":
                    rest = next(call, None)
                    wrong += [f"{rest!r} more"] if rest is not None else []
            except grpc.RpcError:
                wrong += [op] if op != "cErr" else []
            if op == "cErr" and (code := call.code().name) != code_named(argument):
                wrong.append(code)
            wrong += clock.step(op)
        sent.put(None)
    return wrong


def backoff(entry: Entry) -> bool:
    """The waits of a service config's retry policy; those between connections are what the channel is told."""
    if "params" in entry:
        return _between_connections(entry["params"])
    return all(_waits(case) for case in entry["cases"])


def _waits(case: Entry) -> bool:
    from meshlib.compilation import _retry
    from meshlib.config import config_of
    from meshlib.config.effective import effective
    from meshlib.interop.grpc_service_config import parse_service_config

    said = {"initialBackoff": f"{case['initial_s']}s", "maxBackoff": f"{case['max_s']}s"}
    policy = {**POLICY, **said, "backoffMultiplier": case["multiplier"]}
    service = parse_service_config({"methodConfig": [{"name": [{}], "retryPolicy": policy}]}).service()
    config = config_of({"version": 1, "mesh": "vectors", "services": {"peer": service}})
    retries, rng = _retry(effective(config, "peer.default", 0)), random.Random(1)
    waits = [retries.wait_s(case["retry"], rng) for _ in range(1000)]
    low, high = case["min_s"], case["max_s_jittered"]
    edge = 0.05 * (high - low)
    return low <= min(waits) < low + edge and high - edge < max(waits) <= high


def _between_connections(params: Entry) -> bool:
    from meshlib.transport.grpc.connections import _options

    told = dict(_options(None, 1))
    names = {"initial_s": "initial", "min_connect_timeout_s": "min", "max_s": "max"}
    return all(
        told.get(f"grpc.{word}_reconnect_backoff_ms") in (None, 1000 * params[key]) for key, word in names.items()
    )


CHECKS: dict[str, Callable[[Entry], bool | None]] = {
    "grpc_vectors.backoff": backoff,
    "grpc_vectors.retry_sequences": retry_sequences,
    "grpc_vectors.retry_streaming_scripts": streaming_script,
}
"""Every name of this part."""
