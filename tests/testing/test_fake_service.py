"""Scripts: what a fake service answers, in order, and what it remembers."""

from __future__ import annotations

import asyncio

import httpx
import pytest

import meshlib
from meshlib import current
from meshlib.testing import FakeMesh, FakeRequest, Script, fake_service

from .policies import SHOP, one_service, two_endpoints


def test_the_last_step_answers_all_that_follows():
    """Each earlier step answers as often as it said."""
    script = Script().reply(500, times=2).then.fail("reset").then.reply(201)
    seen = [script.take() for _ in range(5)]
    assert [step.failure or step.answer.status for step in seen if step] == [500, 500, "reset", 201, 201]


def test_without_then_a_new_script_begins():
    """`reply` after `reply` replaces."""
    script = Script().fail("reset").then.reply(200)
    script.reply(204)
    assert [script.take().answer.status for _ in range(2)] == [204, 204]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (lambda s: s.then, "nothing before it"),
        (lambda s: s.fail("broken"), "fails by refused, reset, closed, timeout"),
        (lambda s: s.reply(times=0), "times must be 1 or more"),
        (lambda s: s.reply(199), "status must be from 200 to 599"),
        (lambda s: s.reply(600), "status must be from 200 to 599"),
        (lambda s: s.delay(-1), "delay must be a number of seconds from 0"),
        (lambda s: s.delay(float("nan")), "delay must be a number of seconds from 0"),
    ],
)
def test_what_cannot_be_scripted_is_refused_with_a_sentence(say, words: str):
    """ValueError, at the line of the test that says it."""
    with pytest.raises(ValueError, match=words):
        say(Script())


def test_a_request_is_recorded_as_it_arrived():
    """Method, path, query, headers of application and mesh, body, attempt, endpoint."""
    mesh = FakeMesh(one_service(), "orders")
    inventory = mesh.service("inventory").reply(503).then.reply(201)
    mesh.sync_client("inventory").put("/items/7?n=2", json={"a": 1}, headers={"x-user": "ada"})
    first, second = inventory.requests
    assert (first.method, first.path, first.query, first.endpoint) == ("PUT", "/items/7", "n=2", "127.0.0.1:1")
    assert (first.headers["X-User"], first.headers["host"], first.json()) == ("ada", "inventory", {"a": 1})
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.headers["x-meshlib-attempt"] == "2"
    assert first.headers["traceparent"][3:35] == second.headers["traceparent"][3:35]
    assert 0 < int(first.headers["x-meshlib-deadline-ms"]) <= 10_000


def test_a_service_without_a_script_says_who_it_is():
    """So that a canary can be counted without scripting anything."""
    mesh = FakeMesh(SHOP)
    answer = mesh.sync_client("inventory").get("/", headers={"x-beta": "1"}).json()
    assert answer == {"service": "inventory", "endpoint": "127.0.0.1:2"}


@pytest.mark.parametrize(
    ("result", "status", "content", "kind"),
    [
        ({"a": 1}, 200, b'{"a": 1}', "application/json"),
        (["a"], 200, b'["a"]', "application/json"),
        ("text", 200, b"text", "text/plain; charset=utf-8"),
        (b"\x00", 200, b"\x00", "application/octet-stream"),
        (None, 204, b"", None),
        (({"error": "gone"}, 410), 410, b'{"error": "gone"}', "application/json"),
    ],
)
def test_a_handlers_result_means_what_it_means_in_a_server(result, status: int, content: bytes, kind: str | None):
    """The conventions are those of decorated handlers."""
    mesh = FakeMesh(one_service())
    mesh.service("inventory").handler(lambda request: result)
    reply = mesh.sync_client("inventory").get("/")
    assert (reply.status_code, reply.content, reply.headers.get("content-type")) == (status, content, kind)


def test_a_handler_sees_the_request_and_may_be_async():
    """An async handler is awaited on asyncio; the sync client drives a plain one."""
    mesh = FakeMesh(one_service())

    async def handler(request: FakeRequest) -> dict[str, str]:
        await asyncio.sleep(0)
        return {"asked": request.path}

    mesh.service("inventory").handler(handler)

    async def main() -> None:
        assert (await mesh.client("inventory").get("/items/7")).json() == {"asked": "/items/7"}

    asyncio.run(main())


