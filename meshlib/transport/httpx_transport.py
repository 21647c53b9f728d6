"""The mesh as an httpx transport: the generic path. The host of the URL is the service; the port is not looked at.

Rules. What httpx decided (headers, framing, redirects, cookies) is sent as it is; what the mesh decides is the
endpoint, the attempts and the deadline. A redirect is not followed to another host through the mesh: a caller that may
reach a service must not be led by it to another one (confused deputy). httpx carries a request's extensions over to
the redirected one; that is how it is seen here.
`close()` closes nothing: the mesh owns its connections.
"""

from __future__ import annotations

from typing import Protocol

import httpx

from ..call import Call
from ..errors import MeshError, TransportError, UnknownService
from ..runtime.blocking import drive
from ..stack import Service
from .httpx_errors import lift
from .httpx_request import call_of
from .httpx_response import AsyncStreamed, BlockingStreamed, response_of

HOST = "meshlib.host"
"""Extension of a request: the host it was first sent to."""


class Destination(Protocol):
    """One service, as a caller sees it. A stable object: policy is swapped behind it."""

    name: str
    """Canonical: `inventory.default`."""

    @property
    def max_decoded_bytes(self) -> int:
        """Limit for decoded bodies, by the policy in force; read per reply."""

    def asyncio(self) -> Service:
        """The bound stack for the running event loop; cheap. RuntimeError when the mesh is closed."""

    def blocking(self) -> Service:
        """The bound stack for threads."""


class Resolver(Protocol):
    """Which service a host is."""

    def destination(self, host: str) -> Destination:
        """The service named `host`, or UnknownService."""


class OneService:
    """A Resolver for the client of one service; other hosts are asked of `others`, where there is one."""

    def __init__(self, destination: Destination, others: Resolver | None = None) -> None:
        self._destination, self._others = destination, others

    def destination(self, host: str) -> Destination:
        """The one service for its own name (the short one too, unless `others` decides), else what `others` says."""
        if host == self._destination.name:
            return self._destination
        if self._others is not None:
            return self._others.destination(host)
        if host == self._destination.name.partition(".")[0]:
            return self._destination
        raise UnknownService(host, f"cannot be called by a client of {self._destination.name!r}")


class _Transport:
    """What both transports share."""

    def __init__(self, services: Resolver | Destination) -> None:
        self._resolver = services if hasattr(services, "destination") else OneService(services)

    def _call(self, request: httpx.Request, *, asynchronous: bool) -> tuple[Destination, Call]:
        try:
            destination = self._resolver.destination(_host(request))
            return destination, call_of(request, destination.name, asynchronous=asynchronous)
        except MeshError as e:
            raise lift(e, request) from e.__cause__


class MeshAsyncTransport(_Transport, httpx.AsyncBaseTransport):
    """For an httpx.AsyncClient that the user already has: `httpx.AsyncClient(transport=mesh.transport())`."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it through the mesh. Errors are of our tree and httpx's at once."""
        destination, call = self._call(request, asynchronous=True)
        try:
            reply = await destination.asyncio()(call)
        except MeshError as e:
            raise lift(e, request, call.trail) from e.__cause__
        return response_of(call, reply, request, destination.max_decoded_bytes, AsyncStreamed)


class MeshTransport(_Transport, httpx.BaseTransport):
    """The same for an httpx.Client."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it through the mesh. Errors are of our tree and httpx's at once."""
        destination, call = self._call(request, asynchronous=False)
        try:
            reply = drive(destination.blocking()(call))
        except MeshError as e:
            raise lift(e, request, call.trail) from e.__cause__
        return response_of(call, reply, request, destination.max_decoded_bytes, BlockingStreamed)


def _host(request: httpx.Request) -> str:
    url = request.url
    if url.scheme not in ("http", "https") or not url.host:
        raise httpx.UnsupportedProtocol(f"{str(url)!r} is not an http:// or https:// URL with a host", request=request)
    first = request.extensions.setdefault(HOST, url.host)
    if first != url.host:
        raise TransportError(
            f"redirect from {first!r} to {url.host!r}: the mesh does not follow a redirect to another host",
            phase="connect",
            cause="local",
            sent=False,
        )
    return url.host
