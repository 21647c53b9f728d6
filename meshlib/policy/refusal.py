"""Answers that the mesh makes in the place of an endpoint: a status, `x-meshlib-refused` and a problem document.

What bears the header was not seen by any application, so a retry may take it as "not processed". Source: RFC 9457.
The server's half of this is `transport/refusal.py`.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from ..call import Reply

MESSAGE_CHARS_MAX = 2000
"""Characters of the message of an answer that the mesh makes itself; the rest is cut off."""


def refusal(status: int, kind: str, message: str, *, code: int | None = None) -> Reply:
    """The whole answer. `kind`: one word for programs; `message`: a sentence for people; `code`: as in Reply."""
    body = json.dumps({"error": kind, "message": message[:MESSAGE_CHARS_MAX], "rule": ""}).encode()
    fields = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-meshlib-refused", kind.encode("ascii")),
    ]
    return Reply(status, fields, body, reason=reason(status), code=code)


def reason(status: int) -> bytes:
    """The reason phrase of a status (RFC 9110 §15), or b"" where it has none."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