def test_a_handler_inherits_deadline_attempt_and_trace():
    """`meshlib.current()` is there, as in a server, so that calls below it have less time, and the same trace."""
    services = {"orders": {}, "inventory": {"timeout": "5s"}}
    mesh = FakeMesh({"version": 1, "mesh": "shop", "services": services})
    mesh.service("inventory").reply(json={"stock": 7})
    seen = []

    def orders(request: FakeRequest) -> object:
        seen.append((current().attempt, current().remaining_s, current().trace_id))  # type: ignore[union-attr]
        return mesh.sync_client("inventory").get("/items/7").json()

    mesh.service("orders").handler(orders)
    assert mesh.sync_client("orders").get("/", timeout=2).json() == {"stock": 7}
    inner = mesh.service("inventory").requests[0]
    assert int(inner.headers["x-meshlib-deadline-ms"]) <= 2000
    (attempt, remaining_s, trace_id) = seen[0]
    assert attempt == 1
    assert 0 < remaining_s <= 2
    assert inner.headers["traceparent"][3:35] == trace_id
    assert current() is None


def test_a_mesh_error_in_a_handler_is_a_500_and_a_spent_retry_is_told():
    """As from a real application: the caller sees a status, and is told not to try again."""
    services = {"orders": {"retries": {"retry_on": ["5xx"]}}, "inventory": {}}
    mesh = FakeMesh({"version": 1, "mesh": "shop", "services": services})
    mesh.service("inventory").fail("reset")
    mesh.service("orders").handler(lambda request: mesh.sync_client("inventory").get("/").json())
    reply = mesh.sync_client("orders").get("/")
    assert (reply.status_code, reply.headers["x-meshlib-no-retry"]) == (500, "1")
    assert mesh.service("orders").count == 1


def test_any_other_error_in_a_handler_fails_the_test():
    """An assertion in a fake is not swallowed as a 500."""
    mesh = FakeMesh(one_service())

    def handler(request: FakeRequest) -> None:
        raise AssertionError("who asked?")

    mesh.service("inventory").handler(handler)
    with pytest.raises(AssertionError, match=r"who asked\?"):
        mesh.sync_client("inventory").get("/")


@pytest.mark.parametrize(
    ("failure", "error", "sent", "arrived"),
    [
        ("refused", httpx.ConnectError, False, 0),
        ("reset", httpx.ReadError, True, 1),
        ("closed", httpx.RemoteProtocolError, True, 1),
        ("timeout", httpx.ReadTimeout, True, 1),
    ],
)
def test_failures_are_the_ones_of_the_network(failure, error, sent: bool, arrived: int):
    """Typed as from a socket: ours and httpx's at once, with `sent` and the trail."""
    mesh = FakeMesh(one_service(timeout="20ms", retries={"max_retries": 0}))
    inventory = mesh.service("inventory").fail(failure)
    with pytest.raises(error) as caught:
        mesh.sync_client("inventory").get("/")
    assert isinstance(caught.value, meshlib.MeshError)
    assert (caught.value.sent, inventory.count, len(caught.value.trail)) == (sent, arrived, 1)


def test_the_endpoints_script_goes_before_the_subsets_before_the_services():
    """And an endpoint that is not scripted falls back."""
    mesh = FakeMesh(SHOP)
    inventory = mesh.service("inventory").reply(text="service")
    client = mesh.sync_client("inventory")
    beta = {"x-beta": "1"}
    assert client.get("/", headers=beta).text == "service"
    inventory.subset("v2").reply(text="subset")
    assert client.get("/", headers=beta).text == "subset"
    inventory.endpoint("127.0.0.1:2").reply(text="endpoint")
    assert client.get("/", headers=beta).text == "endpoint"


def test_names_that_the_policy_does_not_have_are_refused():
    """A typing mistake in a test is not a fake that nobody calls."""
    mesh = FakeMesh(two_endpoints())
    with pytest.raises(meshlib.UnknownService, match="did you mean 'inventory'"):
        mesh.service("inventroy")
    with pytest.raises(ValueError, match=r"it has 127\.0\.0\.1:1, 127\.0\.0\.1:2"):
        mesh.service("inventory").endpoint("127.0.0.1:3")
    with pytest.raises(ValueError, match="it has none"):
        mesh.service("inventory").subset("v9")


def test_only_the_last_requests_are_remembered(monkeypatch: pytest.MonkeyPatch):
    """The bound holds; `count` has them all."""
    monkeypatch.setattr(fake_service, "REQUESTS_MAX", 3)
    mesh = FakeMesh(one_service())
    for n in range(5):
        mesh.sync_client("inventory").get(f"/{n}")
    assert [request.path for request in mesh.service("inventory").requests] == ["/2", "/3", "/4"]
    assert mesh.service("inventory").count == 5


def test_a_head_request_has_no_body():
    """As on the wire."""
    mesh = FakeMesh(one_service())
    mesh.service("inventory").reply(text="four")
    reply = mesh.sync_client("inventory").head("/")
    assert (reply.content, reply.headers["content-length"]) == (b"", "4")
