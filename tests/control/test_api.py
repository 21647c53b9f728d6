"""The API over ASGI: every route with every caller, every refusal, and mutated requests."""

from __future__ import annotations

import asyncio
import json
import logging
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

from .config_service import MESH, TRUST_DOMAIN, Client, Follower, Service, played
from .virtual_time import steps

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
    "revoke": {"serial": f"{5 << 96:x}"},
}


async def asked(client: Client, operation: Operation) -> Any:
    """A good request for an operation."""
    path = operation.path.replace("{id}", "0123456789ab").replace("{n}", "1")
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
        for path in ("/v1/nothing", "/v1/policy/history/{n}", "/v1/tokens/{id}", ""):
            assert (await service.operating().ask("GET", path)).status_code == 404
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
    """What another service says of an instance with the same id is about its own (F38); an unknown one is 404."""

    async def scenario(service: Service) -> None:
        owner, other = service.client("inventory"), service.client("orders")
        await owner.told("POST", "/v1/register", BODIES["register"])
        for does in ("drain", "deregister"):
            assert (await other.ask("POST", f"/v1/{does}", BODIES[does])).status_code == 404, does
        await other.told("POST", "/v1/register", {**BODIES["register"], "address": "10.0.0.2:80"})
        await other.told("POST", "/v1/deregister", {"instance": "i1"})
        assert [one.service for one in service.store.instances()] == ["inventory.default"]

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
    """With its version as ETag, and in the place of a version that is named: none is 428, an older one is 412 and says
    the newer, * is any; the history has all, each with its document.
    """
    changed = MESH.replace("1s", "3s")

    async def scenario(service: Service) -> None:
        operator = service.operating()
        before = await operator.ask("GET", "/v1/policy")
        assert (before.json()["document"], before.headers["etag"]) == (MESH, f'"{before.json()["n"]}"')
        put = await operator.told(
            "PUT", "/v1/policy", {"document": changed}, headers={"if-match": before.headers["etag"]}
        )
        lost = await operator.ask("PUT", "/v1/policy", {"document": MESH}, headers={"if-match": before.headers["etag"]})
        assert (lost.status_code, lost.json()["n"]) == (412, put["n"])
        assert (await operator.told("GET", "/v1/policy"))["document"] == changed
        history = (await operator.told("GET", "/v1/policy/history"))["policies"]
        assert [one["n"] for one in history] == [put["n"], before.json()["n"]]
        old = await operator.ask("GET", f"/v1/policy/history/{before.json()['n']}")
        assert (old.json()["document"], old.headers["etag"]) == (MESH, before.headers["etag"])
        for n in ("1", "9" * 16, "9" * 17, "x"):
            assert (await operator.ask("GET", f"/v1/policy/history/{n}")).status_code == 404
        assert (await operator.ask("PUT", "/v1/policy", {"document": MESH})).status_code == 428
        await operator.told("PUT", "/v1/policy", {"document": MESH}, headers={"if-match": "*"})
        for etag in ("7", '"x"', "**", 'W/"7"', '"99999999999999999"'):
            reply = await operator.ask("PUT", "/v1/policy", {"document": MESH}, headers={"if-match": etag})
            assert reply.status_code == 400, etag

    played(tmp_path, scenario, stored=True)


def test_a_policy_that_is_not_valid_is_refused_with_its_problems(tmp_path: Path):
    """Each with line, column and field; a file of this machine may not be named; another mesh is refused."""

    async def scenario(service: Service) -> None:
        operator = service.operating()

        async def put(document: str) -> Any:
            reply = await operator.ask("PUT", "/v1/policy", {"document": document}, headers={"if-match": "*"})
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
    ("error", "status"),
    [
        (StoreError("disk"), 503),
        (StoreFull("full"), 503),
        (PermissionError("a mistake"), 503),
        (RuntimeError("a mistake of ours"), 500),
    ],
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


