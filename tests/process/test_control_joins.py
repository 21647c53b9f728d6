"""F24, F31, F38, and servers that are not our own: who gets in, who stays in, and who may ask what."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from meshlib import Mesh
from meshlib.control_link import CONTROL_SERVICE, ControlLink, ControlRefusal, RemoteAuthority
from meshlib.errors import MeshError
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken
from meshlib.identity.pinned import PinnedTls
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, TrustBundle
from meshlib.identity.svid_tls import SvidTls
from process.controlled import DOMAIN, Controlled
from process.load import load
from process.replicas import until

EXPECTED = SpiffeId.for_service(DOMAIN, CONTROL_SERVICE)
FRONT = """
from flask import Flask, jsonify
from meshlib import Mesh
import os

app, mesh = Flask(__name__), Mesh("front")
backend = mesh.sync_client("backend")

@app.get("/ask/<word>")
def ask(word):
    return jsonify(word=backend.get(f"/echo/{word}").text, pid=os.getpid())

application = mesh.wsgi(app)
"""
STALLS = """
import os, time
from meshlib import Mesh
mesh = Mesh()

@mesh.get("/stall/{seconds}")
async def stall(seconds: float) -> str:
    time.sleep(seconds)  # what an application must not do, and does
    return "stalled"

@mesh.get("/who")
async def who() -> str:
    return "here"

