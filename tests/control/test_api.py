"""The API over ASGI: every route with every caller, every refusal, and mutated requests."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meshlib.control import api as module
from meshlib.control.messages import BODY_BYTES_MAX
from meshlib.control.openapi import OPERATIONS, Operation, statuses
from meshlib.control.store import StoreError, StoreFull
from meshlib.control.writer import WRITES_MAX
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid

from .config_service import MESH, TRUST_DOMAIN, Client, Service
from .virtual_time import run

Scenario = Callable[[Service], Awaitable[Any]]
CSR, KEY = make_csr(SpiffeId.for_service(TRUST_DOMAIN, "somebody-else"))
BODIES: dict[str, dict[str, Any]] = {
    "enrol": {"csr": CSR.decode(), "instance": "i1"},
    "renew": {"csr": CSR.decode()},
    "poll": {"instance": "i1", "want": ["inventory.default"], "have": {"trust": ["e1", 1]}, "wait_s": 1},
    "register": {"instance": "i1", "address": "10.0.0.1:80", "weight": 2, "labels": {"version": "v1"}},
    "drain": {"instance": "i1"},
    "deregister": {"instance": "i1"},
    "put_policy": {"document": MESH},
    "create_token": {"service": "orders.default", "uses": 2, "ttl_s": 60},
    "rotate": {"root": False},
    "revoke": {"serial": "abc123"},
}


def played(folder: Path, scenario: Scenario, **options: Any) -> Any:
    """Run a scenario on a new service in `folder`."""

    async def whole() -> Any:
        service = Service(folder, **options)
        try:
            return await scenario(service)
        finally:
            await service.close()

    return run(whole())


async def asked(client: Client, operation: Operation) -> Any:
    """A good request for an operation."""
    path = operation.path.replace("{id}", "0123456789ab")
    return await client.ask(operation.method, path, BODIES.get(operation.does))


def test_every_route_is_closed_to_those_who_are_not_meant(tmp_path: Path):
    """Without credentials everything but /healthz is 401; with a service's certificate what is the operator's is 403;
    with the operator's token what is a process's is 401 (F38).
    """

    async def scenario(service: Service) -> None:
        nobody, process, operator = service.client(), service.client("orders"), service.operating()
        for operation in OPERATIONS:
            statuses_of = [(await asked(one, operation)).status_code for one in (nobody, process, operator)]
            if operation.role == "anyone":
                assert statuses_of == [200, 200, 200]
                continue
            assert statuses_of[0] == 401, operation
            assert (statuses_of[1] == 403) == (operation.role == "operator"), (operation, statuses_of)
            assert (statuses_of[2] == 401) == (operation.role in ("member", "newcomer")), (operation, statuses_of)
        assert await _counted(service) == {"instances": 0, "tokens": 1}, "what was refused was not done"

    played(tmp_path, scenario)


async def _counted(service: Service) -> dict[str, int]:
    return {"instances": len(service.store.instances()), "tokens": len(service.store.tokens(service.now))}


def test_a_refusal_is_a_problem_document(tmp_path: Path):
    """Every refusal has kind, sentence and rule, says who may ask (401), which methods there are (405), and when to
    come back (429, 503).
    """

    async def scenario(service: Service) -> None:
        unauthenticated = await service.client().ask("GET", "/v1/status")
        assert unauthenticated.headers["content-type"] == "application/problem+json"
        assert unauthenticated.headers["www-authenticate"].startswith("Bearer")
        assert unauthenticated.json().keys() == {"error", "message", "rule"}
        other = await service.operating().ask("PATCH", "/v1/policy")
        assert (other.status_code, other.headers["allow"]) == (405, "GET, HEAD, PUT")
        assert (await service.operating().ask("GET", "/v1/nothing")).status_code == 404
        assert (await service.client().ask("GET", "/v1/nothing")).status_code == 401
        client = service.client()
        client.bearer = JoinToken.create("0" * 64).bearer
        for _ in range(20):
            await client.ask("GET", "/v1/status")
        assert (await client.ask("GET", "/v1/status")).headers["retry-after"] == "1"

    played(tmp_path, scenario)


def test_healthz_says_ok_and_no_more(tmp_path: Path):
    """To anyone, with any method that reads."""

    async def scenario(service: Service) -> None:
        reply = await service.client().ask("GET", "/healthz")
        assert (reply.status_code, reply.text) == (200, "ok")
        assert (await service.client().ask("HEAD", "/healthz")).status_code == 200

    played(tmp_path, scenario)


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "application/json; charset=latin-1"}, b"{}", 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"{}", 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"root=true", 415),
        ({"content-type": "application/json"}, b'{"root":"' + b"x" * BODY_BYTES_MAX + b'"}', 413),
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": 'APPLICATION/JSON; charset="UTF-8"'}, b"{}", 200),
    ],
)
def test_only_json_is_read(tmp_path: Path, headers: dict[str, str], content: bytes, status: int):
    """Another media type, charset or coding is 415, too much is 413, no JSON is 400."""

    async def scenario(service: Service) -> None:
        reply = await service.operating().ask("POST", "/v1/ca/rotate", headers=headers, content=content)
        assert reply.status_code == status

    played(tmp_path, scenario)


def test_a_token_is_made_used_and_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """It admits one key, the same key again is the same use, another is 401; the log has its id and never its secret."""

    async def scenario(service: Service) -> str:
        operator, newcomer = service.operating(), service.client()
        made = await operator.told("POST", "/v1/tokens", {"service": "orders.default"})
        assert (made["uses"], made["expires"]) == (1, service.now + 600)
        token = JoinToken.parse(made["token"])
        assert token.root_sha256 == service.issuer.root_sha256
        newcomer.bearer = token.bearer
        issued = await newcomer.told("POST", "/v1/enrol", {"csr": CSR.decode(), "instance": "i1"})
        assert Svid.load(issued["chain"].encode(), KEY).id.service == "orders.default"
        await newcomer.told("POST", "/v1/enrol", {"csr": CSR.decode()})
        other, _ = make_csr(SpiffeId.for_service(TRUST_DOMAIN, "orders"))
        reply = await newcomer.ask("POST", "/v1/enrol", {"csr": other.decode()})
        assert (reply.status_code, "used" in reply.json()["message"]) == (401, True)
        listed = (await operator.told("GET", "/v1/tokens"))["tokens"]
        assert [(one["id"], one["used"]) for one in listed] == [(token.id, 1)]
        assert "secret" not in json.dumps(listed)
        await operator.told("DELETE", f"/v1/tokens/{token.id}")
        assert (await operator.ask("DELETE", f"/v1/tokens/{token.id}")).status_code == 404
        assert (await operator.told("GET", "/v1/tokens"))["tokens"] == []
        return token.secret

    with caplog.at_level(logging.DEBUG):
        secret = played(tmp_path, scenario)
    assert secret not in caplog.text
    assert "enrolled" in caplog.text


def test_a_bad_request_for_a_certificate_costs_no_use(tmp_path: Path):
    """What is no CSR is 400, and the token is still good."""

    async def scenario(service: Service) -> None:
        made = await service.operating().told("POST", "/v1/tokens", {"service": "orders.default"})
        newcomer = service.client()
        newcomer.bearer = JoinToken.parse(made["token"]).bearer
        for csr in ("nothing", "-----BEGIN CERTIFICATE REQUEST-----\n!!\n-----END CERTIFICATE REQUEST-----\n", "é"):
            assert (await newcomer.ask("POST", "/v1/enrol", {"csr": csr})).status_code == 400
        await newcomer.told("POST", "/v1/enrol", {"csr": CSR.decode()})

    played(tmp_path, scenario)


def test_an_instance_is_its_services_own(tmp_path: Path):
    """Another service can neither register, drain, deregister nor poll as it (F38); an unknown one is 404."""

    async def scenario(service: Service) -> None:
        owner, other = service.client("inventory"), service.client("orders")
        await owner.told("POST", "/v1/register", BODIES["register"])
        for does in ("register", "drain", "deregister", "poll"):
            assert (await other.ask("POST", f"/v1/{does}", BODIES[does])).status_code == 403, does
        assert [one.service for one in service.store.instances()] == ["inventory.default"]
        for does in ("drain", "deregister"):
            assert (await other.ask("POST", f"/v1/{does}", {"instance": "i2"})).status_code == 404
        await owner.told("POST", "/v1/deregister", {"instance": "i1"})
        await other.told("POST", "/v1/register", BODIES["register"])

    played(tmp_path, scenario)


def test_what_is_there_is_shown(tmp_path: Path):
    """Services with their instances, and which are not in the policy; processes with what they have."""

    async def scenario(service: Service) -> None:
        operator = service.operating()
        await service.client("inventory").told("POST", "/v1/register", BODIES["register"])
        await service.client("stray").told("POST", "/v1/register", {"instance": "s1", "address": "10.0.0.2:80"})
        shown = await operator.told("GET", "/v1/services")
        assert [(one["name"], one["policy"], one["instances"]) for one in shown["services"]] == [
            ("inventory.default", True, 1), ("orders.default", True, 0), ("payments.default", True, 0),
            ("stray.default", False, 1),
        ]  # fmt: skip
        one = (await operator.told("GET", "/v1/services?service=inventory.default"))["services"][0]["shown"][0]
        assert (one["address"], one["state"], one["lease_s"]) == ("10.0.0.1:80", "ready", pytest.approx(15, abs=1))
        assert (await operator.told("GET", "/v1/services?service=none.default"))["services"] == []
        assert len((await operator.told("GET", "/v1/services?after=orders.default"))["services"]) == 2
        await service.client("orders", serial=0xABC).told("POST", "/v1/poll", {**BODIES["poll"], "instance": "o1"})
        status = await operator.told("GET", "/v1/status?service=orders.default")
        (process,) = status["processes"]
        assert (process["serial"], process["instance"], status["polling"]) == ("abc", "o1", 1)
        assert "service/inventory.default" in process["behind"]
        for bad in ("service=a&service=b", "limit=3", "after=%ff", "a=" + "x" * 2000, "after=" + "x" * 257):
            assert (await operator.ask("GET", f"/v1/status?{bad}")).status_code == 400

    played(tmp_path, scenario)


def test_one_answer_has_so_many_and_says_that_there_are_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beyond the bound one asks on with `after`, and gets each exactly once."""
    monkeypatch.setattr("meshlib.control.status.SHOWN_MAX", 2)

    async def scenario(service: Service) -> None:
        for number in range(5):
            asked = {"instance": f"i{number}", "address": f"10.0.0.{number + 1}:80"}
            await service.client("inventory").told("POST", "/v1/register", asked)
            await service.client("inventory").told("POST", "/v1/poll", {"instance": f"i{number}"})
        operator, found, after = service.operating(), [], ""
        while True:
            page = await operator.told("GET", f"/v1/status?after={after}")
            found += [f"{one['service']}/{one['instance']}" for one in page["processes"]]
            if not page["more"]:
                break
            after = found[-1]
        assert found == [f"inventory.default/i{number}" for number in range(5)]
        page = await operator.told("GET", "/v1/services?service=inventory.default&after=i2")
        assert [one["instance"] for one in page["services"][0]["shown"]] == ["i3", "i4"]

    played(tmp_path, scenario)


