"""Session persistence: what is read, what the reply says, and that a session stays where it can."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from meshlib.call import Attempt, Call, Reply
from meshlib.endpoint import Endpoint
from meshlib.errors import TransportError
from meshlib.policy.balance import Balance, Cluster
from meshlib.policy.node import Node
from meshlib.policy.outlier import OutlierPolicy
from meshlib.policy.session_persistence import SessionPersistence, endpoint_key

from .runtimes import on_asyncio, on_every_runtime, on_simulation

KEY, OTHER = endpoint_key("svc", "n0:80"), endpoint_key("svc", "n1:80")
COOKIE = SessionPersistence(cookie="sid")


def answered(session, lines=b"", keys=(KEY,), listener=None, run=on_asyncio):
    """(what was preferred, the reply's fields) of a call whose attempts went to `keys`."""

    async def body(_runtime):
        call = Call("svc", "GET", b"/", lines)
        call.listener = listener

        async def backend(call):
            for number, key in enumerate(keys, 1):
                call.trail.attempts.append(Attempt(number, Endpoint("n", 80), ("x",), 0.0, key))
            return Reply(200, [(b"Set-Cookie", b"a=b"), (b"X-Session", b"backend")], call.preferred.encode())

        reply = await session(call, backend)
        return reply.body.decode(), [(name.lower(), value) for name, value in reply.headers]

    return run(body)


def test_a_key_says_no_address():
    """16 hex digits, the same in every process, different by service and by address."""
    assert endpoint_key("inventory.default", "10.0.0.1:8080") == "29117b995de3a3d6"
    assert len({endpoint_key(s, a) for s in ("a", "b") for a in ("n0:80", "n1:80")}) == 4


@on_every_runtime
def test_a_first_call_gets_a_cookie(run):
    """It names the endpoint of the last attempt; the backend's own cookies stay."""
    preferred, fields = answered(COOKIE, keys=(KEY, OTHER), run=run)
    assert preferred == ""
    assert fields[0] == (b"set-cookie", b"a=b")
    assert fields[-1] == (b"set-cookie", f"sid={OTHER}; Path=/; HttpOnly; SameSite=Lax".encode())


@pytest.mark.parametrize(
    ("session", "scheme", "attributes"),
    [
        (
            SessionPersistence(cookie="sid", ttl_s=3600.0),
            "https",
            "Path=/; HttpOnly; SameSite=Lax; Max-Age=3600; Secure",
        ),
        (SessionPersistence(cookie="sid", ttl_s=0.2), "http", "Path=/; HttpOnly; SameSite=Lax; Max-Age=1"),
        (SessionPersistence(cookie="sid", path="/a;b \u00e9"), "http", "Path=/a%3Bb%20%C3%A9; HttpOnly; SameSite=Lax"),
    ],
)
def test_the_attributes(session, scheme, attributes):
    """Max-Age where it has a life, never 0, which would delete it; Secure where it came by https; a path ends nothing."""
    _, fields = answered(session, listener=SimpleNamespace(scheme=scheme))
    assert fields[-1] == (b"set-cookie", f"sid={KEY}; {attributes}".encode())


@on_every_runtime
@pytest.mark.parametrize("cookie", [f"sid={KEY}", f"a=b; sid={KEY}; c=d", f"sid=garbage; sid={KEY}"])
def test_who_stays_is_told_nothing(run, cookie):
    """The cookie names the endpoint that answered: it is preferred, and not set again."""
    preferred, fields = answered(COOKIE, f"Cookie: {cookie}\r\n".encode(), run=run)
    assert preferred == KEY
    assert fields == [(b"set-cookie", b"a=b"), (b"x-session", b"backend")]


@pytest.mark.parametrize("value", ["", "x" * 16, KEY.upper(), KEY + "0", KEY[:-1], f'"{KEY}"', "10.0.0.1:80"])
def test_what_is_no_key_is_as_if_absent(value):
    """Only what we could have written is preferred."""
    assert answered(COOKIE, f"Cookie: sid={value}\r\n".encode())[0] == ""


def test_a_header():
    """Read from the request; on the reply in the place of what the backend says under that name."""
    session = SessionPersistence(header="x-session")
    preferred, fields = answered(session, f"X-Session: {OTHER}\r\n".encode())
    assert preferred == OTHER
    assert [value for name, value in fields if name == b"x-session"] == [KEY.encode()]


def test_without_an_attempt_nothing_is_said():
    """An answer of the mesh comes from no endpoint."""
    assert len(answered(COOKIE, keys=())[1]) == 2


def world(size=5):
    """(cluster of `svc`, hits, balance): endpoints n0 … that answer 200, or what `hits` has been told to raise."""
    outlier = OutlierPolicy()
    nodes = [Node(Endpoint(f"n{index}", 80), outlier, "svc") for index in range(size)]
    hits: list[str] = []

    def leaf(node):
        async def answer(_call):
            hits.append(node.endpoint.host)
            return Reply(200, [])

        return answer

    def bound(runtime):
        of = Cluster("svc", nodes, "random", outlier, runtime.lock())
        return Balance(of, {node: leaf(node) for node in nodes}, 1.0, runtime.now, runtime.rng)

    return nodes, hits, bound


@on_every_runtime
def test_a_session_stays(run):
    """A client that sends back what it was told goes to one endpoint; one that does not, to all of them."""
    nodes, hits, bound = world()

    async def body(runtime):
        balance, lines = bound(runtime), b""
        for _ in range(50):
            call = Call("svc", "GET", b"/", lines)
            reply = await COOKIE(call, balance)
            if (said := reply.header(b"set-cookie")) is not None:
                lines = b"Cookie: " + said.partition(b";")[0] + b"\r\n"
        assert call.trail.attempts[0].why_picked == "its session's endpoint"
        stayed = set(hits)
        hits.clear()
        for _ in range(50):
            await COOKIE(Call("svc", "GET", b"/"), balance)
        return len(stayed), len(set(hits))

    assert run(body) == (1, len(nodes))


def test_a_session_moves_when_its_endpoint_cannot_be_used_and_stays_there():
    """Unreachable: another one takes it, and the reply says so; the old endpoint's return does not call it back."""
    nodes, hits, bound = world()
    nodes[0].unreachable(
        0.0, random.Random(1), 0, proof=True, cause=TransportError("x", phase="connect", cause="refused")
    )

    async def body(runtime):
        balance = bound(runtime)
        call = Call("svc", "GET", b"/", f"Cookie: sid={KEY}\r\n".encode())
        reply = await COOKIE(call, balance)
        told = reply.header(b"set-cookie").partition(b";")[0]
        await runtime.sleep(3600.0)
        again = Call("svc", "GET", b"/", b"Cookie: " + told + b"\r\n")
        return told, (await COOKIE(again, balance)).header(b"set-cookie")

    told, again = on_simulation(body)
    assert told != f"sid={KEY}".encode()
    assert again is None
    assert hits[0] == hits[1] != "n0"