def test_a_file_of_the_authority_that_will_not_do_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Its mode, its content: 503 with the sentence that says what to do, and in the log. It is nobody's bad request."""

    async def scenario(service: Service) -> None:
        operator, state = service.operating(), tmp_path / "ca" / "authority.json"
        for mode, content in ((0o644, state.read_bytes()), (0o600, b"{}")):
            state.write_bytes(content)
            state.chmod(mode)
            for method, path, document in (("GET", "/v1/ca", None), ("POST", "/v1/ca/rotate", {})):
                reply = await operator.ask(method, path, document)
                assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
                assert "authority.json" in reply.json()["message"]
        assert caplog.text.count("authority.json") >= 4

    played(tmp_path, scenario)


@pytest.mark.parametrize("says_its_length", [True, False])
def test_each_body_has_the_bound_of_its_operation(tmp_path: Path, says_its_length: bool):
    """At the bound it is read, one byte more is 413, whether its length is said or it comes in pieces."""

    async def scenario(service: Service) -> None:
        newcomer = service.client()
        newcomer.bearer = JoinToken.create("0" * 64).bearer
        clients = {"newcomer": newcomer, "member": service.client("orders"), "operator": service.operating()}
        for operation in OPERATIONS:
            if operation.body is not None:
                assert operation.bytes_max <= BODY_BYTES_MAX
                for size, status in ((operation.bytes_max, 400), (operation.bytes_max + 1, 413)):

                    async def pieces(size: int = size) -> Any:
                        yield b"[" + b" " * (size - 1)

                    content = b"[" + b" " * (size - 1) if says_its_length else pieces()
                    headers = {"content-type": "application/json"}
                    client = clients[operation.role]
                    reply = await client.ask(operation.method, operation.path, content=content, headers=headers)
                    assert reply.status_code == status, operation.does

    played(tmp_path, scenario)


def test_wrong_tokens_are_charged_and_valid_ones_heard(tmp_path: Path):
    """Unknown tokens, and whatever malformed comes with any, are 429 after a burst; a valid token of the same address
    enrols all the same.
    """

    async def scenario(service: Service) -> None:
        wrong, good = service.client(), service.client()
        wrong.bearer = JoinToken.create("0" * 64).bearer
        good.bearer = service.issuer.create_token("orders").bearer
        bad: tuple[Any, ...] = ({"csr": CSR.decode()}, {"csr": "-----BEGIN"}, b'{"csr":', b" " * 20_000)
        got = [(await wrong.ask("POST", "/v1/enrol", bad[number % 4])).status_code for number in range(24)]
        assert got == [401, 400, 400, 413] * 5 + [429] * 4
        await good.told("POST", "/v1/enrol", {"csr": CSR.decode()})

    played(tmp_path, scenario)


def test_what_a_certificate_was_is_looked_at_when_the_work_begins(tmp_path: Path):
    """Revoked while the body came: 403, and it was not done. Ended while a poll was held: 401. Both connections end."""

    async def scenario(service: Service) -> None:
        gate, serial = service.gate, (5 << 96) + 1
        client = service.client("orders", serial=serial)

        async def body() -> Any:
            yield b'{"instance":"i1",'
            gate.revoked = frozenset({5})
            yield b'"address":"10.0.0.1:80"}'

        json_of = {"content-type": "application/json"}
        reply = await client.ask("POST", "/v1/register", content=body(), headers=json_of)
        assert (reply.status_code, reply.headers["connection"]) == (403, "close")
        assert service.store.instances() == []
        gate.revoked = frozenset()
        follower = Follower(service, "orders", "i1", serial=serial)
        await follower.poll()
        client.connection.not_after = service.now + 10
        asks = {"instance": "i1", "have": follower.have, "wait_s": 30}
        held = asyncio.ensure_future(client.ask("POST", "/v1/poll", asks))
        await steps(5)
        assert not held.done()
        service.now += 10
        reply = await held
        assert (reply.status_code, reply.headers["connection"]) == (401, "close")

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
