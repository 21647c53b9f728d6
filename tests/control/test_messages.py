"""Bodies: what is a message, and that everything else is refused with one sentence."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from meshlib.control.messages import (
    CSR_BYTES_MAX,
    FACTS_MAX,
    INTEGER_MAX,
    WANT_MAX,
    Enrol,
    Malformed,
    NewToken,
    Poll,
    PutPolicy,
    Register,
    Revoke,
    Rotate,
    parse,
)

POLL: dict[str, Any] = {
    "instance": "i-1",
    "want": ["inventory.default"],
    "have": {"trust": ["e1", 7], "service/inventory.default": ["e1", 8]},
    "rejected": {"endpoints/inventory.default": {"version": ["e1", 9], "why": "two at one address"}},
    "load": {"lag": 0.25, "inflight": 3},
    "info": {"version": "1"},
    "wait_s": 30,
    "serving": True,
}
REGISTER: dict[str, Any] = {"instance": "i-1", "address": "10.0.0.1:80", "weight": 3, "labels": {"version": "v2"}}


def body(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_a_poll_is_understood():
    """Every field, and a message of nothing but an instance."""
    poll = parse(Poll, body(POLL))
    assert (poll.want, poll.have["trust"], poll.serving) == (["inventory.default"], ("e1", 7), True)
    assert poll.rejected["endpoints/inventory.default"].version == ("e1", 9)
    assert (parse(Poll, b'{"instance":"i"}').wait_s, parse(Poll, b'{"instance":"i"}').want) == (0.0, [])


def test_processes_may_say_more_and_operators_not():
    """A newer process's field is passed over; an operator's typo is not taken for nothing."""
    assert parse(Poll, body({**POLL, "mood": "good"})).instance == "i-1"
    with pytest.raises(Malformed, match="roots"):
        parse(Rotate, b'{"roots": true}')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "the body"),
        (b"null", "the body"),
        (b'"text"', "the body"),
        (b'{"instance":"i","instance":"j"}', "there twice"),
        (b'{"instance":"i","load":{"a":1,"a":2}}', "there twice"),
        (b'{"instance":"i","wait_s":NaN}', "NaN"),
        (b'{"instance":"i","load":{"a":Infinity}}', "Infinity"),
        (b'{"instance":"i","load":{"a":1e999}}', "load.a"),
        (b'{"instance":"\\ud800"}', "the body"),
        (b'{"instance":"i","info":{"\\udfff":"x"}}', "the body"),
        (b'{"instance":"\xff"}', "not UTF-8"),
        ('{"instance":"i"}'.encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"instance":"i","want":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"instance":"i","want":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", "nested"),
        (b'{"instance":"i","wait_s":' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"instance":"i"} x', "not JSON"),
        (b'{"instance":"i",}', "not JSON"),
        (b"{'instance':'i'}", "not JSON"),
    ],
)
def test_what_is_no_json_of_ours_is_refused(text: bytes, said: str):
    """Twice the same key, numbers that are none, half characters, other encodings, depth: one sentence, no traceback."""
    with pytest.raises(Malformed, match=said) as refused:
        parse(Poll, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "document", "where"),
    [
        (Poll, {}, "instance"),
        (Poll, {"instance": ""}, "instance"),
        (Poll, {"instance": "a/b"}, "instance"),
        (Poll, {"instance": "i\n"}, "instance"),
        (Poll, {"instance": "i" * 129}, "instance"),
        (Poll, {"instance": 7}, "instance"),
        (Poll, {**POLL, "want": ["inventory"]}, "want"),
        (Poll, {**POLL, "want": ["Inventory.default"]}, "want"),
        (Poll, {**POLL, "want": ["a.b"] * (WANT_MAX + 1)}, "want"),
        (Poll, {**POLL, "want": "a.b"}, "want"),
        (Poll, {**POLL, "have": {"service/x": ["e", 1]}}, "have"),
        (Poll, {**POLL, "have": {"trust": ["e"]}}, "have"),
        (Poll, {**POLL, "have": {"trust": ["e", -1]}}, "have"),
        (Poll, {**POLL, "have": {"trust": ["e", 1.5]}}, "have"),
        (Poll, {**POLL, "have": {"trust": ["e", True]}}, "have"),
        (Poll, {**POLL, "have": {"trust": ["e", INTEGER_MAX + 1]}}, "have"),
        (Poll, {**POLL, "have": {"trust": ["", 1]}}, "have"),
        (Poll, {**POLL, "rejected": {"trust": {"version": ["e", 1]}}}, "why"),
        (Poll, {**POLL, "load": {str(number): 1.0 for number in range(FACTS_MAX + 1)}}, "load"),
        (Poll, {**POLL, "load": {"a": "1"}}, "load"),
        (Poll, {**POLL, "info": {"a": 1}}, "info"),
        (Poll, {**POLL, "info": {"a": "x" * 257}}, "info"),
        (Poll, {**POLL, "wait_s": 61}, "wait_s"),
        (Poll, {**POLL, "wait_s": -0.5}, "wait_s"),
        (Poll, {**POLL, "wait_s": "30"}, "wait_s"),
        (Poll, {**POLL, "serving": 1}, "serving"),
        (Register, {**REGISTER, "address": "10.0.0.1"}, "address"),
        (Register, {**REGISTER, "address": "10.0.0.1:0"}, "address"),
        (Register, {**REGISTER, "address": "0.0.0.0:80"}, "address"),
        (Register, {**REGISTER, "address": "[::]:80"}, "address"),
        (Register, {**REGISTER, "address": "169.254.169.254:80"}, "address"),
        (Register, {**REGISTER, "address": "224.0.0.1:80"}, "address"),
        (Register, {**REGISTER, "address": "[::ffff:169.254.169.254]:80"}, "address"),
        (Register, {**REGISTER, "address": "[::ffff:0.0.0.0]:80"}, "address"),
        (Register, {**REGISTER, "address": "0xA9FEA9FE:80"}, "address"),
        (Register, {**REGISTER, "address": "0xa9.0xfe.0xa9.0xfe:80"}, "address"),
        (Register, {**REGISTER, "address": "host.0x7f.:80"}, "address"),
        (Register, {**REGISTER, "address": "host.1:80"}, "address"),
        (Register, {**REGISTER, "address": "2852039166:80"}, "address"),
        (Register, {**REGISTER, "address": "a b:80"}, "address"),
        (Register, {**REGISTER, "weight": 0}, "weight"),
        (Register, {**REGISTER, "weight": 129}, "weight"),
        (Register, {**REGISTER, "labels": {"": "x"}}, "labels"),
        (Register, {**REGISTER, "labels": {str(number): "" for number in range(65)}}, "labels"),
        (Register, {**REGISTER, "zone": "z" * 257}, "zone"),
        (Enrol, {"csr": ""}, "csr"),
        (Enrol, {"csr": "x" * (CSR_BYTES_MAX + 1)}, "csr"),
        (Enrol, {"csr": "x", "instance": "é"}, "instance"),
        (NewToken, {"service": "orders"}, "service"),
        (NewToken, {"service": "control.meshlib"}, "own"),
        (NewToken, {"service": "signer.meshlib"}, "own"),
        (NewToken, {"service": "orders.default", "uses": 0}, "uses"),
        (NewToken, {"service": "orders.default", "ttl_s": 0}, "ttl_s"),
        (NewToken, {"service": "orders.default", "ttl_s": 1e9}, "ttl_s"),
        (PutPolicy, {"document": ""}, "document"),
        (Rotate, {"root": "yes"}, "root"),
        (Revoke, {"serial": "0x12"}, "serial"),
        (Revoke, {"serial": "f" * 41}, "serial"),
    ],
)
def test_a_field_that_is_out_of_bounds_is_named(model: Any, document: Any, where: str):
    """Missing, of another type, too long, too many, or what nobody could reach: the sentence says which."""
    with pytest.raises(Malformed, match=where):
        parse(model, body(document))


def test_at_the_bounds_it_is_still_a_message():
    """The longest, largest and most that are allowed."""
    parse(Poll, body({**POLL, "want": ["a.b"] * WANT_MAX, "wait_s": 60, "have": {"trust": ["e" * 64, INTEGER_MAX]}}))
    parse(Poll, body({"instance": "i" * 128, "load": {str(number): -1e300 for number in range(FACTS_MAX)}}))
    parse(Register, body({**REGISTER, "weight": 128, "labels": {str(number): "x" * 256 for number in range(64)}}))
    parse(Register, body({**REGISTER, "address": "[2001:db8::1]:65535"}))
    parse(Register, body({**REGISTER, "address": "inventory.example:1"}))
    parse(Register, body({**REGISTER, "address": "1.inventory-1.e0x1:1"}))
    parse(Enrol, body({"csr": "x" * CSR_BYTES_MAX}))


def test_a_body_of_keys_that_are_there_twice_costs_little():
    """As many keys as fit, the last of them twice: refused in a moment, because strangers may send it."""
    text = ("{" + ",".join(f'"{number:x}":0' for number in range(90_000)) + ',"15f8f":0}').encode()
    began = time.process_time()
    with pytest.raises(Malformed, match="there twice"):
        parse(Enrol, text)
    assert time.process_time() - began < 1.0


def test_a_refusal_does_not_repeat_what_was_sent():
    """What was sent may be a secret in the wrong field; the log and the answer do not have it."""
    with pytest.raises(Malformed) as refused:
        parse(NewToken, body({"service": "hunter2 hunter2"}))
    assert "hunter2" not in str(refused.value)
