"""The server's side of a mesh: what an application behind `mesh.asgi`, `mesh.wsgi` or `mesh.run` is served with."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import stacks
from .config.endpoints import is_loopback
from .engine import IN_FORCE_LOOK_S
from .errors import ConfigError
from .identity.tls import IdentityContext
from .transport.admin import AdminServer
from .transport.admission import InFlight

if TYPE_CHECKING:
    from .config import MeshConfig
    from .engine import Engine
    from .stack import Service

logger = logging.getLogger("meshlib")


class ServerHost:
    """One per mesh; implements `transport.asgi.Host`.

    `own_server`: `Mesh.serve` listens, and `listening` is its address once it does. Under another server (uvicorn,
    gunicorn) the application's start is the sign that it listens.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now: Callable[[], float] = time.monotonic
        self.in_flight = InFlight()
        self._draining = False
        self.serving = False
        self.own_server = False
        self.listening = ""
        self._admin: AdminServer | None = None

    @property
    def draining(self) -> bool:
        """Is this server going? Set by the server that shuts down; the registry is told at once."""
        return self._draining

    @draining.setter
    def draining(self, going: bool) -> None:
        self._draining = going
        follower = self._engine.follower
        if going and follower is not None:
            follower.drain()

    @property
    def name(self) -> str:
        """The service, canonical."""
        return self._engine.service

    @property
    def trust_domain(self) -> str:
        """That of every identity of this mesh."""
        return self._engine.trust_domain

    @property
    def strict(self) -> bool:
        """Only callers with a verified identity are served."""
        return self._engine.strict

    @property
    def max_request_body(self) -> int:
        """Bytes, by the policy in force."""
        return self._engine.policy.max_request_body

    @property
    def loopback_only(self) -> bool:
        """The identity is good for connections within this machine only (`dev`)."""
        credentials = self._engine.credentials
        return credentials is not None and credentials.loopback_only

    def listener(self) -> ssl.SSLContext | None:
        """The TLS context of new connections; None where mTLS is disabled. Strict without an identity: one by which
        nobody gets in.
        """
        credentials = self._engine.credentials
        if not self.strict:
            return None
        return IdentityContext(ssl.PROTOCOL_TLS_SERVER) if credentials is None else credentials.listener()

    def pem(self) -> tuple[int, tuple[bytes, bytes, bytes]] | None:
        """The generation of our identity, and its chain, key and roots, for a server that speaks TLS itself; None where
        mTLS is disabled. ConfigError: strict without an identity.
        """
        if not self.strict:
            return None
        credentials = self._engine.credentials
        if credentials is None:
            raise ConfigError("mtls: strict needs an identity, and this process has none")
        return credentials.generation, credentials.pem()

    def server_service(self, leaf: Service) -> Service:
        """The server stack around an application."""
        engine = self._engine
        return stacks.SERVER.bind(stacks.ServerContext(engine.tracing, engine.metrics, self.now, self.in_flight), leaf)

    def start(self) -> None:
        """Start the mesh for serving. Idempotent. ConfigError also where the service has no name to serve under."""
        self._begin()
        self._engine.wait_in_force()
        self._open()

    async def startup(self) -> None:
        """`start` on an event loop: files are read off it, and a wait for the config service can be cancelled."""
        if self.serving:
            return
        await asyncio.to_thread(self._begin)
        give_up = self._engine.give_up_at()
        while not self._engine.in_force:
            self._engine.check_in_time(give_up)
            await asyncio.sleep(IN_FORCE_LOOK_S)
        await asyncio.to_thread(self._open)

    def _begin(self) -> None:
        self._engine.start()
        if self.strict and self._engine.anonymous:
            raise ConfigError("a server needs a name: Mesh('orders'), or MESHLIB_SERVICE, or `mtls: disabled`")

    def _open(self) -> None:
        self.serving = True
        if self._admin is None:
            self._admin = self._open_admin()

    async def shutdown(self) -> None:
        """The application's lifespan is over: close the mesh."""
        self.close()
        await self._engine.aclose()

    def close(self) -> None:
        """Stop answering probes."""
        self.serving = False
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def ready(self) -> tuple[bool, str]:
        """May this process be sent work? With the reason why not."""
        if self.draining:
            return False, "draining"
        if not self._engine.started:
            return False, "not started"
        return (True, "") if self.listening or not self.own_server else (False, "not listening")

    def _open_admin(self) -> AdminServer | None:
        listen = self._engine.config.admin.listen
        try:
            admin = AdminServer(listen, live=lambda: True, ready=self.ready, metrics=self._engine.metrics.render)
        except OSError as error:  # a probe that cannot be answered must not keep the service from serving
            logger.error("admin.listen %s: %s; /livez, /readyz and /metrics are not served", listen, error)
            return None
        logger.info("admin on http://%s (/livez /readyz /metrics)", admin.address)
        return admin

    def bind_address(self, host: str | None) -> str:
        """Where to listen. ConfigError: the `dev` identity is for the loopback interface only."""
        dev = self._engine.credentials is not None and self._engine.config.identity.source == "dev"
        if host is None:
            return "127.0.0.1" if dev else "0.0.0.0"  # noqa: S104 - a server is there to be reached
        if dev and not is_loopback(host):
            raise ConfigError(f"identity: {{source: dev}} serves on the loopback interface only, not on {host}")
        return host

    def listens_on(self, address: str, *, advertise: str = "", fixed: bool = False) -> None:
        """The server listens; `address` is where, as it knows itself, or '' where it does not. `advertise`: what others
        reach it by, and before MESHLIB_ADVERTISE. `fixed`: the program chose the port, so it can be said at once when
        the policy leads nobody here.
        """
        address = advertise or os.environ.get("MESHLIB_ADVERTISE") or address
        name, config, follower = self._engine.service, self._engine.config, self._engine.follower
        self.listening = address
        if follower is not None:
            if address:
                follower.serve_at(address)
            else:
                logger.warning("this server does not say where it listens: nobody finds it without MESHLIB_ADVERTISE")
            return
        if self.own_server:
            self._compare(name, config, address, fixed=fixed)

    def _compare(self, name: str, config: MeshConfig, address: str, *, fixed: bool) -> None:
        known = [endpoint.address for endpoint in config.endpoints(name)] if name in config.names() else None
        if known is None:
            logger.warning("%s is not a service of mesh.yaml: nobody can call it by name", name)
        elif fixed and known and address not in known:
            logger.warning(
                "mesh.yaml has %s at %s, not at %s: nobody will call it here", name, ", ".join(known), address
            )

    @property
    def admin_address(self) -> str:
        """`host:port` of the probes, '' where there is none."""
        return "" if self._admin is None else self._admin.address
