"""A real config service beside a test, on a thread and a free port; and processes of its mesh, by what they say to it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from meshlib.cli import meshlib
from meshlib.control.server import ControlServer, Settings, serve
from meshlib.control_link import CONTROL_SERVICE, ControlLink, RemoteAuthority
from meshlib.identity.csr import make_csr
from meshlib.identity.enrolment import Enrolment
from meshlib.identity.join_token import JoinToken
from meshlib.identity.pinned import PinnedTls
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, TrustBundle
from meshlib.identity.svid_tls import SvidTls

TRUST_DOMAIN = "shop.dev"
CONTROL = SpiffeId.for_service(TRUST_DOMAIN, CONTROL_SERVICE)
MESH = """\
version: 1
mesh: shop
policy_source: store
control: {urls: ["https://127.0.0.1:9"]}
services:
  orders: {}
  inventory: {endpoints: [{registry: {}}]}
"""
STARTS_WITHIN_S = 20


def run(*arguments: str) -> Result:
    """The command line, as typed."""
    return CliRunner().invoke(meshlib, list(arguments), catch_exceptions=False)


class ConfigService:
    """Of the mesh.yaml in `folder`, reached at `url`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mesh_file = folder, folder / "mesh.yaml"
        self.token_file = folder / ".meshlib" / "control" / "operator-token"
        self.url = ""
        self.trouble: BaseException | None = None
        self._listening, self._server = threading.Event(), None  # type: threading.Event, ControlServer | None
        self._thread = threading.Thread(target=self._run, name="config-service")

    def _run(self) -> None:
        settings = Settings(self.mesh_file, "127.0.0.1:0")
        try:
            asyncio.run(serve(settings, on_listening=self._listens))
        except BaseException as error:
            self.trouble = error
            self._listening.set()

    def _listens(self, server: ControlServer) -> None:
        self._server, self.url = server, f"https://{server.address}"
        self._listening.set()

    def start(self) -> None:
        """Returns when it listens."""
        self._thread.start()
        assert self._listening.wait(STARTS_WITHIN_S)
        assert self.trouble is None, self.trouble

    def stop(self) -> None:
        """Returns when it is gone."""
        if self._server is not None:
            self._server.stop(force=True)
        self._thread.join(STARTS_WITHIN_S)
        assert not self._thread.is_alive()

    @property
    def token(self) -> JoinToken:
        """The operator's."""
        return JoinToken.parse(self.token_file.read_text())

    def ask(self, method: str, path: str, document: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """As the operator, without the command line."""
        link = ControlLink([self.url], PinnedTls(self.token.root_sha256, CONTROL))
        try:
            return link.ask(method, path, document, bearer=self.token.bearer, **options)
        finally:
            link.close()

    def publish(self, document: str) -> None:
        """Another policy."""
        self.ask("PUT", "/v1/policy", {"document": document}, headers={"If-Match": "*"})

    def enrol(self, service: str, instance: str) -> tuple[Svid, TrustBundle]:
        """A new process's certificate, by a join token."""
        made = self.ask("POST", "/v1/tokens", {"service": service})
        csr, key = make_csr(SpiffeId.for_service(TRUST_DOMAIN, service))
        issued = RemoteAuthority([self.url], TRUST_DOMAIN, instance).enrol(JoinToken.parse(made["token"]), csr)
        return Svid.load(issued.chain_pem, key), TrustBundle(TRUST_DOMAIN, issued.bundle_pem)

    def enrol_here(self, service: str) -> tuple[Svid, TrustBundle]:
        """The same, kept in the state_dir as the first process of this host would."""
        svid, bundle = self.enrol(service, "first")
        enrolment = Enrolment(self.folder / ".meshlib" / service, TRUST_DOMAIN, svid.id)
        with enrolment.locked():
            enrolment.save(svid, bundle)
        return svid, bundle

    @contextmanager
    def process(self, service: str, instance: str) -> Iterator[Process]:
        """A process of `service`."""
        svid, bundle = self.enrol(service, instance)
        link = ControlLink([self.url], SvidTls(svid, bundle, CONTROL))
        try:
            yield Process(link, instance, svid)
        finally:
            link.close()


class Process:
    """A process by what it says; `reply` is the last answer to its poll."""

    def __init__(self, link: ControlLink, instance: str, svid: Svid) -> None:
        self._link, self._instance, self.svid = link, instance, svid
        self._have: dict[str, Any] = {}
        self.reply: dict[str, Any] = {}

    def register(self, address: str, **facts: Any) -> None:
        """It serves at `address`."""
        self._link.ask("POST", "/v1/register", {"instance": self._instance, "address": address, **facts})

    def poll(self, *want: str, reject: dict[str, str] | None = None) -> None:
        """Take what is new, all of it but what is in `reject` (resource: why). It then has it all, and says so."""
        rejected: dict[str, Any] = {}
        for _ in range(2):
            told = {"want": list(want), "have": self._have, "rejected": rejected, "info": {"host": "h1", "pid": "7"}}
            answer = self._link.ask("POST", "/v1/poll", {"instance": self._instance, **told})
            self.reply = answer if answer["fragments"] else self.reply
            for fragment in map(json.loads, (signed["payload"] for signed in answer["fragments"])):
                resource, version = fragment["resource"], [fragment["epoch"], fragment["n"]]
                if why := (reject or {}).get(resource):
                    rejected[resource] = {"version": version, "why": why}
                else:
                    self._have[resource] = version


@contextmanager
def config_service(folder: Path, mesh: str = MESH) -> Iterator[ConfigService]:
    """A config service for as long as the block, over what an earlier one left in `folder`."""
    service = ConfigService(folder)
    service.mesh_file.write_text(mesh)
    service.start()
    try:
        yield service
    finally:
        service.stop()