def test_a_stored_policy_is_read_and_put(tmp_path: Path):
    """With its version as ETag; If-Match of an older one is 409 and says the newer; the history has both."""
    changed = MESH.replace("1s", "3s")

    async def scenario(service: Service) -> None:
        operator = service.operating()
        before = await operator.ask("GET", "/v1/policy")
        assert (before.json()["document"], before.headers["etag"]) == (MESH, f'"{before.json()["n"]}"')
        put = await operator.told(
            "PUT", "/v1/policy", {"document": changed}, headers={"if-match": before.headers["etag"]}
        )
        lost = await operator.ask("PUT", "/v1/policy", {"document": MESH}, headers={"if-match": before.headers["etag"]})
        assert (lost.status_code, lost.json()["n"]) == (409, put["n"])
        assert (await operator.told("GET", "/v1/policy"))["document"] == changed
        history = (await operator.told("GET", "/v1/policy/history"))["policies"]
        assert [one["n"] for one in history] == [put["n"], before.json()["n"]]
        for etag in ("7", '"x"', "*", 'W/"7"', '"99999999999999999"'):
            reply = await operator.ask("PUT", "/v1/policy", {"document": MESH}, headers={"if-match": etag})
            assert reply.status_code == 400, etag

    played(tmp_path, scenario, stored=True)


