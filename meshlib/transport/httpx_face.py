"""What the two httpx clients share, without I/O: options, timeouts, cookies, and what goes over the fast path.

The rules are those of `httpx_client`. Everything here is looked at per call, because httpx lets users change a client
in place and patch its methods.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from ..call import Call, Reply
from ..errors import UnknownService
from . import httpx_fast_path as fast_path
from .content_encoding import CODECS
from .httpx_fast_path import Carrier, Plan, fast_call, make_request
from .httpx_request import CLIENT_TIMEOUT_S, STREAMING, TIMEOUT_S, LazyRequest
from .httpx_response import ENCODED, LOCATION, SET_COOKIE, LazyResponse, decoded, header_list
from .httpx_transport import HOST, Destination, OneService, Resolver

if TYPE_CHECKING:
    from httpx._client import BaseClient, UseClientDefault
else:
    BaseClient = object

REFUSED = {
    "transport": "the mesh is the transport; mesh.transport() gives it to a client of your own",
    "mounts": "every call goes through the mesh",
    "proxy": "there is no proxy between a caller and its service",
    "verify": "the mesh verifies SPIFFE identities; `mtls` in mesh.yaml says how strictly",
    "cert": "the certificate is the identity of this process, from `identity` in mesh.yaml",
    "http1": "the mesh speaks HTTP/1.1",
    "http2": "the mesh speaks HTTP/1.1; use mesh.channel() for gRPC",
    "limits": "connections are limited by `connection_pool` in mesh.yaml",
    "trust_env": "proxies and certificates of the environment are not used",
}
"""httpx options that a mesh client does not take, and why."""


_UNSET: UseClientDefault = httpx.USE_CLIENT_DEFAULT
_Unset = type(_UNSET)
_LOG = logging.getLogger("httpx")


class _SentCookies(httpx.Cookies):
    """Cookies that are sent; what a service sets is not stored."""

    def extract_cookies(self, response: httpx.Response) -> None:
        return


class Face(BaseClient):
    """What both clients are; comes before httpx's class."""

    _transport: Any
    _carrier: Carrier

    def __init__(self, destination: Destination, *, resolver: Resolver | None = None, **options: Any) -> None:
        for name in options:
            if name in REFUSED:
                raise TypeError(f"{name}= is not an option of a mesh client: {REFUSED[name]}")
        self._destination, self._resolver = destination, OneService(destination, resolver)
        self._plan: Plan | None = None
        self._fast_calls = self._generic_calls = 0
        cookies, timeout = options.pop("cookies", None), options.pop("timeout", None)
        self._keeps_cookies = cookies is True
        base = httpx.URL(options.pop("base_url", "/"))
        if not base.host:
            base = httpx.URL(f"http://{destination.name}").copy_with(raw_path=base.raw_path)
        if CODECS.get("br", object) is None:
            accepted = httpx.Headers({"Accept-Encoding": ", ".join(name for name in CODECS if CODECS[name])})
            accepted.update(options.get("headers"))
            options["headers"] = accepted
        options.update(base_url=base, trust_env=False, transport=self._make_transport())
        super().__init__(**options)
        self.timeout, self.cookies = timeout, None if isinstance(cookies, bool) else cookies

    def _make_transport(self) -> Any:
        raise NotImplementedError

    @property
    def timeout(self) -> httpx.Timeout:
        """The client's default, as httpx shows it. Set a number (total seconds), an httpx.Timeout, or None."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: Any) -> None:
        self._total_s, self._timeout = _total_s(timeout), httpx.Timeout(timeout)

    @property
    def cookies(self) -> httpx.Cookies:
        """The cookies that are sent; kept up to date by Set-Cookie only with `cookies=True`."""
        return self._cookies

    @cookies.setter
    def cookies(self, cookies: Any) -> None:
        self._cookies = httpx.Cookies(cookies) if self._keeps_cookies else _SentCookies(cookies)

    def build_request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        timeout: Any = _UNSET,
        extensions: Any = None,
        **parts: Any,
    ) -> httpx.Request:
        """As httpx; the request remembers whether its timeout is a total or one per phase."""
        extensions = self._timed(extensions or {}, timeout)
        return super().build_request(method, url, extensions=extensions, **parts)

    def _timed(self, extensions: dict[str, Any], timeout: Any) -> dict[str, Any]:
        if "timeout" in extensions:
            return extensions
        if timeout is _UNSET:
            shown, name, total_s = self._timeout, CLIENT_TIMEOUT_S, self._total_s
        else:
            shown, name, total_s = httpx.Timeout(timeout), TIMEOUT_S, _total_s(timeout)
        return {**extensions, "timeout": shown.as_dict(), **({} if total_s is None else {name: total_s})}

    def _sent(self, request: httpx.Request, stream: bool) -> None:
        """Note on a request what the transport must know. Sending it is the user's act, to whatever host it names."""
        self._generic_calls += 1
        request.extensions.pop(HOST, None)
        request.extensions.update(self._timed(request.extensions, _UNSET))
        request.extensions[STREAMING] = stream

    def _fast(
        self, method: Any, url: str, content: Any, json: Any, headers: Any, timeout: Any
    ) -> tuple[Call, LazyRequest] | None:
        """The Call, and its Request for who looks at it; None where httpx's own path is to be taken."""
        if not fast_path.AVAILABLE or type(method) is not str or self._patched():
            return None
        plan = self._plan
        if plan is None or not plan.fits(self):
            plan = self._plan = Plan(self, self._destination.name, self._own_host(), self._carrier)
        if not plan.plain(self):
            return None
        total_s, phases, shown = None, plan.phases, plan.timeout
        if timeout is not _UNSET:
            if type(timeout) is not float and type(timeout) is not int:
                return None
            total_s, phases, shown = _total_s(timeout), None, httpx.Timeout(timeout)
        call = fast_call(plan, method.upper(), url, content, json, headers, total_s, phases)
        if call is None:
            return None
        self._fast_calls += 1
        self._state = fast_path.OPENED
        own = dict(headers) if headers else None
        return call, LazyRequest(partial(make_request, plan, call, own, json is not None, shown), call.body)

    def _received(self, call: Call, request: httpx.Request, reply: Reply, started: float) -> tuple[LazyResponse, bool]:
        """The response, and whether it is a redirect."""
        assert reply.stream is None, "a call that is not streamed has its whole body"
        headers, special = header_list(reply.headers)
        content = reply.body
        if special & ENCODED:
            content = decoded(headers, content, self._destination.max_decoded_bytes)
        took_s = time.monotonic() - started
        response = LazyResponse(call, reply, headers, content, request, took_s, self._default_encoding)
        if special & SET_COOKIE:
            self._cookies.extract_cookies(response)
        if _LOG.isEnabledFor(logging.INFO):
            status = (response.http_version, response.status_code, response.reason_phrase)
            _LOG.info('HTTP Request: %s %s "%s %d %s"', request.method, request.url, *status)
        return response, bool(special & LOCATION) and response.has_redirect_location

    def _following(self, response: httpx.Response, follow: bool | UseClientDefault) -> httpx.Request | None:
        """The request to go on with after a redirect, or None: then it is the response's `next_request`."""
        request = self._build_redirect_request(response.request, response)
        if (self.follow_redirects if isinstance(follow, _Unset) else follow) and same_service(response, request):
            return request
        response.next_request = request
        return None

    def _patched(self) -> bool:
        """Does somebody (a subclass, a test, an instrumentation) stand between `request` and the transport?"""
        raise NotImplementedError

    def _own_host(self) -> bool:
        try:
            return self._resolver.destination(self._base_url.host) is self._destination
        except UnknownService:
            return False


def same_service(response: httpx.Response, following: httpx.Request) -> bool:
    """Does a redirect stay with the service that it came from?"""
    return following.url.host == response.request.url.host


def _total_s(timeout: Any) -> float | None:
    """The total that a timeout asks for: a number does, an httpx.Timeout and None do not."""
    if timeout is None or isinstance(timeout, (httpx.Timeout, tuple)):
        return None
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
    return float(timeout)
