"""Decorated handlers and the guard of `mesh.handler`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pydantic
import pytest
from fastapi import FastAPI
from serving_host import ORDERS, FakeHost
from starlette.requests import Request
from starlette.responses import Response

from meshlib.call import FOREVER
from meshlib.errors import DeadlineExceeded, NoHealthyEndpoint, PermissionDenied, Rejected
from meshlib.served import SERVED, Served, current
from meshlib.transport.asgi import MeshAsgi, Message
from meshlib.transport.handler_guard import HandlerPolicy, handler_guard
from meshlib.transport.handlers import Handlers
from meshlib.transport.headers import PEER


class Order(pydantic.BaseModel):
    item: str
    count: int = 1


def asked(
    app: Any, method: str, target: str, body: bytes = b"", peer: Any = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """One request through the mesh; the body is decoded where it is JSON."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()], "state": {PEER: peer},
        "http_version": "1.1", "root_path": "",
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    fields = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    content = b"".join(message["body"] for message in sent[1:])
    return sent[0]["status"], fields, json.loads(content) if "json" in fields.get("content-type", "") else content


def serving(host: FakeHost | None = None) -> tuple[Handlers, MeshAsgi]:
    made = host or FakeHost()
    handlers = Handlers(made)
    return handlers, MeshAsgi(handlers, made)


def test_parameters_come_from_path_query_body_and_request() -> None:
    """Each parameter is filled by its name and annotation, sync and async alike, in the request's context."""
    handlers, app = serving()

    @handlers.route("/items/{item}", ["POST"])
    async def create(item: str, order: Order, request: Request, dry: bool = False, count: int = 3) -> Any:
        assert current() is not None
        return {"item": item, "order": order, "dry": dry, "count": count, "method": request.method}

    @handlers.route("/n/{n}", ["GET"])
    def number(n: int, q: str, more: str | None = None) -> Any:
        assert current() is not None
        return [n, q, more]

    body = b'{"item": "pen"}'
    assert asked(app, "POST", "/items/a%20b?dry=true", body)[2] == {
        "item": "a%20b", "order": {"item": "pen", "count": 1}, "dry": True, "count": 3, "method": "POST",
    }  # fmt: skip
    assert asked(app, "GET", "/n/7?q=x")[2] == [7, "x", None]


def test_the_single_bare_parameter_of_a_post_is_the_body() -> None:
    """`def create(order)` takes the JSON document, whatever it is; on GET it is a query parameter."""
    handlers, app = serving()

    @handlers.route("/a", ["POST"])
    def create(order):  # type: ignore[no-untyped-def]
        return {"got": order}

    @handlers.route("/a", ["GET"])
    def read(order="none"):  # type: ignore[no-untyped-def]
        return order

    assert asked(app, "POST", "/a", b"[1, 2]")[2] == {"got": [1, 2]}
    assert (asked(app, "GET", "/a?order=x")[2], asked(app, "GET", "/a")[2]) == (b"x", b"none")


def test_bad_input_names_every_parameter() -> None:
    """422 with each parameter that does not fit, where it was looked for, and why."""
    handlers, app = serving()

    @handlers.route("/items/{n}", ["PUT"])
    async def put(n: int, order: Order, q: str, limit: int = 1) -> None: ...

    status, headers, problem = asked(app, "PUT", "/items/x?limit=many", b'{"count": "y"}')
    assert (status, headers["content-type"], problem["error"]) == (422, "application/problem+json", "invalid")
    assert "x-meshlib-refused" not in headers
    assert [(p["name"], p["in"]) for p in problem["parameters"]] == [
        ("n", "path"), ("order", "body"), ("q", "query"), ("limit", "query"),
    ]  # fmt: skip
    assert "item: Field required (and 1 more)" in problem["message"]
    assert asked(app, "PUT", "/items/1?q=a", b"{")[0] == 422
    assert asked(app, "PUT", "/items/1?q=a")[2]["message"] == "body parameter 'order': is required"