def test_a_policy_that_is_not_valid_is_refused_with_its_problems(tmp_path: Path):
    """Each with line, column and field; a file of this machine may not be named; another mesh is refused."""

    async def scenario(service: Service) -> None:
        operator = service.operating()

        async def put(document: str) -> Any:
            reply = await operator.ask("PUT", "/v1/policy", {"document": document})
            assert reply.status_code == 400, reply.text
            return reply.json()

        problems = (await put(MESH.replace("1s", "soon")))["problems"]
        assert [(one["line"], one["path"]) for one in problems] == [(6, "services.inventory.timeout")]
        assert (await put(MESH.replace("{registry: {}}", "{file: /etc/passwd}", 1)))["problems"]
        assert "root:" not in json.dumps(await put(MESH.replace("{registry: {}}", "{file: /etc/passwd}", 1)))
        assert "another mesh" in (await put(MESH.replace("mesh: shop", "mesh: shed")))["message"]
        assert (await put("\x00"))["error"] == "config"
        assert (await operator.told("GET", "/v1/policy"))["document"] == MESH

    played(tmp_path, scenario, stored=True)


def test_a_watched_file_is_not_put(tmp_path: Path):
    """With `policy_source: file` the file is the policy, and PUT is 409."""

    async def scenario(service: Service) -> None:
        assert (await service.operating().ask("PUT", "/v1/policy", {"document": MESH})).status_code == 409

    played(tmp_path, scenario)


