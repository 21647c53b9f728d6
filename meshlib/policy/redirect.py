"""Redirects: an answer that sends the caller elsewhere. Source: Gateway API HTTPRequestRedirectFilter.

Rules. What is not written is as in the request. The port is the one that is written; else, where a scheme is written,
that scheme's own; else the listener's; else, without a listener, that of the Host. A port that is the scheme's own is
not written out. The query stays.

Whoever asks must not decide where others are sent: a Host that is none, or is there twice, is answered with 400
(RFC 9112 §3.2); `Location` is absolute wherever a host is known; without one it is a path, which begins with exactly
one slash, so that no path is read as a host; characters that a URI cannot have, `\\` among them, are percent-encoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..call import Call, Reply
from .refusal import reason, refusal

if TYPE_CHECKING:
    from .url_rewrite import PathModifier

WELL_KNOWN = {"http": 80, "https": 443}
"""The port of a scheme, which is not written out."""
PORT_MAX = 65_535
"""The highest port of a Host field; with a higher one it is no host, and the answer is 400."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~-]{1,253})(?::([0-9]{0,5}))?")
_NOT_IN_A_URI = re.compile(rb"[^!-~]|[\"#<>\\^`{|}]")


@dataclass(frozen=True, slots=True)
class Redirect:
    """A service. None: as in the request. `status_code`: 301, 302, 303, 307 or 308."""

    scheme: str | None
    hostname: str | None
    path: PathModifier | None
    port: int | None
    status_code: int

    async def __call__(self, call: Call) -> Reply:
        hosts = call.header("host")
        location = self.location(hosts, call.target, call.matched_prefix, call.listener)
        if location is None:
            return refusal(400, "bad_host", "the Host field must be there once, and be a host, with or without a port")
        fields = [(b"location", location), (b"content-length", b"0")]
        return Reply(self.status_code, fields, reason=reason(self.status_code))

    def location(self, hosts: list[str], target: bytes, matched_prefix: str, listener: Any) -> bytes | None:
        """Where to go; None where `hosts`, the values of the Host field, is not at most one host.

        `listener` has the `scheme` and the `port` that the request came by, or is None.
        """
        host, asked_port = "", None  # type: str, int | None
        if hosts and hosts != [""]:
            found = _HOST.fullmatch(hosts[0])
            if found is None or len(hosts) > 1:
                return None
            host, asked_port = found[1], int(found[2]) if found[2] else None
            if asked_port is not None and not 0 < asked_port <= PORT_MAX:
                return None
        path, mark, query = target.partition(b"?")
        if self.path is not None:
            path = self.path.apply(path.decode("latin-1"), matched_prefix).encode("latin-1")
        rest = _NOT_IN_A_URI.sub(_percent, path) + mark + _NOT_IN_A_URI.sub(_percent, query)
        host = self.hostname or host
        if not host:
            return b"/" + rest.lstrip(b"/")
        scheme = self.scheme or (listener.scheme if listener is not None else "http")
        port = self._port(asked_port, listener)
        shown = "" if port is None or port == WELL_KNOWN.get(scheme) else f":{port}"
        return f"{scheme}://{host}{shown}".encode("ascii") + (rest if rest.startswith(b"/") else b"/" + rest)

    def _port(self, asked_port: int | None, listener: Any) -> int | None:
        if self.port is not None:
            return self.port
        if self.scheme is not None:
            return None
        if listener is None:
            return asked_port
        port: int = listener.port
        return port


def _percent(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]
