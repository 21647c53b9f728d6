"""CORS at a gateway: which pages of other origins may read the answers. Sources: Fetch standard §3.2, Gateway API
HTTPCORSFilter.

Rules.
  * A preflight (OPTIONS with Origin and Access-Control-Request-Method) is answered here: 200 and what is allowed, or
    403 where the origin is not. Whether method and headers are among what is allowed is for the browser to decide.
  * Every other request goes on. What the backend says in `access-control-*` is taken out of the reply: the policy says
    it. An allowed origin gets its own back, never `*`; every reply varies by Origin, so that no cache mixes them up.
  * A wildcard for methods or headers is answered with what was asked for: `*` would not cover Authorization, and means
    nothing together with credentials. Exposed with credentials, `*` is the fields that the reply has.
  * `null`, the origin of sandboxed frames and local files, is allowed by `*` alone, and never with credentials.
  * Scheme and host are compared without regard to case, a port that is the scheme's own as if it were not there.
    `*.` takes any number of labels, but not none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..call import Call, Reply
from .redirect import WELL_KNOWN
from .refusal import reason, refusal

if TYPE_CHECKING:
    from ..call import Fields
    from ..stack import Service

REQUESTED_CHARS_MAX = 4096
"""Characters of Access-Control-Request-Headers; a longer one is not answered, so the browser refuses."""

_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]{0,31})://(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253}|\*|\*\.[a-z0-9._-]{1,253})(?::([0-9]{1,5}|\*))?"
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_FORBIDDEN = frozenset((b"set-cookie", b"set-cookie2"))  # forbidden response-header names (Fetch §2.2.2)


@dataclass(frozen=True, slots=True)
class Cors:
    """A filter. `allow_origins`: `scheme://host`, `scheme://*.host`, `scheme://*`, each with a port, `:*` for any; or
    `*` alone. `*` is possible in the other lists too; an empty list allows nothing beyond what Fetch always allows.
    `max_age_s` ≥ 0: seconds that a browser may keep what a preflight said.
    """

    allow_origins: tuple[str, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    allow_credentials: bool = False
    max_age_s: int = 5

    async def __call__(self, call: Call, service: Service) -> Reply:
        origins = call.header("origin")
        origin = origins[0] if len(origins) == 1 and self.allows(origins[0]) else None
        if call.method == "OPTIONS" and origins:
            methods = call.header("access-control-request-method")
            if methods:
                return self.preflight(origin, methods, call.header("access-control-request-headers"))
        reply = await service(call)
        reply.headers = self.shared(origin, reply.headers)
        return reply

    def allows(self, origin: str) -> bool:
        """May pages of this origin, as it was sent, read the answers?"""
        if origin == "null":
            return "*" in self.allow_origins and not self.allow_credentials
        asked = _ORIGIN.fullmatch(origin.lower())
        if asked is None or "*" in origin:
            return False
        return any(pattern == "*" or _takes(pattern.lower(), asked) for pattern in self.allow_origins)

    def preflight(self, origin: str | None, methods: list[str], headers: list[str]) -> Reply:
        """The answer to a preflight. `origin`: None where it is not allowed. `methods`, `headers`: the values of the
        fields Access-Control-Request-Method and -Headers.
        """
        if origin is None:
            reply = refusal(403, "cors", "this route's cors.allow_origins does not have the origin of this request")
            reply.headers.append((b"vary", b"Origin"))
            return reply
        fields = self._granted(origin)
        for name, allowed, asked in (
            (b"access-control-allow-methods", self.allow_methods, methods[:1]),
            (b"access-control-allow-headers", self.allow_headers, headers),
        ):
            said = _tokens(asked) if "*" in allowed else allowed
            if said:
                fields.append((name, ", ".join(said).encode("ascii")))
        if self.expose_headers and "*" not in self.expose_headers:
            fields.append((b"access-control-expose-headers", ", ".join(self.expose_headers).encode("ascii")))
        fields.append((b"access-control-max-age", b"%d" % self.max_age_s))
        fields.append((b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"))
        return Reply(200, [*fields, (b"content-length", b"0")], reason=reason(200))

    def shared(self, origin: str | None, fields: Fields) -> Fields:
        """The fields of a reply to an actual request; `origin`: None where there is none, or it is not allowed."""
        kept = [field for field in fields if not field[0].lower().startswith(b"access-control-")]
        if origin is not None:
            exposed = [name.encode("ascii") for name in self.expose_headers]
            if b"*" in exposed and self.allow_credentials:
                exposed = list({name.lower(): None for name, _ in kept if name.lower() not in _FORBIDDEN})
            granted = self._granted(origin)
            if exposed:
                granted.append((b"access-control-expose-headers", b", ".join(exposed)))
            kept += granted
        if not any(name.lower() == b"vary" and _names(value, b"origin") for name, value in kept):
            kept.append((b"vary", b"Origin"))
        return kept

    def _granted(self, origin: str) -> Fields:
        fields = [(b"access-control-allow-origin", origin.encode("ascii"))]
        if self.allow_credentials:
            fields.append((b"access-control-allow-credentials", b"true"))
        return fields


def _takes(pattern: str, asked: re.Match[str]) -> bool:
    wanted = _ORIGIN.fullmatch(pattern)
    if wanted is None or wanted[1] != asked[1]:
        return False
    own = str(WELL_KNOWN.get(asked[1], ""))
    if wanted[3] != "*" and (wanted[3] or own) != (asked[3] or own):
        return False
    host: str = wanted[2]
    return host in ("*", asked[2]) or (
        host.startswith("*.") and len(asked[2]) > len(host) - 1 and asked[2].endswith(host[1:])
    )


def _tokens(values: list[str]) -> list[str]:
    """The names in a list of them (RFC 9110 §5.6.1); none where one is no token, or they are too long."""
    joined = ",".join(values)
    if len(joined) > REQUESTED_CHARS_MAX:
        return []
    names = [name for part in joined.split(",") if (name := part.strip(" \t"))]
    return names if all(_TOKEN.fullmatch(name) for name in names) else []


def _names(value: bytes, wanted: bytes) -> bool:
    return any(part.strip(b" \t").lower() in (wanted, b"*") for part in value.split(b","))
