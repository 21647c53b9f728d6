"""Session persistence: calls of one session go to one endpoint while it can be used. Sources: Gateway API GEP-1619,
Envoy `stateful_session`, gRFC A55.

A cookie or a header names the endpoint by a key that is made from its address; the balancer takes the endpoint of that
key where it may be picked, and chooses as ever where not. The reply says the key when it came from another endpoint:
that is where the session is now. It is a preference, no proof: who sends a key chooses an endpoint, nothing more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..call import HeaderEdit
from .request import cookies

if TYPE_CHECKING:
    from ..call import Call, Reply
    from ..stack import Service

_IN_A_PATH = "!$%&'()*+,/:=@"  # not the semicolon, which would end the attribute
_IS_KEY = re.compile(r"[0-9a-f]{16}").fullmatch


def endpoint_key(service: str, address: str) -> str:
    """16 hex digits for an endpoint of `service`: the same in every process, and an address cannot be read from it
    (but it can be guessed and checked).
    """
    return blake2b(f"{service}|{address}".encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPersistence:
    """A filter, above retry; exactly one of `cookie` and `header` is a name. `path`: of the cookie. `ttl_s`: its life
    from when it was set, in seconds; None: as long as the browser runs.
    """

    cookie: str = ""
    header: str = ""
    ttl_s: float | None = None
    path: str = "/"

    async def __call__(self, call: Call, service: Service) -> Reply:
        call.preferred = self.asked(call)
        reply = await service(call)
        attempts = call.trail.attempts
        if attempts and attempts[-1].key not in ("", call.preferred):
            secure = call.listener is not None and call.listener.scheme == "https"
            reply.edit_headers(self.told(attempts[-1].key, secure=secure))
        return reply

    def asked(self, call: Call) -> str:
        """The key that the call names; "" where it names none, or what is no key."""
        values = cookies(call.header("cookie"), self.cookie) if self.cookie else call.header(self.header)
        return next((value for value in values if _IS_KEY(value)), "")

    def told(self, key: str, *, secure: bool) -> HeaderEdit:
        """What the reply says. `secure`: the request came by https."""
        if not self.cookie:
            return HeaderEdit(set=((self.header, key),))
        parts = [f"{self.cookie}={key}", f"Path={quote(self.path, _IN_A_PATH)}", "HttpOnly", "SameSite=Lax"]
        if self.ttl_s is not None:
            parts.append(f"Max-Age={max(1, round(self.ttl_s))}")
        if secure:
            parts.append("Secure")
        return HeaderEdit(add=(("set-cookie", "; ".join(parts)),))