mesh.run(port=int(os.environ["PORT"]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """A config service with one backend."""
    with Controlled(
        tmp_path_factory.mktemp("joins"), {"backend": {}, "front": {}, "stalls": {}, "lonely": {}}
    ) as world:
        world.serve("backend", 1)
        yield world


def caller(world: Controlled) -> Mesh:
    os.environ["MESHLIB_TOKEN_FILE"] = str(world.folder / "caller.token")
    return Mesh("caller", world.config)


def redeemed(world: Controlled, token: str, redeemers: int) -> Counter[str]:
    """What becomes of so many who come with one token at once, each with a key of its own."""
    authority = RemoteAuthority([world.url], DOMAIN, "i")
    parsed, outcomes, start = JoinToken.parse(token), Counter[str](), threading.Barrier(redeemers)

    def redeem() -> None:
        csr, _ = make_csr(SpiffeId.for_service(DOMAIN, "lonely"))
        start.wait()
        try:
            authority.enrol(parsed, csr)
        except ControlRefusal as refusal:
            outcomes[str(refusal.status)] += 1
        else:
            outcomes["enrolled"] += 1

    threads = [threading.Thread(target=redeem) for _ in range(redeemers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def heard(world: Controlled, token: str) -> str:
    """What becomes of a token once its address, which has failed too often just now, is heard again."""
    return str(until(lambda: next((found for found in redeemed(world, token, 1) if found != "429"), ""), "it is heard"))


def test_fifty_redeemers_of_a_token_of_one_use(world: Controlled) -> None:
    """F24: exactly one wins; the others are told 401, or 429 once there were too many."""
    outcomes = redeemed(world, world.token("lonely"), 50)
    print(f"F24: {dict(outcomes)}")
    assert outcomes.pop("enrolled") == 1
    assert sum(outcomes.values()) == 49
    assert outcomes.keys() <= {"401", "429"}
    log = world.control.log()
    assert world.operator_token().secret not in log


def test_a_forged_an_expired_and_a_foreign_token_get_nothing(world: Controlled) -> None:
    """Another secret, a life that is over, another mesh's root: refused, and before a secret leaves in the last case."""
    good = JoinToken.parse(world.token("lonely"))
    forged = JoinToken(good.id, JoinToken.create(good.root_sha256).secret, good.root_sha256)
    assert heard(world, str(forged)) == "401"
    expired = world.token("lonely", ttl_s=1.0)
    time.sleep(1.2)
    assert heard(world, expired) == "401"
    foreign = JoinToken(good.id, good.secret, "0" * 64)
    csr, _ = make_csr(SpiffeId.for_service(DOMAIN, "lonely"))
    with pytest.raises(MeshError) as failure:
        RemoteAuthority([world.url], DOMAIN, "i").enrol(foreign, csr)
    assert failure.value.kind == "identity"
    assert heard(world, str(good)) == "enrolled"
    assert heard(world, str(good)) == "401"


def test_gunicorn_with_four_workers_on_one_token(world: Controlled) -> None:
    """--preload, one token of one use: the first worker enrols, the others find it; each has a leaf, all are called."""
    folder = world.folder
    (folder / "front.py").write_text(FRONT)
    (folder / "front.token").write_text(world.token("front"))
    command = [
        sys.executable, "-m", "gunicorn", "--preload", "-w", "4", "-b", "127.0.0.1:0", "--graceful-timeout", "2",
        "-k", "meshlib.transport.gunicorn.PeerWorker", "--chdir", str(folder), "front:application",
    ]  # fmt: skip
    front = world.execute(command, "gunicorn", **world.environment_of("front"))

    def workers() -> int:
        processes = [p for p in world.ask("GET", "/v1/status")["processes"] if p["service"] == "front.default"]
        return len({p["serial"] for p in processes if p["registered"]})

    try:
        until(lambda: workers() == 4, "four workers with leaves of their own")
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{world.ask('GET', '/v1/status')}\n{front.log()}") from None

    async def scenario() -> tuple[int, set[int]]:
        wrong, pids = 0, set()
        async with caller(world) as mesh:
            client = mesh.client("front")
            for start in range(0, 200, 20):
                words = [f"w{n}" for n in range(start, start + 20)]
                replies = await asyncio.gather(*(client.get(f"/ask/{word}") for word in words))
                wrong += sum(reply.json()["word"] != word for reply, word in zip(replies, words, strict=True))
                pids |= {reply.json()["pid"] for reply in replies}
        return wrong, pids

    try:
        wrong, pids = asyncio.run(scenario())
    finally:
        front.popen.terminate()
        code = front.wait()
    print(f"gunicorn: 200 calls by {len(pids)} workers, {wrong} wrong, exit {code}")
    assert wrong == 0
    assert len(pids) > 1
    assert code == 0
    assert "Traceback" not in front.log(), front.log()


def test_a_stalled_event_loop_keeps_its_lease(world: Controlled) -> None:
    """F31: an application that blocks its loop again and again: never off the list, never ejected by who calls others."""
    (server,) = world.serve("stalls", script=STALLS)
    states: Counter[str] = Counter()

    async def scenario() -> list[str]:
        async with caller(world) as mesh:
            client = mesh.client("stalls")
            with mesh.policy(timeout=20.0):
                calls = [asyncio.create_task(client.get("/stall/1.5")) for _ in range(3)]
                for _ in range(20):
                    shown = await asyncio.to_thread(world.ask, "GET", "/v1/services")
                    for service in shown["services"]:
                        if service["name"] == "stalls.default":
                            states.update(instance["state"] for instance in service["shown"])
                    await asyncio.sleep(0.2)
                return [(await call).text for call in calls]

    assert asyncio.run(scenario()) == ["stalled"] * 3
    print(f"F31: {dict(states)}")
    assert states.keys() == {"ready"}
    assert server.alive


def test_another_services_certificate_reads_and_writes_only_its_own(world: Controlled) -> None:
    """F38: with front's certificate: backend's instances cannot be drained, nor may the operator's paths be read."""
    token = JoinToken.parse(world.token("front"))
    csr, key = make_csr(SpiffeId.for_service(DOMAIN, "front"))
    issued = RemoteAuthority([world.url], DOMAIN, "x").enrol(token, csr)
    svid, bundle = Svid.load(issued.chain_pem, key), TrustBundle(DOMAIN, issued.bundle_pem)
    backend = next(p for p in world.ask("GET", "/v1/status")["processes"] if p["service"] == "backend.default")
    link = ControlLink([world.url], SvidTls(svid, bundle, EXPECTED))
    seen: dict[str, int] = {}
    document = link.ask("GET", "/openapi.json")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if {"certificate": []} in operation["security"] or not operation["security"]:
                continue
            seen[f"{method} {path}"] = _status(
                link, method.upper(), path.replace("{id}", "0" * 12).replace("{n}", "1"), {}
            )
    assert set(seen.values()) <= {401, 403}, seen
    for what in ("drain", "deregister"):
        assert _status(link, "POST", f"/v1/{what}", {"instance": backend["instance"]}) == 404
    register = {"instance": backend["instance"], "address": "127.0.0.1:1"}
    link.ask("POST", "/v1/register", register)  # an instance of front's own, which has the same id
    mine = link.ask("POST", "/v1/poll", {"instance": backend["instance"], "wait_s": 0, "want": []})
    shown = {service["name"]: service["shown"] for service in world.ask("GET", "/v1/services")["services"]}
    assert "127.0.0.1:1" in [one["address"] for one in shown["front.default"]]
    assert [(one["instance"], one["state"]) for one in shown["backend.default"]] == [(backend["instance"], "ready")]
    link.ask("POST", "/v1/deregister", {"instance": backend["instance"]})
    resources = {json.loads(fragment["payload"])["resource"] for fragment in mine["fragments"]}
    assert resources == {"trust", "defaults", "service/front.default"}
    link.close()


def test_without_credentials_there_is_only_healthz(world: Controlled) -> None:
    """Every path of the description, with no certificate and no token: 401; /healthz says ok."""
    link = ControlLink([world.url], PinnedTls(world.operator_token().root_sha256, EXPECTED))
    document = world.ask("GET", "/openapi.json")
    for path, operations in document["paths"].items():
        for method in operations:
            expected = 200 if path == "/healthz" else 401
            assert _status(link, method.upper(), path.replace("{id}", "0" * 12).replace("{n}", "1"), {}) == expected, (
                f"{method} {path}"
            )
    assert _status(link, "GET", "/no/such/path", None) == 401
    link.close()


def _status(link: ControlLink, method: str, path: str, document: dict[str, object] | None) -> int:
    try:
        link.call(method, path, None if method == "GET" else document, max_retries=0)
    except ControlRefusal as refusal:
        return refusal.status
    return 200


def test_a_flapping_instance_costs_no_call(world: Controlled) -> None:
    """F07: an instance that comes and goes ten times a second: at most five changes a second are applied, 0 failed."""
    token = JoinToken.parse(world.token("backend"))
    csr, key = make_csr(SpiffeId.for_service(DOMAIN, "backend"))
    issued = RemoteAuthority([world.url], DOMAIN, "x").enrol(token, csr)
    tls = SvidTls(Svid.load(issued.chain_pem, key), TrustBundle(DOMAIN, issued.bundle_pem), EXPECTED)
    link, stop, flaps = ControlLink([world.url], tls), threading.Event(), [0]

    def flap() -> None:
        while not stop.wait(0.05):
            flaps[0] += 1
            what = ("register", {"address": "127.0.0.1:9"}) if flaps[0] % 2 else ("deregister", {})
            link.ask("POST", f"/v1/{what[0]}", {"instance": "flapping", **what[1]})

    async def scenario() -> tuple[object, int, float]:
        async with caller(world) as mesh:
            client = mesh.client("backend")
            await client.get("/who")
            applied = 0
            put = mesh._engine.put_in_force

            def counted(*args: object, **kwargs: object) -> None:
                nonlocal applied
                applied += 1
                put(*args, **kwargs)  # type: ignore[arg-type]

            mesh._engine.follower._policy._put_in_force = counted  # type: ignore[union-attr,assignment]
            thread = threading.Thread(target=flap)
            began = time.monotonic()
            thread.start()
            async with load(lambda _: client.get("/who"), 200) as running:
                await asyncio.sleep(4.0)
            took = time.monotonic() - began
            stop.set()
            await asyncio.to_thread(thread.join)
        return running.figures, applied, took

    figures, applied, took = asyncio.run(scenario())
    link.close()
    print(f"F07: {figures}; {flaps[0]} flaps, {applied / took:.1f} changes applied a second")
    assert figures.failures == []  # type: ignore[attr-defined]
    assert applied / took <= 5.0
    assert flaps[0] >= 10
