"""Fragments and replies: everything that is wrong is one kind of error, and is not used."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from discovery.fragments import endpoint, fragment, signed, trust
from meshlib.discovery.fragment import (
    ENDPOINTS_MAX,
    LABELS_MAX,
    NEEDS_MAX,
    FragmentError,
    Signed,
    parse_fragment,
    parse_reply,
    peek,
)

RUNS = int(os.environ.get("MESHLIB_FUZZ", "500"))


def reply(**fields: Any) -> bytes:
    item = {"payload": signed("defaults", 1, {}).payload, "signature": "c2ln"}
    return json.dumps(
        {"epoch": "e1", "registered": True, "reconnect_s": 1.5, "signer": "PEM", "fragments": [item], **fields}
    ).encode()


def test_a_reply() -> None:
    """Its fields, and its fragments as they were signed, with their signer."""
    read = parse_reply(reply())
    assert (read.epoch, read.registered, read.reconnect_s) == ("e1", True, 1.5)
    assert read.signed == (Signed(signed("defaults", 1, {}).payload, "c2ln", "PEM"),)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>200 OK</html>", b"[]", b"null", b'{"epoch": "e"}', b"\xff\xfe", b"[" * 100_000,
        reply(registered="yes"), reply(epoch=7), reply(reconnect_s="soon"), reply(reconnect_s=float("nan")),
        reply(fragments={}), reply(fragments=[7]), reply(fragments=[{"payload": 1, "signature": "x"}]), reply(signer=None),
        reply(epoch="e" * 300),
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_no_reply(body: bytes) -> None:
    """HTML with 200, other JSON, wrong types, nesting without end: FragmentError."""
    with pytest.raises(FragmentError):
        parse_reply(body)


def test_the_wish_of_the_service_is_bounded() -> None:
    """It cannot keep a process away for a day, nor make it come back in the past."""
    assert parse_reply(reply(reconnect_s=1e300)).reconnect_s == 3600.0
    assert parse_reply(reply(reconnect_s=-5)).reconnect_s == 0.0


def test_the_content_of_each_resource() -> None:
    """As the data plane uses it: endpoints as Endpoint, serials as numbers, null as None."""
    (absent,) = fragment("endpoints/a.b", 1, [endpoint("[::1]:80", "absent", version="2")]).content
    assert (absent.host, absent.port, absent.absent, dict(absent.labels)) == ("::1", 80, True, {"version": "2"})
    assert fragment("trust", 1, trust(1, revoked=["ff", "0A"])).content.revoked == {255, 10}
    assert fragment("service/a.b", 1, None).content is None
    assert fragment("service/a.b", 1, {"policy": {"timeout": "1s"}, "needs": ["c.d"]}).content.needs == ("c.d",)
    assert fragment("defaults", 1, {"timeout": "1s"}).content == {"timeout": "1s"}


@pytest.mark.parametrize(
    ("resource", "content"),
    [
        ("defaults", None), ("defaults", []), ("service/a.b", []), ("service/a.b", {"policy": {}}),
        ("service/a.b", {"policy": 1, "needs": []}), ("service/a.b", {"policy": {}, "needs": ["no service"]}),
        ("service/a.b", {"policy": {}, "needs": ["a.b"] * (NEEDS_MAX + 1)}), ("endpoints/a.b", {}),
        ("endpoints/a.b", [7]), ("endpoints/a.b", [endpoint("nowhere")]), ("endpoints/a.b", [endpoint("h:0")]),
        ("endpoints/a.b", [endpoint("h:70000")]), ("endpoints/a.b", [endpoint("h:1", "gone")]),
        ("endpoints/a.b", [{**endpoint("h:1"), "weight": 0}]), ("endpoints/a.b", [{**endpoint("h:1"), "weight": True}]),
        ("endpoints/a.b", [{**endpoint("h:1"), "labels": {"a": 1}}]), ("endpoints/a.b", [endpoint("h:1")] * 2),
        ("endpoints/a.b", [{**endpoint("h:1"), "labels": {str(n): "" for n in range(LABELS_MAX + 1)}}]),
        ("endpoints/a.b", [endpoint(f"h{n}:1") for n in range(ENDPOINTS_MAX + 1)]),
        ("trust", None), ("trust", trust(1, revoked=["xyz"])), ("trust", trust(1, bundle=7)), ("trust", {}),
        ("nothing", {}), ("service/../x", {}), ("service/a", {}),
    ],
    ids=range(26),
)  # fmt: skip
def test_what_is_no_fragment(resource: str, content: Any) -> None:
    """Each is FragmentError, and what can be named is named."""
    with pytest.raises(FragmentError):
        fragment(resource, 1, content)


@pytest.mark.parametrize("field", ["resource", "epoch", "n", "mesh", "content"])
def test_a_fragment_lacks_nothing(field: str) -> None:
    """Without any of its fields it is none."""
    data = json.loads(signed("defaults", 1, {}).payload)
    del data[field]
    with pytest.raises(FragmentError):
        parse_fragment(Signed(json.dumps(data), "", ""))


def test_what_cannot_be_used_can_be_named() -> None:
    """`peek` gives resource and version where they are there; else nothing."""
    assert peek(signed("service/a.b", 7, "nonsense")) == ("service/a.b", ("e1", 7))
    assert peek(Signed("{", "", "")) is None
    assert peek(signed("no such thing", 7, {})) is None


@pytest.mark.fuzz
def test_mutated_text_is_read_or_refused() -> None:
    """Any change of a byte, a field or a type: a Fragment, or FragmentError; never another exception."""
    rng = random.Random(20)
    texts = [
        signed("trust", 3, trust(3)).payload,
        signed("service/a.b", 4, {"policy": {"timeout": "1s", "routes": []}, "needs": ["c.d"]}).payload,
        signed("endpoints/a.b", 5, [endpoint("127.0.0.1:1", v="1"), endpoint("[::1]:2", "absent")]).payload,
    ]
    read = 0
    for _ in range(RUNS):
        text = list(rng.choice(texts))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(text))
            match rng.randint(0, 3):
                case 0:
                    text[at] = rng.choice('{}[]",:0x9-e"\\\x00é\ud800')
                case 1:
                    text = [*text[:at], *text[at + 1 :]] or ["{"]
                case 2:
                    text.insert(at, rng.choice(["null", "1e999", "{}", "[]", '"', "-"]))
                case _:
                    text = text[:at] or ["{"]
        try:
            parse_fragment(Signed("".join(text), "", ""))
            read += 1
        except FragmentError:
            pass
    assert read < RUNS
