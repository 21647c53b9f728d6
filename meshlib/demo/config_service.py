"""The demo's config service: `meshlib control` as a process of its own, and the operator who asks it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from meshlib.control_link import CONTROL_SERVICE, ControlLink
from meshlib.identity.join_token import JoinToken
from meshlib.identity.pinned import PinnedTls
from meshlib.identity.spiffe import SpiffeId

from .process import Process
from .shop import TRUST_DOMAIN, Shop

ASK_WITHIN_S = 2.0
"""How long one answer may take, in seconds."""
TOKEN_LIFE_S = 600.0
"""Life of the demo's join tokens, in seconds; what was enrolled outlives them."""


class ConfigService(Process):
    """Started, killed and started again like a replica; on the port that mesh.yaml names."""

    def __init__(self, shop: Shop) -> None:
        super().__init__("control", shop.log("control"))
        self._shop = shop
        self._token: JoinToken | None = None
        self._link: ControlLink | None = None

    def arguments(self) -> list[str]:
        """Those of `meshlib control`."""
        return ["control", "--config", str(self._shop.file)]

    def start(self) -> None:
        """Start it, and wait until it listens. DemoError."""
        self.launch()
        self.wait_listening()

    def close(self) -> None:
        """End it at once: it loses nothing by that."""
        if self._link is not None:
            self._link.close()
        self.kill()

    def ask(self, method: str, path: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
        """As the operator. MeshError."""
        token = JoinToken.parse((self._shop.state_dir / "control" / "operator-token").read_text())
        if self._link is None or token != self._token:
            if self._link is not None:
                self._link.close()
            expected = SpiffeId.for_service(TRUST_DOMAIN, CONTROL_SERVICE)
            self._token, self._link = token, ControlLink([self._shop.url], PinnedTls(token.root_sha256, expected))
        return self._link.ask(method, path, document, timeout_s=ASK_WITHIN_S, bearer=token.bearer)

    def create_token(self, service: str, uses: int) -> JoinToken:
        """A join token of a service, also kept in its file."""
        asked = {"service": f"{service}.default", "uses": uses, "ttl_s": TOKEN_LIFE_S}
        token = JoinToken.parse(self.ask("POST", "/v1/tokens", asked)["token"])
        self._shop.write_token(service, str(token))
        return token

    def uses(self) -> int:
        """How often join tokens have been used."""
        return sum(token["used"] for token in self.ask("GET", "/v1/tokens")["tokens"])

    def ready(self) -> set[str]:
        """The instances that it lists as ready."""
        services = self.ask("GET", "/v1/services")["services"]
        return {one["instance"] for service in services for one in service["shown"] if one["state"] == "ready"}

    def status(self) -> dict[str, Any]:
        """What GET /v1/status says."""
        return self.ask("GET", "/v1/status")

    def version(self, service: str) -> int:
        """The version of a service's policy that it has published."""
        answer = self.ask("GET", "/v1/services?" + urlencode({"service": f"{service}.default"}))
        return int(answer["services"][0]["n"])
