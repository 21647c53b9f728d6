"""Answers made by the mesh: the header, the document, the bound."""

from __future__ import annotations

import json

from meshlib.policy.refusal import MESSAGE_CHARS_MAX, reason, refusal


def test_the_whole_answer():
    """Status with its phrase, x-meshlib-refused, a problem document of its own length."""
    reply = refusal(404, "no_route", "no route takes it", code=12)
    assert (reply.status, reply.reason, reply.code) == (404, b"Not Found", 12)
    assert json.loads(reply.body) == {"error": "no_route", "message": "no route takes it", "rule": ""}
    assert dict(reply.headers) == {
        b"content-type": b"application/problem+json",
        b"content-length": b"%d" % len(reply.body),
        b"x-meshlib-refused": b"no_route",
    }


def test_a_message_has_a_bound():
    """What comes from a caller is not sent back at any length."""
    assert len(json.loads(refusal(400, "x", "m" * MESSAGE_CHARS_MAX).body)["message"]) == MESSAGE_CHARS_MAX
    assert len(json.loads(refusal(400, "x", "m" * (MESSAGE_CHARS_MAX + 1)).body)["message"]) == MESSAGE_CHARS_MAX


def test_a_status_without_a_name():
    """499 is nobody's."""
    assert reason(499) == b""