def test_results_become_responses() -> None:
    """Each kind of result has its one meaning."""
    handlers, app = serving()
    results: dict[str, Any] = {
        "/dict": {"a": 1}, "/text": "hi", "/bytes": b"\x00", "/none": None, "/status": ({"a": 1}, 201),
        "/response": Response("x", 418), "/model": Order(item="pen"), "/models": [Order(item="pen")],
        "/empty": (None, 202),
    }  # fmt: skip
    for path, result in results.items():
        handlers.route(path, ["GET"])(returning(result))
    found = {path: asked(app, "GET", path) for path in results}
    assert {path: answer[0] for path, answer in found.items()} == {
        "/dict": 200, "/text": 200, "/bytes": 200, "/none": 204, "/status": 201, "/response": 418, "/model": 200,
        "/models": 200, "/empty": 202,
    }  # fmt: skip
    assert found["/text"][1]["content-type"].startswith("text/plain")
    assert found["/bytes"][1]["content-type"] == "application/octet-stream"
    assert (found["/none"][2], found["/status"][2]) == (b"", {"a": 1})
    assert (found["/model"][2], found["/models"][2]) == ({"item": "pen", "count": 1}, [{"item": "pen", "count": 1}])


def returning(result: Any) -> Any:
    def handler() -> Any:
        return result

    return handler


def test_errors_of_the_mesh_become_problems() -> None:
    """A MeshError that escapes a handler is answered; a call of its own that failed is not marked as refused."""
    handlers, app = serving()

    @handlers.route("/denied", ["GET"])
    async def denied() -> None:
        raise PermissionDenied("no", rule="r")

    @handlers.route("/inner", ["GET"])
    def inner() -> None:
        error = NoHealthyEndpoint("stock", {})
        from meshlib.call import Trail

        error.trail = Trail("stock")
        raise error

    status, headers, problem = asked(app, "GET", "/denied")
    assert (status, headers["x-meshlib-refused"], problem["rule"]) == (403, "denied", "r")
    status, headers, problem = asked(app, "GET", "/inner")
    assert (status, "x-meshlib-refused" in headers, problem["error"]) == (503, False, "no_endpoint")


def test_signatures_that_cannot_be_filled_are_refused_at_once() -> None:
    """The mistake is told where it is written, not when it is called."""
    handlers, _ = serving()

    def stars(*items: str) -> None: ...
    def two(a: dict[str, Any], b: Order) -> None: ...

    with pytest.raises(TypeError, match=r"\*items.* cannot be filled by name"):
        handlers.route("/", ["GET"])(stars)
    with pytest.raises(TypeError, match="one body, and a and b"):
        handlers.route("/", ["POST"])(two)


def test_policies_are_checked_by_name() -> None:
    """What is not enforced, not known or out of range is refused with its name."""
    with pytest.raises(ValueError, match="rate_limit is not enforced by this release"):
        HandlerPolicy.of(rate_limit="1/s")
    with pytest.raises(TypeError, match="'retries' is not a handler policy"):
        HandlerPolicy.of(retries=3)
    with pytest.raises(ValueError, match="timeout must be a positive"):
        HandlerPolicy.of(timeout=0)
    with pytest.raises(ValueError, match="max_concurrency must be 1"):
        HandlerPolicy.of(max_concurrency=0)
    with pytest.raises(TypeError, match="list of service names"):
        HandlerPolicy.of(allow="cart")
    assert HandlerPolicy.of(allow=["cart", "web.edge"]).allow == ("cart.default", "web.edge")


def test_registered_handlers_know_whether_they_are_idempotent() -> None:
    """Declared, or by RFC 9110's methods."""
    handlers, _ = serving()
    handlers.route("/a", ["GET"])(returning(1))
    handlers.route("/a", ["POST"])(returning(1))
    handlers.route("/b", ["post"], idempotent=True)(returning(1))
    handlers.route("/c", ["PUT"], idempotent=False)(returning(1))
    assert [handler.idempotent for handler in handlers.registered] == [True, False, True, False]


# The guard


def guarded(policy: HandlerPolicy, function: Any, served: Served | None, host: FakeHost | None = None) -> Any:
    token = SERVED.set(served)
    try:
        result = handler_guard(host or FakeHost(), policy)(function)()
        return asyncio.run(result) if asyncio.iscoroutine(result) else result
    finally:
        SERVED.reset(token)


