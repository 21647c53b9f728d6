"""A config service in one process, for tests: the real parts on a folder, without TLS, and who asks is said."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from meshlib.control.api import Api
from meshlib.control.issuance import Issuer
from meshlib.control.messages import Poll
from meshlib.control.plane import ControlPlane
from meshlib.control.protocol import CONNECTION, Connection, Listening
from meshlib.control.store import Store
from meshlib.control.watch import parse_policy
from meshlib.control.who import Gate, Member
from meshlib.control.writer import WRITES_MAX, Busy
from meshlib.identity.authority_file import AuthorityFile
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken
from meshlib.identity.signature import Verifier
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, TrustBundle
from meshlib.transport.headers import PEER

from .virtual_time import run

TRUST_DOMAIN = "shop.dev"
WALL = 1_800_000_000.0
"""Unix seconds when a service of these tests begins."""
MESH = """\
version: 1
mesh: shop
control: {urls: ["https://127.0.0.1:7443"]}
services:
  orders: {endpoints: [{registry: {}}]}
  inventory: {timeout: 1s, endpoints: [{registry: {}}]}
  payments: {endpoints: [{registry: {}}]}
"""


class InlineWriter:
    """The thread that touches the disk, without a thread. `before`: called before each piece of work."""

    def __init__(self) -> None:
        self.before: Callable[[str], None] = lambda name: None
        self.done: list[str] = []
        self.waiting = 0

    async def ask(self, work: Callable[..., Any], *args: Any) -> Any:
        if self.waiting >= WRITES_MAX:
            raise Busy
        return await self.run(work, *args)

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        name = getattr(work, "func", work).__name__
        self.before(name)
        found = work(*args)
        self.done.append(name)
        return found

    def close(self) -> None:
        pass


class Service:
    """Made within a running loop, best a virtual one. Another one in the same folder, once this is closed, is a restart.

    `wall`: unix seconds, which stand still until they are set.
    """

    def __init__(self, folder: Path, mesh: str = MESH, *, leaf_life_s: float = 86_400.0, stored: bool = False) -> None:
        self.folder, self.now = folder, WALL
        self.store = Store.open(folder / "store.sqlite")
        self.authority = AuthorityFile(folder / "ca")
        self.issuer = Issuer(self.store, self.authority, TRUST_DOMAIN, leaf_life_s=leaf_life_s, wall=lambda: self.now)
        self.operator = self.issuer.create_operator()
        self.listening = Listening()
        self.gate = Gate((self.operator.id, self.operator.secret_sha256), lambda: self.plane.now(), lambda: self.now)
        self.plane = ControlPlane(
            parse_policy(mesh, "mesh.yaml"), self.store, self.issuer, self.authority, self.listening, self.gate,
            random.Random(1), lambda: self.now,
        )  # fmt: skip
        self.writer = InlineWriter()
        self.plane.writer = self.writer  # type: ignore[assignment]
        self.api = Api(self.plane, stored=stored)

    async def close(self) -> None:
        await self.plane.close()

    # Who asks

    def client(self, service: str | None = None, serial: int = 7, connection: Connection | None = None) -> Client:
        """What `service` gets with a certificate; None: who has none."""
        return Client(self, service, connection or Connection(None if service is None else serial))

    def operating(self) -> Client:
        """What the operator gets."""
        client = self.client()
        client.bearer = self.operator.bearer
        return client


class Client:
    """Asks over ASGI, as one connection would."""

    def __init__(self, of: Service, service: str | None, connection: Connection) -> None:
        self._of, self.connection, self.bearer = of, connection, ""
        self._peer = None if service is None else SpiffeId.for_service(TRUST_DOMAIN, service)
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self._app, raise_app_exceptions=True), base_url="https://control"
        )

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {PEER: self._peer, CONNECTION: self.connection}
        await self._of.api(scope, receive, send)

    async def ask(self, method: str, path: str, document: Any = None, **options: Any) -> httpx.Response:
        """`document`: sent as JSON, or as it is where it is bytes."""
        headers = {**({"authorization": f"Bearer {self.bearer}"} if self.bearer else {})}
        if document is not None:
            headers["content-type"] = "application/json"
            options["content"] = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers.update(options.pop("headers", {}))
        return await self._http.request(method, path, headers=headers, **options)

    async def told(self, method: str, path: str, document: Any = None, **options: Any) -> Any:
        """The document of a 200."""
        reply = await self.ask(method, path, document, **options)
        assert reply.status_code == 200, (reply.status_code, reply.text)
        return reply.json()


class Follower:
    """A process that polls: what it has, and what was in the last reply."""

    def __init__(self, of: Service, service: str, instance: str, *want: str, serial: int = 7) -> None:
        self.of, self.instance, self.want, self.serving = of, instance, list(want), False
        self.client = of.client(service, serial)
        self.have: dict[str, tuple[str, int]] = {}
        self.contents: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.rejected: dict[str, Any] = {}

    async def poll(self, wait_s: float = 30.0) -> list[str]:
        """Poll once; the resources that came, each signed by the one who may."""
        asked = {
            "instance": self.instance, "want": self.want, "have": self.have, "rejected": self.rejected,
            "serving": self.serving, "wait_s": wait_s,
        }  # fmt: skip
        self.last = await self.client.told("POST", "/v1/poll", asked)
        return self._take(self.last)

    def _take(self, reply: Mapping[str, Any]) -> list[str]:
        came = []
        for fragment in reply["fragments"]:
            verifier_of(self.of, reply["signer"]).verify(fragment["payload"].encode(), fragment["signature"])
            payload = json.loads(fragment["payload"])
            assert payload["epoch"] == reply["epoch"]
            self.have[payload["resource"]] = (payload["epoch"], payload["n"])
            self.contents[payload["resource"]] = payload["content"]
            came.append(payload["resource"])
        return came

    async def register(self, address: str, **more: Any) -> None:
        await self.client.told("POST", "/v1/register", {"instance": self.instance, "address": address, **more})
        self.serving = True


def verifier_of(service: Service, signer: str) -> Verifier:
    bundle = TrustBundle(TRUST_DOMAIN, service.authority.read().bundle_pem)
    expected = SpiffeId.for_service(TRUST_DOMAIN, "signer.meshlib")
    return Verifier.of(signer.encode(), bundle, expected, service.now)


def poll_of(instance: str, *want: str, wait_s: float = 30.0) -> Poll:
    return Poll(instance=instance, want=list(want), wait_s=wait_s)


def member(service: str, serial: int = 7) -> Member:
    return Member(service, serial)


async def enrolled(service: Service, name: str) -> Svid:
    """A real certificate for `name`."""
    token = service.issuer.create_token(name)
    csr, key = make_csr(SpiffeId.for_service(TRUST_DOMAIN, name))
    client = service.client()
    client.bearer = JoinToken.parse(str(token)).bearer
    issued = await client.told("POST", "/v1/enrol", {"csr": csr.decode()})
    return Svid.load(issued["chain"].encode(), key)


def played(folder: Path, scenario: Callable[[Service], Awaitable[Any]], **options: Any) -> Any:
    """Run a scenario on a new service in `folder`."""

    async def whole() -> Any:
        service = Service(folder, **options)
        try:
            return await scenario(service)
        finally:
            await service.close()

    return run(whole())
