"""A mesh on disk with a config service: the same `World`, but endpoints are who has registered, and identity is issued.

The config service is a real process, `meshlib control`, which may be killed, frozen, and started again on its port.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshlib.control_link import CONTROL_SERVICE, ControlLink
from meshlib.identity.join_token import JoinToken
from meshlib.identity.pinned import PinnedTls
from meshlib.identity.spiffe import SpiffeId
from process.replicas import APPS, Process, World, until

DOMAIN = "test.dev"


class Controlled(World):
    """`with Controlled(folder, {"backend": {…}}) as world:` its config service runs when the block begins.

    `fields`: more of mesh.yaml, such as `ca`. `tokens`: services that join tokens are made for (64 uses each).
    """

    def __init__(self, folder: Path, services: Mapping[str, Mapping[str, Any]], *tokens: str, **fields: Any) -> None:
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        super().__init__(folder, services, control={"urls": [self.url]}, **fields)
        for name in services:
            self.document["services"][name]["endpoints"] = [{"registry": {}}]
        self.write()
        self.state = folder / ".meshlib"
        self.control = self.start_control()
        self._operator: ControlLink | None = None
        for service in dict.fromkeys([*services, "caller", *tokens]):
            (folder / f"{service}.token").write_text(self.token(service, uses=64))

    def start_control(self) -> Process:
        command = [sys.executable, "-m", "meshlib", "control", "--config", str(self.config), "--listen", self.url[8:]]
        control = self.execute(command, "control", MESHLIB_TOKEN_FILE="")
        control.wait_listening()
        return control

    def __exit__(self, *exc: object) -> None:
        if self._operator is not None:
            self._operator.close()
        super().__exit__(*exc)

    def operator_token(self) -> JoinToken:
        return JoinToken.parse((self.state / "control" / "operator-token").read_text().strip())

    def ask(self, method: str, path: str, document: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """As the operator."""
        token = self.operator_token()
        if self._operator is None:
            expected = SpiffeId.for_service(DOMAIN, CONTROL_SERVICE)
            self._operator = ControlLink([self.url], PinnedTls(token.root_sha256, expected))
        return self._operator.ask(method, path, document, bearer=token.bearer, **options)

    def token(self, service: str, uses: int = 1, ttl_s: float = 600.0) -> str:
        """A join token."""
        wanted = {"service": service if "." in service else f"{service}.default", "uses": uses, "ttl_s": ttl_s}
        return str(self.ask("POST", "/v1/tokens", wanted)["token"])

    def environment_of(self, service: str) -> dict[str, str]:
        """What a process of a service needs besides MESHLIB_CONFIG."""
        return {"MESHLIB_SERVICE": service, "MESHLIB_TOKEN_FILE": str(self.folder / f"{service}.token")}

    def serve(
        self, service: str, count: int = 1, script: str | Path = APPS / "backend.py", **variables: str
    ) -> list[Process]:
        """`count` more replicas, listening and registered."""
        known = len([p for p in self.processes if p.environment.get("MESHLIB_SERVICE") == service])
        made = [
            self.run(script, f"{service}-{known + i}", **self.environment_of(service), **variables)
            for i in range(count)
        ]
        for process in made:
            process.wait_listening()
        for process in made:
            until(lambda p=process: "registered as" in p.log(), f"{process.name} registers")
        return made

    def edit(self, service: str, **policy: Any) -> None:
        """Change a service's policy in the watched mesh.yaml."""
        self.document["services"][service] |= policy
        self.write()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lines_of(process: Process) -> list[Any]:
    """Every line of JSON in a log."""
    return [json.loads(line) for line in process.log().splitlines() if line.startswith(("{", "["))]
