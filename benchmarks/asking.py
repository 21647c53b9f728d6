"""What is asked of the config service beside polls: certificates, and the calls whose latency is measured."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp

from meshlib.control_link import CONTROL_SERVICE
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid
from meshlib.identity.tls import client_context

from .config_service import DOMAIN, ConfigService

CONTROL = SpiffeId.for_service(DOMAIN, CONTROL_SERVICE)
ASKERS = 2
"""How many ask the same at once."""
PAUSE_S = 0.1
"""How long each waits between two calls."""
TIMEOUT_S = 30.0


class Asked(NamedTuple):
    """A call: what, and when, in monotonic seconds. `status` 0: there was no answer."""

    what: str
    began: float
    took_s: float
    status: int


class Asking:
    """Calls to `service`: as the operator, or as `app-0` with its certificate. Made within a running loop."""

    def __init__(self, service: ConfigService, svid: Svid | None = None) -> None:
        self._service, self.plain = service, service.kind == "plain"
        self._operator = service.operator().bearer
        scheme = "http" if self.plain else "https"
        self._base = f"{scheme}://127.0.0.1:{service.port}"
        self._stranger, self._member = self._session(None), self._session(svid)

    def _session(self, svid: Svid | None) -> aiohttp.ClientSession:
        context = None if self.plain else client_context(svid, self._service.bundle(), CONTROL)
        connector = aiohttp.TCPConnector(ssl=True if context is None else context, limit=0)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(TIMEOUT_S))

    async def close(self) -> None:
        await self._stranger.close()
        await self._member.close()

    async def token(self, name: str, uses: int) -> JoinToken:
        """A join token of a service."""
        document = {"service": f"{name}.default", "uses": uses, "ttl_s": 3600.0}
        told = await self._told("POST", "/v1/tokens", document, self._operator)
        return JoinToken.parse(told["token"])

    async def enrol(self, name: str, token: JoinToken) -> Svid:
        """A certificate of a service."""
        csr, key = make_csr(SpiffeId.for_service(DOMAIN, name))
        told = await self._told("POST", "/v1/enrol", {"csr": csr.decode()}, token.bearer)
        return Svid.load(told["chain"].encode(), key)

    async def _told(self, method: str, path: str, document: Any, bearer: str) -> Any:
        headers = {"authorization": f"Bearer {bearer}"}
        async with self._stranger.request(method, self._base + path, json=document, headers=headers) as reply:
            if reply.status != 200:
                raise RuntimeError(f"{path} is answered {reply.status}: {await reply.text()}")
            return await reply.json()

    # What is measured

    async def list_services(self) -> int:
        """A page of GET /v1/services, as the operator."""
        headers = {"authorization": f"Bearer {self._operator}"}
        return await self._status(self._stranger.get(f"{self._base}/v1/services", headers=headers))

    async def register(self, number: int) -> int:
        """A new instance of `app-0`."""
        address = f"127.0.0.1:{1024 + number}"
        document = {"instance": uuid.uuid4().hex, "address": address}
        return await self._status(self._member.post(f"{self._base}/v1/register", json=document))

    async def enrol_again(self, token: JoinToken, csr: str) -> int:
        """A certificate of `app-0` by a token; the same key counts as the same use."""
        headers = {"authorization": f"Bearer {token.bearer}"}
        return await self._status(self._stranger.post(f"{self._base}/v1/enrol", json={"csr": csr}, headers=headers))

    async def _status(self, request: Any) -> int:
        try:
            async with request as reply:
                await reply.read()
                return int(reply.status)
        except (aiohttp.ClientError, TimeoutError):
            return 0


@asynccontextmanager
async def others(asking: Asking) -> AsyncIterator[list[Asked]]:
    """While the block runs, others ask for this and that; what they asked is in the list."""
    token, csr = await asking.token("app-0", 1), make_csr(SpiffeId.for_service(DOMAIN, "app-0"))[0].decode()
    numbers = itertools.count()
    calls: dict[str, Callable[[], Any]] = {
        "register": lambda: asking.register(next(numbers)),
        "GET /v1/services": asking.list_services,
        "enrol": lambda: asking.enrol_again(token, csr),
    }
    asked: list[Asked] = []

    async def ask(what: str) -> None:
        while True:
            began = time.monotonic()
            status = await calls[what]()
            asked.append(Asked(what, began, time.monotonic() - began, status))
            await asyncio.sleep(PAUSE_S)

    tasks = [asyncio.create_task(ask(what)) for what in calls for _ in range(ASKERS)]
    try:
        yield asked
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
