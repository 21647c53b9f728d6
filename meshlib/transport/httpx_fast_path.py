"""The fast path: a Call made straight from the arguments of `client.request(…)`, without httpx's Request and wrappers.

It decides nothing about HTTP that httpx does not: it is taken only when what httpx would send is known beforehand, and
that is looked at for every call, because httpx lets users change a client in place. Everything else is `None`: httpx's
own path, over the mesh transport. The private names of httpx that are read here are looked up once, at import; when one
is missing there is no fast path (`AVAILABLE`), and nothing else changes.
Measured (httpx 0.28, CPython 3.11, no network): httpx's own path 160 to 210 µs a call, this one about 10.
"""

from __future__ import annotations

import json as jsonlib
import re
from http.cookiejar import CookieJar
from typing import Any

import httpx
from httpx import _client as httpx_client_module

from ..call import Call, PhaseTimeouts
from .http1 import is_token
from .httpx_request import OURS, STREAMING, TIMEOUT_S, is_value, make_call, phases_of, render

URL_MAX = 4096
"""Longer URLs take httpx's path, which has a limit of its own."""
_EXTRA_MAX = 256
"""Header names of calls remembered per client; more only cost time."""
_UNTOUCHED = (b"host", b"content-length", b"transfer-encoding", b"traceparent", b"tracestate", b"cookie")
"""Fields that httpx or the mesh computes: a request that sets one takes httpx's path."""
_WITH_LENGTH = frozenset(("POST", "PUT", "PATCH"))
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

_SEGMENT = "[A-Za-z0-9_~-][A-Za-z0-9_~.-]*"
is_plain_path = re.compile(rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*/?)?(?:\?[A-Za-z0-9_~.=&-]+)?").fullmatch
"""A path that httpx would neither encode, resolve nor drop a part of. Never ambiguous, so it takes linear time."""

_PRIVATE = ("_auth", "_base_url", "_cookies", "_default_encoding", "_event_hooks", "_headers", "_mounts", "_params",
            "_state", "_timeout", "_transport", "_build_redirect_request", "_send_handling_redirects")  # fmt: skip


def missing_names() -> list[str]:
    """The private names of this httpx that the fast path wants and does not find."""
    client = httpx.Client(transport=httpx.BaseTransport(), trust_env=False)
    missing = [name for name in _PRIVATE if not hasattr(client, name)]
    wanted = ((client.headers, "_list"), (client.headers, "_encoding"), (client.cookies.jar, "_cookies"),
              (getattr(httpx_client_module, "ClientState", None), "CLOSED"))  # fmt: skip
    return missing + [name for owner, name in wanted if not hasattr(owner, name)]


AVAILABLE = not missing_names()
_STATE: Any = getattr(httpx_client_module, "ClientState", None)
OPENED: Any = getattr(_STATE, "OPENED", None)


Carrier = tuple[type[Any], str, Any]
"""Our transport's class, its method and that method as it was defined: another one, or a patched one, must be asked."""


