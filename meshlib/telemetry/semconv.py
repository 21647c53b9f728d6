"""What spans are called and what they carry: OpenTelemetry semantic conventions for HTTP (stable), and `meshlib.*`.

The only text of a caller's making is the path, without its query (which may hold a token), on one line. So `url.full`,
which the conventions want on clients, is not given.
"""

from __future__ import annotations

from opentelemetry.util.types import AttributeValue

from ..call import Call
from ..endpoint import Endpoint
from .one_line import one_line

Attributes = dict[str, AttributeValue]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
"""What a span may name; another method is `_OTHER`, as the conventions want."""
PATH_CHARS_MAX = 1024


def span_name(call: Call, target: str) -> str:
    """`GET orders`; `HTTP orders` for a method that the conventions do not know; `target` has few values."""
    method = call.method if call.method in METHODS else "HTTP"
    return f"{method} {target}" if target else method


def request_attributes(call: Call) -> Attributes:
    """Of every span."""
    path = call.target.partition(b"?")[0][:PATH_CHARS_MAX].decode("latin-1")
    attributes: Attributes = {
        "http.request.method": call.method if call.method in METHODS else "_OTHER",
        "url.path": one_line(path),
    }
    if call.route is not None:
        attributes["meshlib.route"] = call.route.name
    return attributes


def endpoint_attributes(endpoint: Endpoint) -> Attributes:
    """Of every attempt at `endpoint`."""
    return {"server.address": endpoint.host, "server.port": endpoint.port, "meshlib.endpoint": endpoint.address}


def attempt_attributes(call: Call) -> Attributes:
    """Of this attempt: how many came before it, and why its endpoint was picked."""
    attributes: Attributes = {"http.request.resend_count": call.number - 1} if call.number > 1 else {}
    for attempt in call.trail:
        if attempt.number == call.number:
            attributes["meshlib.picked"] = attempt.why_picked
    return attributes


def caller_attributes(call: Call) -> Attributes:
    """Of a served call: its verified caller."""
    peer = None if call.served is None else call.served.peer
    return {} if peer is None else {"meshlib.peer": str(peer)}