@pytest.mark.parametrize(
    ("error", "status"), [(StoreError("disk"), 503), (StoreFull("full"), 503), (RuntimeError("a mistake of ours"), 500)]
)
def test_what_fails_inside_is_said_without_its_inside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, status: int
):
    """The disk: 503, later. A mistake of ours: 500, in the log and not in the answer."""

    async def scenario(service: Service) -> None:
        def fail(name: str) -> None:
            raise error

        operator = service.operating()
        service.writer.before = fail
        reply = await operator.ask("GET", "/v1/tokens")
        assert reply.status_code == status
        assert "mistake" not in reply.text
        service.writer.before = lambda name: None

    played(tmp_path, scenario)


def test_who_waits_for_the_disk_is_counted(tmp_path: Path):
    """At the bound one more is told to come back."""

    async def scenario(service: Service) -> None:
        service.writer.waiting = WRITES_MAX
        reply = await service.operating().ask("POST", "/v1/tokens", BODIES["create_token"])
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
        service.writer.waiting = 0

    played(tmp_path, scenario)


def test_there_is_room_for_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One process more than there is room for is told to come back, and holds no lease by it."""
    monkeypatch.setattr("meshlib.control.polls.PROCESSES_MAX", 1)

    async def scenario(service: Service) -> None:
        await service.client("orders").told("POST", "/v1/poll", BODIES["poll"])
        reply = await service.client("orders").ask("POST", "/v1/poll", {"instance": "i2"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "30")
        assert not service.plane.registry._open

    played(tmp_path, scenario)


def test_every_error_that_is_raised_here_has_its_status():
    """The statuses of the table are those that the API says it has."""
    said = {status for status, _, _ in module._STATUSES.values()} | set(module._KINDS)
    assert said == {status for operation in OPERATIONS for status in statuses(operation)}


# Mutated requests. MESHLIB_FUZZ: how many; MESHLIB_SEED.

SEED = int(os.environ.get("MESHLIB_SEED", "20"))
COUNT = int(os.environ.get("MESHLIB_FUZZ", "1000"))
VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**53, 2**63, 10**400, float("nan"), float("inf"), "", "x", "\x00", "\ud800",
    "💥" * 50, "x" * 10_000, [], [[]], {}, {"": {}}, [1] * 5000, "../../etc/passwd", "-----BEGIN", "a.b", "e1",
    ["e1", 1], ["e1", -1], {"trust": ["e1", 1]}, "10.0.0.1:80", "[::1]:1", "%00", "'; DROP TABLE tokens; --",
]  # fmt: skip
PIECES = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\u0000", b"\\ud800", b"\xff", b"NaN", b"1e999", b"9" * 5000,
          b"[" * 2000, b'{"a":' * 2000, b"\x00", b'"instance":', b"null", b"//", b"\xef\xbb\xbf", b"\r\n"]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
PATHS = ["/", "//", "/v1", "/v1/", "/v1/poll/", "/v1/tokens/", "/v1/tokens/%2e%2e", "/v1/../healthz", "/HEALTHZ",
         "/v1/tokens/0123456789AB", "/v1/policy?after=%ff", "/openapi.json?x", "/v1/" + "x" * 5000, "/%00", "*"]  # fmt: skip
HEADERS = [
    {"content-type": "text/html"}, {"content-type": ""}, {"content-encoding": "br"}, {"if-match": '"7"'},
    {"if-match": "*"}, {"authorization": "Bearer"}, {"authorization": "Bearer " + "x" * 600}, {"range": "bytes=0-1"},
    {"transfer-encoding": "chunked"}, {"expect": "100-continue"}, {"content-length": "99999999999999999999"},
]  # fmt: skip


def mutated(rng: random.Random, document: Any) -> bytes:
    """A body like `document`, but not quite."""
    if isinstance(document, dict) and rng.random() < 0.7:
        document = dict(document)
        for _ in range(rng.randint(1, 3)):
            key = rng.choice([*document, "extra", "__proto__"])
            document[key] = rng.choice(VALUES)
    body = bytearray(json.dumps(document).encode("utf-8", "surrogatepass"))
    for _ in range(rng.randint(0, 2)):
        at = rng.randint(0, len(body))
        body[at : at + rng.randint(0, 3)] = rng.choice(PIECES)
    return bytes(body)


@pytest.mark.fuzz
@pytest.mark.parametrize("stored", [False, True])
def test_bad_input_is_never_our_mistake(tmp_path: Path, stored: bool):
    """Whatever is sent by whomever: a status of the table, never 5xx, and a problem document where it is refused."""
    print(f"MESHLIB_SEED={SEED} MESHLIB_FUZZ={COUNT}")
    rng = random.Random(SEED + stored)

    async def scenario(service: Service) -> dict[int, int]:
        counts: dict[int, int] = {}
        newcomer, member, operator = service.client(), service.client("orders"), service.operating()
        newcomer.bearer = JoinToken.parse(
            (await operator.told("POST", "/v1/tokens", {**BODIES["create_token"], "uses": 1000}))["token"]
        ).bearer
        right = {"newcomer": newcomer, "member": member, "operator": operator}
        for number in range(COUNT // 2):
            operation = rng.choice(OPERATIONS)
            client = right.get(operation.role, member)
            if rng.random() < 0.15:
                client = rng.choice([*right.values(), service.client(), service.client("inventory")])
            method = operation.method if rng.random() < 0.8 else rng.choice(METHODS)
            path = operation.path.replace("{id}", "0123456789ab") if rng.random() < 0.9 else rng.choice(PATHS)
            document = BODIES.get(operation.does, {})
            if operation.does == "put_policy" and rng.random() < 0.7:
                text = bytearray(document["document"].encode())
                at = rng.randint(0, len(text))
                text[at : at + 2] = rng.choice(PIECES[:12])
                document = {"document": text.decode("utf-8", "surrogateescape")}
            headers = rng.choice(HEADERS) if rng.random() < 0.2 else {}
            body = mutated(rng, document) if rng.random() < 0.9 else None
            reply = await client.ask(method, path, body, headers=headers)
            counts[reply.status_code] = counts.get(reply.status_code, 0) + 1
            assert reply.status_code < 500, (number, method, path, headers, body, reply.text)
            if reply.status_code >= 400 and method != "HEAD":
                assert reply.headers["content-type"] == "application/problem+json"
                assert reply.json()["message"], (number, method, path)
        return counts

    counts = played(tmp_path, scenario, stored=stored)
    print(counts)
    assert counts[200] > COUNT // 50, "the mutations must leave some requests valid"
    assert counts[400] > COUNT // 10
