"""The httpx clients of a mesh: real subclasses, a fast path inside `request`, httpx's own path for everything else.

What differs from httpx, on purpose:
  * a number as `timeout` is the total time of the call, body included (httpx: of each operation); an `httpx.Timeout`
    is kept per phase, below the total; the default is the policy's, and `timeout=None` asks for the policy's too.
    A redirect that is followed is a call of its own;
  * cookies that a service sets are not kept: one client serves all users of a process. `cookies=True` keeps them;
  * a redirect is followed only within the service, otherwise it is returned, with `next_request`;
  * options that would open another way out than the mesh are refused by name (`REFUSED`);
  * closing the client closes no connection: those are the mesh's;
  * a decoded body has a limit.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx

from ..call import Call
from ..errors import MeshError
from ..runtime.blocking import drive
from .httpx_errors import lift
from .httpx_face import REFUSED, Face, same_service
from .httpx_request import LazyRequest
from .httpx_transport import MeshAsyncTransport, MeshTransport

if TYPE_CHECKING:
    from httpx._client import UseClientDefault

__all__ = ["REFUSED", "MeshAsyncClient", "MeshClient"]

_UNSET: UseClientDefault = httpx.USE_CLIENT_DEFAULT
_ASYNC_SEND, _BLOCKING_SEND = httpx.AsyncClient.send, httpx.Client.send


class MeshAsyncClient(Face, httpx.AsyncClient):
    """An httpx.AsyncClient whose calls go to one service through the mesh.

    `destination`: the service; `resolver`: the others, for absolute URLs. `options` are httpx's, less `REFUSED`.
    """

    _carrier = MeshAsyncTransport, "handle_async_request", MeshAsyncTransport.handle_async_request

    def _make_transport(self) -> MeshAsyncTransport:
        return MeshAsyncTransport(self._resolver)

    async def request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        content: Any = None,
        data: Any = None,
        files: Any = None,
        json: Any = None,
        params: Any = None,
        headers: Any = None,
        cookies: Any = None,
        auth: Any = _UNSET,
        follow_redirects: bool | UseClientDefault = _UNSET,
        timeout: Any = _UNSET,
        extensions: Any = None,
    ) -> httpx.Response:
        """As httpx."""
        plain = data is None and files is None and params is None and cookies is None and extensions is None
        if plain and auth is _UNSET and type(url) is str:
            fast = self._fast(method, url, content, json, headers, timeout)
            if fast is not None:
                return await self._call(*fast, follow_redirects)
        return await super().request(
            method, url, content=content, data=data, files=files, json=json, params=params, headers=headers,
            cookies=cookies, auth=auth, follow_redirects=follow_redirects, timeout=timeout, extensions=extensions,
        )  # fmt: skip

    async def send(self, request: httpx.Request, *, stream: bool = False, **how: Any) -> httpx.Response:
        """As httpx. The call's deadline covers the body too, unless `stream`."""
        self._sent(request, stream)
        return await super().send(request, stream=stream, **how)

    async def _call(
        self, call: Call, request: LazyRequest, follow_redirects: bool | UseClientDefault
    ) -> httpx.Response:
        started = time.monotonic()
        try:
            reply = await self._destination.asyncio()(call)
            response, redirect = self._received(call, request, reply, started)
        except MeshError as e:
            raise lift(e, request, call.trail) from e.__cause__
        if not redirect or (following := self._following(response, follow_redirects)) is None:
            return response
        last = await self._send_handling_redirects(following, True, [response])
        await last.aread()
        return last

    async def _send_handling_redirects(
        self, request: httpx.Request, follow_redirects: bool, history: list[httpx.Response]
    ) -> httpx.Response:
        while True:
            response = await super()._send_handling_redirects(request, False, history)
            following = response.next_request
            if not follow_redirects or following is None or not same_service(response, following):
                return response
            response.next_request = None
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
            request, history = following, [*history, response]

    def _patched(self) -> bool:
        own = self.__dict__
        return (
            "send" in own
            or "build_request" in own
            or httpx.AsyncClient.send is not _ASYNC_SEND
            or type(self).send is not MeshAsyncClient.send
            or type(self).build_request is not Face.build_request
        )


class MeshClient(Face, httpx.Client):
    """An httpx.Client whose calls go to one service through the mesh.

    `destination`: the service; `resolver`: the others, for absolute URLs. `options` are httpx's, less `REFUSED`.
    """

    _carrier = MeshTransport, "handle_request", MeshTransport.handle_request

    def _make_transport(self) -> MeshTransport:
        return MeshTransport(self._resolver)

    def request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        content: Any = None,
        data: Any = None,
        files: Any = None,
        json: Any = None,
        params: Any = None,
        headers: Any = None,
        cookies: Any = None,
        auth: Any = _UNSET,
        follow_redirects: bool | UseClientDefault = _UNSET,
        timeout: Any = _UNSET,
        extensions: Any = None,
    ) -> httpx.Response:
        """As httpx."""
        plain = data is None and files is None and params is None and cookies is None and extensions is None
        if plain and auth is _UNSET and type(url) is str:
            fast = self._fast(method, url, content, json, headers, timeout)
            if fast is not None:
                return self._call(*fast, follow_redirects)
        return super().request(
            method, url, content=content, data=data, files=files, json=json, params=params, headers=headers,
            cookies=cookies, auth=auth, follow_redirects=follow_redirects, timeout=timeout, extensions=extensions,
        )  # fmt: skip

    def send(self, request: httpx.Request, *, stream: bool = False, **how: Any) -> httpx.Response:
        """As httpx. The call's deadline covers the body too, unless `stream`."""
        self._sent(request, stream)
        return super().send(request, stream=stream, **how)

    def _call(self, call: Call, request: LazyRequest, follow_redirects: bool | UseClientDefault) -> httpx.Response:
        started = time.monotonic()
        try:
            reply = drive(self._destination.blocking()(call))
            response, redirect = self._received(call, request, reply, started)
        except MeshError as e:
            raise lift(e, request, call.trail) from e.__cause__
        if not redirect or (following := self._following(response, follow_redirects)) is None:
            return response
        last = self._send_handling_redirects(following, True, [response])
        last.read()
        return last

    def _send_handling_redirects(
        self, request: httpx.Request, follow_redirects: bool, history: list[httpx.Response]
    ) -> httpx.Response:
        while True:
            response = super()._send_handling_redirects(request, False, history)
            following = response.next_request
            if not follow_redirects or following is None or not same_service(response, following):
                return response
            response.next_request = None
            try:
                response.read()
            except BaseException:
                response.close()
                raise
            request, history = following, [*history, response]

    def _patched(self) -> bool:
        own = self.__dict__
        return (
            "send" in own
            or "build_request" in own
            or httpx.Client.send is not _BLOCKING_SEND
            or type(self).send is not MeshClient.send
            or type(self).build_request is not Face.build_request
        )