async def fine() -> str:
    return "fine"


def test_a_guard_refuses_to_run_where_nothing_enforces_it() -> None:
    """Outside a meshed call a guarded function raises instead of running unprotected, sync and async."""
    for function in (fine, returning("fine")):
        with pytest.raises(RuntimeError, match="outside a meshed call"):
            guarded(HandlerPolicy(), function, None)


def test_allow_narrows_to_named_services() -> None:
    """Only the named services pass; without an identity nobody does."""
    policy = HandlerPolicy.of(allow=["orders"])
    clock = FakeHost().now
    assert guarded(policy, fine, Served(clock, peer=ORDERS)) == "fine"
    for served in (Served(clock, peer=None), Served(clock, peer=type(ORDERS).for_service("shop.example", "cart"))):
        with pytest.raises(PermissionDenied, match="may not call"):
            guarded(policy, fine, served)


def test_a_timeout_cancels_async_work_and_bounds_its_calls() -> None:
    """An async handler ends in DeadlineExceeded; its own calls inherit the shorter deadline; its own errors pass."""
    clock = FakeHost().now
    seen: list[float] = []

    async def slow() -> None:
        served = current()
        assert served is not None
        seen.append(served.remaining_s)
        await asyncio.Event().wait()

    async def own() -> None:
        raise TimeoutError("mine")

    with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.02 s") as caught:
        guarded(HandlerPolicy(timeout=0.02), slow, Served(clock))
    assert caught.value.sent
    assert seen[0] <= 0.02
    with pytest.raises(TimeoutError, match="mine"):
        guarded(HandlerPolicy(timeout=5), own, Served(clock))


def test_expired_work_is_not_begun() -> None:
    """Sync or async, past the caller's deadline nothing begins."""
    served = Served(lambda: 10.0, deadline=10.0)
    with pytest.raises(Rejected, match="had passed before"):
        guarded(HandlerPolicy(), returning(1), served)
    assert Served(lambda: 0.0).deadline == FOREVER


def test_concurrency_is_per_handler() -> None:
    """One more than the bound is shed; the place is given back when the handler ends or fails."""
    served = Served(FakeHost().now)
    guard = handler_guard(FakeHost(), HandlerPolicy(max_concurrency=1))
    inside: list[Any] = []

    @guard
    def nested() -> str:
        if not inside:
            inside.append(1)
            nested()
        return "fine"

    token = SERVED.set(served)
    try:
        with pytest.raises(Rejected, match="at once already"):
            nested()
        assert nested() == "fine"
    finally:
        SERVED.reset(token)


def test_a_guard_keeps_an_object_that_is_async() -> None:
    """An object with an async `__call__` is guarded while it runs, not only while its coroutine is made."""

    class Slow:
        async def __call__(self) -> None:
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded):
        guarded(HandlerPolicy(timeout=0.02), Slow(), Served(FakeHost().now))


def test_a_generator_cannot_be_guarded() -> None:
    """Its body would run after the guard has gone: TypeError where it is written."""

    def sync() -> Any:
        yield 1

    async def asynchronous() -> Any:
        yield 1

    for function in (sync, asynchronous):
        with pytest.raises(TypeError, match="is a generator"):
            handler_guard(FakeHost(), HandlerPolicy())(function)


def test_a_guard_inside_a_framework_still_answers_as_the_mesh() -> None:
    """FastAPI makes 500 of an error it does not know; the caller gets the refusal all the same."""
    host = FakeHost()
    web = FastAPI()

    @web.get("/admin")
    @handler_guard(host, HandlerPolicy.of(allow=["cart"]))
    async def admin(q: int = 1) -> int:
        return q

    @web.get("/sync")
    @handler_guard(host, HandlerPolicy.of(allow=["cart"]))
    def sync() -> int:
        return 1

    app = MeshAsgi(web, host)
    for path in ("/admin", "/sync"):
        status, headers, problem = asked(app, "GET", path, peer=ORDERS)
        assert (status, headers["x-meshlib-refused"], problem["error"]) == (403, "denied", "denied")
    assert asked(app, "GET", "/admin?q=2", peer=type(ORDERS).for_service("shop.example", "cart"))[2] == 2
