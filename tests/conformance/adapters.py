"""The vectors of other projects, answered by meshlib: `run("file.key", entry)`.

True: as the entry expects. False: not. None: the entry's expectation is null (contested, decided in an ADR), or the
entry is named in exceptions.yaml with the reason why it does not apply. Imports nothing of the tests and looks nothing
up by the current folder: it runs wherever meshlib is installed. One function per key, in the order of the files; what
needs more than a few lines is a file of its own beside this one (`PARTS`), found by this one's place.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import functools
import importlib.util
import queue
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Entry = dict[str, Any]
SEED = 20250301
EXCEPTIONS: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "exceptions.yaml").read_text()) or {}


def run(name: str, entry: Entry) -> bool | None:
    """Does meshlib do what `entry` of `name` (file.key, as `misc.breaker`) expects? KeyError: no such name."""
    check = CHECKS[name]
    if entry_id(entry) in EXCEPTIONS.get(name, {}):
        return None
    return check(entry)


def entry_id(entry: Entry) -> str:
    """What an entry is called in exceptions.yaml: its name, its id, or its input."""
    for key in ("name", "id", "in", "value", "traceparent", "retry", "header"):
        if key in entry:
            return str(entry[key])
    return ""


# misc.json


def retry_after(entry: Entry) -> bool:
    from meshlib.policy.retry_after import CAP_S, retry_after_s

    cap_s = entry.get("max_s", CAP_S if "accept" in entry else float("inf"))
    delay_s = retry_after_s(entry["value"], entry.get("status", 503), entry["now_unix"], cap_s)
    if "accept" in entry:
        return {cap_s: "cap", None: "ignore"}.get(delay_s) in entry["accept"]
    return bool(delay_s == entry["delay_s"])


def retry_budget(entry: Entry) -> bool:
    from meshlib.policy.budget import RetryBudget

    try:
        budget = RetryBudget(
            entry.get("percent_can_retry", 0.2), entry.get("min_retries_per_s", 10), entry.get("ttl_s", 10)
        )
    except ValueError:
        return entry.get("valid") is False
    if entry.get("valid") is False:
        return False
    retried = 0
    for _ in range(entry["requests"]):
        budget.deposit(1000.0)
        retried += budget.withdraw(1000.0)
    return bool(abs(retried - entry["expect_retried"]) <= entry.get("tolerance", 0))


def breaker(entry: Entry) -> bool:
    from meshlib.policy.breaker import Breaker, BreakerPolicy

    asked = entry["params"]
    policy = BreakerPolicy(
        max_failures=asked["max_failures"],
        base_s=asked.get("backoff_min_s", 1.0),
        max_s=asked.get("backoff_max_s", 100.0),
        jitter=asked.get("jitter", 0.0),
    )
    made, rng, probing = Breaker(policy), random.Random(SEED), False
    steps = entry.get("steps") or [{"event": event} for event in entry["events"]]
    for step in steps:
        now = float(step.get("t", 0.0))
        if step.get("event") == "fail":
            made.failed(now, rng, probing)
            probing = False
        elif step.get("event") == "success":
            made.succeeded(probing)
            probing = False
        elif step.get("event") == "straggler success":
            made.succeeded(False)
        if "permits" in step:
            begun = [made.begin(now) for _ in range(step["permits"] + 1)]
            if sum(begun) != step["permits"] or made.admits(now):
                return False
            probing = True
        if made.state(now) != step.get("state", made.state(now)):
            return False
    return bool(made.state(0.0) == entry.get("state", made.state(0.0)))


def envoy_backoff(entry: Entry) -> bool:
    from meshlib.policy.backoff import backoff_s, ceiling_s

    base_s, below_s = entry["base_ms"] / 1000, entry["max_exclusive_ms"] / 1000
    rng = random.Random(SEED)
    waits = [backoff_s(entry["retry"], base_s, 10 * base_s, rng) for _ in range(1000)]
    spread = 0.0 <= min(waits) < 0.05 * below_s and 0.95 * below_s < max(waits) < below_s
    return bool(spread and abs(ceiling_s(entry["retry"], base_s, 10 * base_s) - below_s) < 1e-9)


def durations_gep2257(entry: Entry) -> bool:
    from meshlib.config.units import format_duration, parse_duration

    try:
        seconds = parse_duration(entry["in"])
    except ValueError:
        return not entry["valid"]
    return bool(entry["valid"] and seconds * 1000 == entry["ms"] and format_duration(seconds) == entry["canonical"])


def http_date(entry: Entry) -> bool:
    """The three forms of RFC 9110; what else looks like a date may be taken for one or not."""
    from meshlib.policy.http_date import http_date_unix

    found = http_date_unix(entry["in"], 1.7e9)
    return found == entry["unix"] if entry["strict_http"] else found in (None, entry["unix"])


# traceparent.json


def traceparent_parse(entry: Entry) -> bool:
    from meshlib.telemetry.traceparent import parse_traceparent

    return (parse_traceparent([entry["traceparent"]]) is not None) is entry["valid"]


def propagation(entry: Entry) -> bool:
    """A request through the server's trace filter, whose handler calls out through the client's; recorded and not."""
    return all(
        _propagated(entry["expect"], _outgoing(entry["incoming"], entry.get("outgoing_calls", 1), sample))
        for sample in (0.0, 1.0)
    )


def _outgoing(incoming: list[list[str]], calls: int, sample: float) -> list[list[tuple[str, str]]]:
    from meshlib.call import Call, Reply
    from meshlib.endpoint import Endpoint
    from meshlib.served import Served
    from meshlib.telemetry.traceparent import render
    from meshlib.telemetry.tracing import AttemptTrace, CallTrace, ServedTrace, Tracing
    from meshlib.transport.asgi import remote_trace

    tracing = Tracing(sample, random.Random(SEED))
    outer, inner = CallTrace(tracing, "below"), AttemptTrace(tracing, Endpoint("127.0.0.1", 80))
    sent: list[list[tuple[str, str]]] = []

    async def leaf(call: Call) -> Reply:
        lines = b"" if call.trace is None else render(call.trace)
        pairs = [line.decode("latin-1").partition(": ") for line in lines.split(b"\r\n") if line]
        sent.append([(name, value) for name, _, value in pairs])
        return Reply(200, [])

    async def attempt(call: Call) -> Reply:
        return await inner(call, leaf)

    async def handler(call: Call) -> Reply:
        for _ in range(calls):
            await outer(Call("below", "GET", b"/", served=call.served), attempt)
        return Reply(200, [])

    async def serve() -> None:
        lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in incoming)
        call = Call("here", "GET", b"/", lines, served=Served(time.monotonic))
        call.trace = remote_trace(call)
        await ServedTrace(tracing)(call, handler)

    asyncio.run(serve())
    return sent


def _propagated(expect: Entry, sent: list[list[tuple[str, str]]]) -> bool:
    from meshlib.telemetry.traceparent import parse_traceparent

    parents = [[value for name, value in fields if name == "traceparent"] for fields in sent]
    ids = [(values[0].split("-")[1], values[0].split("-")[2]) for values in parents if parse_traceparent(values)]
    states = [value for fields in sent for name, value in fields if name == "tracestate"]
    members = [member for state in states for member in state.split(",")]
    keys = {member.partition("=")[0]: member.partition("=")[2] for member in members}
    at = members.index
    checks: dict[str, Callable[[Any], bool]] = {
        "outgoing_traceparent_valid": lambda _: bool(sent) and len(ids) == len(sent),
        "trace_id": lambda wanted: all(trace == wanted for trace, _ in ids),
        "trace_id_not": lambda unwanted: all(trace not in unwanted for trace, _ in ids),
        "parent_id_not": lambda unwanted: all(parent != unwanted for _, parent in ids),
        "distinct_trace_ids": lambda number: len({trace for trace, _ in ids}) == number,
        "distinct_parent_ids": lambda number: len({parent for _, parent in ids}) == number,
        "tracestate_discarded": lambda _: not states,
        "empty_tracestate_not_forwarded": lambda _: all(states),
        "tracestate_has": lambda wanted: all(keys.get(key) == value for key, value in wanted.items()),
        "tracestate_lacks": lambda unwanted: not keys.keys() & set(unwanted),
        "tracestate_contains": lambda wanted: set(wanted) <= set(members),
        "tracestate_contains_any": lambda wanted: bool(set(wanted) & set(members)),
        "tracestate_order": lambda pairs: all(a in members and b in members and at(a) < at(b) for a, b in pairs),
    }
    return all(checks[key](value) for key, value in expect.items())


# spiffe_ids.json


def spiffe_id(entry: Entry) -> bool | None:
    from meshlib import SpiffeId

    if entry["valid"] is None:
        return None
    try:
        parsed = SpiffeId.parse(entry["id"])
    except ValueError:
        return not entry["valid"]
    same = parsed.trust_domain == entry.get("trust_domain", parsed.trust_domain)
    return bool(
        entry["valid"] and same and parsed.path == entry.get("path", parsed.path) and str(parsed) == entry["id"]
    )


def matcher(entry: Entry) -> bool:
    from meshlib.identity import spiffe

    parse, argument = spiffe.SpiffeId.parse, entry.get("arg") or ""
    matches = {
        "any": lambda: spiffe.matches_any(),
        "exact": lambda: spiffe.matches_id(parse(argument)),
        "one_of": lambda: spiffe.matches_one_of(*map(parse, argument)),
        "member_of": lambda: spiffe.matches_member_of(argument),
    }[entry["matcher"]]()
    return matches(parse(entry["id"]) if entry["id"] else None) is entry["match"]


def x509svid(entry: Entry) -> bool:
    from cryptography.hazmat.primitives.serialization import Encoding

    from meshlib.identity.svid import PeerIdentityError, TrustBundle, verify_svid

    made = _Certificates()
    chain = [certificate.public_bytes(Encoding.DER) for certificate in made.chain(entry["leaf"])]
    bundles = {
        trust_domain: TrustBundle(
            trust_domain, b"".join(made.root(name)[0].public_bytes(Encoding.PEM) for name in names)
        )
        for trust_domain, names in entry["bundle"].items()
        if names  # a bundle without roots cannot be made: it is as none at all
    }
    try:
        proved = verify_svid(chain, bundles, time.time())
    except PeerIdentityError:
        return not entry["valid"]
    return bool(entry["valid"] and str(proved) == entry.get("id", str(proved)))


class _Certificates:
    """The certificates that an x509svid entry describes in words."""

    LIFE_S = {"now": (-3600, 3600), "expired": (-7200, -3600), "future": (3600, 7200), "not_yet": (3600, 7200)}
    USAGES = ("digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement",
              "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly")  # fmt: skip

    def __init__(self) -> None:
        self._roots: dict[str, tuple[Any, Any]] = {}

    def root(self, name: str) -> tuple[Any, Any]:
        """(certificate, key) of a CA by its name."""
        if name not in self._roots:
            self._roots[name] = self._issue(None, {"ca": True, "key_usage": ["keyCertSign"], "subject": name})
        return self._roots[name]

    def chain(self, leaf: Entry) -> list[Any]:
        """What the peer sends, leaf first. `issuer` is a CA, `int1<-ca1`, or `leaf-of-ca1`."""
        above, _, root = leaf["issuer"].rpartition("<-")
        if leaf["issuer"].startswith("leaf-of-"):
            above, root = "leaf", leaf["issuer"].removeprefix("leaf-of-")
        signer, sent = self.root(root), []
        if above == "leaf":
            other = {"ca": False, "key_usage": ["digitalSignature"], "uri_sans": ["spiffe://domain1.test/issuer"]}
            signer = self._issue(signer, other)
            sent = [signer[0]]
        elif above:
            signer = self._issue(signer, {"ca": True, "key_usage": ["keyCertSign"], "subject": above})
            sent = [signer[0]] if leaf.get("send_intermediate", True) else []
        return [self._issue(signer, leaf)[0], *sent]

    def _issue(self, signer: tuple[Any, Any] | None, words: Entry) -> tuple[Any, Any]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
        subject = words.get("subject", "SPIRE")
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject)] if subject else [])
        issuer, signing = (name, key) if signer is None else (signer[0].subject, signer[1])
        begins, ends = self.LIFE_S[words.get("validity", "now")]
        usage = x509.KeyUsage(*(word in words["key_usage"] for word in self.USAGES))
        theirs = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
        builder = (
            x509.CertificateBuilder(subject_name=name, issuer_name=issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(seconds=begins))
            .not_valid_after(now + dt.timedelta(seconds=ends))
            .add_extension(x509.BasicConstraints(words["ca"], None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(theirs, critical=False)
        )
        if words.get("eku"):
            purposes = {"serverAuth": ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH}
            builder = builder.add_extension(x509.ExtendedKeyUsage([purposes[p] for p in words["eku"]]), critical=False)
        if words.get("uri_sans"):
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in words["uri_sans"]])
            builder = builder.add_extension(names, critical=words.get("san_critical", False))
        return builder.sign(signing, hashes.SHA256()), key


# http_malformed.json: over real sockets, as strangers would send it


class Wire:
    """A server of ours that counts what its application saw, and a peer that answers our client with given bytes."""

    def __init__(self) -> None:
        from meshlib import Mesh
        from meshlib.transport.serving import MeshServer

        plain = {"version": 1, "mesh": "vectors", "defaults": {"mtls": "disabled", "retries": {"max_retries": 0}}}
        self.seen, self.script, self.accepted = 0, b"", 0
        listening: queue.SimpleQueue[str] = queue.SimpleQueue()
        host = Mesh("target", plain)._own_host()
        server = MeshServer(self._application, host, on_listening=listening.put)
        threading.Thread(target=server.run, daemon=True).start()
        name, _, port = listening.get(timeout=30).rpartition(":")
        self.server = (name, int(port))
        peer = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._answer, args=(peer,), daemon=True).start()
        address = f"127.0.0.1:{peer.getsockname()[1]}"
        self.caller = Mesh("caller", {**plain, "services": {"peer": {"endpoints": [{"static": [address]}]}}})

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # no lifespan: the adapter takes that for an answer
        self.seen += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def _answer(self, peer: socket.socket) -> None:
        while True:
            connection, _ = peer.accept()
            self.accepted += 1
            with connection:
                data = b""
                while not data.endswith(b"\r\n\r\n") and (more := connection.recv(65536)):
                    data += more
                connection.sendall(self.script)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    def talk(self, data: bytes, patience_s: float = 1.0) -> bytes | None:
        """What our server says to these bytes until it closes or is silent for so long; None: not a word."""
        with socket.create_connection(self.server, 5) as connection:
            connection.settimeout(patience_s)
            connection.sendall(data)
            answer = b""
            try:
                while more := connection.recv(65536):
                    answer += more
            except ConnectionResetError:
                pass
            except TimeoutError:
                return answer or None
            return answer

    def call(self, script: bytes) -> bool:
        """Did our client end the call, by an error or a whole response, and not use the connection again?"""
        import httpx

        for self.script in (script, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"):
            before = self.accepted
            try:
                status = self.caller.sync_client("peer").get("/", timeout=2).status_code
            except httpx.TimeoutException:
                return False
            except httpx.HTTPError:
                status = 0
        return status == 200 and self.accepted == before + 1


@functools.cache
def wire() -> Wire:
    return Wire()


def malformed(entry: Entry) -> bool:
    data, line = base64.b64decode(entry["bytes_b64"]), wire()
    if entry["kind"] == "response":
        return line.call(data)
    before = line.seen
    answer = line.talk(data, 0.1 if entry["accept"] else 3.0)
    untouched = line.seen == before
    alive = (line.talk(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") or b"").endswith(b"ok")
    if entry["accept"]:
        return alive
    refused = answer == b"" or (answer or b"")[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 501")
    return alive and untouched and refused


def header_fields(entry: Entry) -> bool:
    """Sent by our client: refused here (LocalProtocolError), before a byte left."""
    import httpx

    line = wire()
    line.script, before = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", line.accepted
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in entry["headers"]]
    try:
        line.caller.sync_client("peer").get("/", headers=fields)
    except (httpx.LocalProtocolError, UnicodeEncodeError):  # httpx itself refuses a name that is not ASCII
        return line.accepted == before and (
            entry["valid"] is False or "rejecting" in str(entry) or "same" in str(entry)
        )
    return entry["valid"] is True


CHECKS: dict[str, Callable[[Entry], bool | None]] = {
    "http_malformed.http1": malformed,
    "http_malformed.header_validation": header_fields,
    "misc.retry_after": retry_after,
    "misc.retry_budget": retry_budget,
    "misc.breaker": breaker,
    "misc.envoy_backoff": envoy_backoff,
    "misc.durations_gep2257": durations_gep2257,
    "misc.http_date": http_date,
    "traceparent.traceparent_parse": traceparent_parse,
    "traceparent.propagation": propagation,
    "spiffe_ids.cases": spiffe_id,
    "spiffe_ids.matchers": matcher,
    "spiffe_ids.x509svid": x509svid,
}
"""Every name that `run` knows."""

PARTS: tuple[str, ...] = ("httproute", "grpc_words", "grpc_wire", "grpc_retries")
"""The files beside this one that answer for more names: each has `CHECKS`, as here."""


def part(name: str) -> Any:
    """The module of a file beside this one, wherever this one was loaded from."""
    spec = importlib.util.spec_from_file_location(f"vectors_{name}", Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"no {name}.py beside {__file__}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


for _name in PARTS:
    CHECKS.update(part(_name).CHECKS)
