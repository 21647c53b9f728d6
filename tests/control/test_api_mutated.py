"""The API over ASGI, and requests that are nearly good: MESHLIB_FUZZ says how many, MESHLIB_SEED which."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from meshlib.control.openapi import OPERATIONS
from meshlib.identity.join_token import JoinToken

from .config_service import Service, played
from .test_api import BODIES

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
    {"if-match": "*"}, {"if-match": "x"}, {"authorization": "Bearer"}, {"authorization": "Bearer " + "x" * 600}, {"range": "bytes=0-1"},
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
        service.gate.failed = lambda address: None  # type: ignore[method-assign]
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
            path = (
                operation.path.replace("{id}", "0123456789ab").replace("{n}", "1")
                if rng.random() < 0.9
                else rng.choice(PATHS)
            )
            document = BODIES.get(operation.does, {})
            if operation.does == "put_policy" and rng.random() < 0.7:
                text = bytearray(document["document"].encode())
                at = rng.randint(0, len(text))
                text[at : at + 2] = rng.choice(PIECES[:12])
                document = {"document": text.decode("utf-8", "surrogateescape")}
            headers = rng.choice(HEADERS) if rng.random() < 0.2 else {}
            if operation.does == "put_policy" and rng.random() < 0.9:
                headers = {"if-match": "*", **headers}
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
    assert counts[400] > COUNT // 15