class Plan:
    """What every plain call of a client has in common, rendered once; `fits` tells whether that is still so."""

    def __init__(self, client: Any, service: str, own_host: bool, carrier: Carrier) -> None:
        self.base, self.timeout, self.transport = client._base_url, client._timeout, client._transport
        self.listed, self.jar = list(client._headers._list), client._cookies.jar
        self.service, self.client_timeout_s = service, client._total_s
        self.phases = None if client._total_s is not None else phases_of(self.timeout.as_dict())
        self.prefix = self.base.raw_path[:-1]
        fields = [(name, value) for name, _, value in self.listed]
        rest, host = render(fields), b"Host: " + self.base.netloc + b"\r\n"
        self.lines, self.lines_without_body = host + rest, host + b"Content-Length: 0\r\n" + rest
        self.taken = frozenset(lower for _, lower, _ in self.listed).union(_UNTOUCHED)
        self.extra: dict[str, bytes] = {}
        self._kind, self._handle, self._handled_by = carrier
        self.simple = (
            own_host
            and type(self.transport) is self._kind
            and type(self.jar) is CookieJar
            and not self.base.query
            and not self.base.userinfo
            and self.base.scheme in ("http", "https")
            and all(is_token(name) and is_value(value) for name, value in fields)
            and not any(lower in _UNTOUCHED for _, lower, _ in self.listed)
        )

    def fits(self, client: Any) -> bool:
        """Nothing that this was made from has changed since."""
        return (
            client._headers._list == self.listed
            and client._base_url is self.base
            and client._timeout is self.timeout
            and client._transport is self.transport
            and client._cookies.jar is self.jar
        )

    def plain(self, client: Any) -> bool:
        """Nothing is set or patched that httpx's own path would have to look at."""
        hooks = client._event_hooks
        return (
            self.simple
            and client._auth is None
            and not self.jar._cookies
            and not client._params
            and not client._mounts
            and not hooks["request"]
            and not hooks["response"]
            and client._state is not _STATE.CLOSED
            and self._handle not in self.transport.__dict__
            and getattr(self._kind, self._handle) is self._handled_by
        )

    def header_lines(self, headers: Any, json: bool) -> bytes | None:
        """The lines of a call's own headers; None where httpx must see them."""
        if type(headers) is not dict:
            return None
        lines = b""
        for name, value in headers.items():
            rendered = self.extra.get(name)
            if rendered is None and (rendered := self._name(name)) is None:
                return None
            if type(value) is not str or not value.isascii() or not is_value(encoded := value.encode()):
                return None
            if json and rendered.lower() == b"content-type":
                return None
            lines += b"%b: %b\r\n" % (rendered, encoded)
        return lines

    def _name(self, name: Any) -> bytes | None:
        if type(name) is not str or not name.isascii() or not is_token(encoded := name.encode()):
            return None
        lower = encoded.lower()
        if lower in self.taken or lower.startswith(OURS):
            return None
        if len(self.extra) < _EXTRA_MAX:
            self.extra[name] = encoded
        return encoded


def fast_call(
    plan: Plan,
    method: str,
    url: str,
    content: Any,
    json: Any,
    headers: Any,
    timeout_s: float | None,
    phases: PhaseTimeouts | None,
) -> Call | None:
    """The Call, or None: httpx's own path then."""
    if method not in _METHODS or len(url) > URL_MAX or not is_plain_path(url):
        return None
    lines = plan.lines
    if json is None and not content and method in _WITH_LENGTH:
        lines = plan.lines_without_body
    if headers:
        own = plan.header_lines(headers, json is not None)
        if own is None:
            return None
        lines += own
    body = b""
    if json is not None:
        if content is not None:
            return None
        body = jsonlib.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        lines += b"Content-Length: %d\r\nContent-Type: application/json\r\n" % len(body)
    elif content is not None:
        if type(content) is not bytes:
            return None
        body = content
        if body:
            lines += b"Content-Length: %d\r\n" % len(body)
    return make_call(
        plan.service, method, plan.prefix + url.encode(), lines, body,
        streaming=False, timeout_s=timeout_s, client_timeout_s=plan.client_timeout_s, phases=phases,
    )  # fmt: skip


def make_request(plan: Plan, call: Call, headers: Any, json: bool, timeout: httpx.Timeout) -> httpx.Request:
    """The Request that httpx would have built for `call`."""
    merged = httpx.Headers()
    merged._list = list(plan.listed)
    merged.update(headers)
    extensions: dict[str, Any] = {"timeout": timeout.as_dict(), STREAMING: False}
    if call.timeout_s is not None:
        extensions[TIMEOUT_S] = call.timeout_s
    url = plan.base.copy_with(raw_path=call.target)
    body = call.body or None
    assert body is None or isinstance(body, bytes)
    request = httpx.Request(call.method, url, headers=merged, content=body, extensions=extensions)
    if json:
        request.headers["Content-Type"] = "application/json"
    return request
