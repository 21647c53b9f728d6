"""The demo's folder: mesh.yaml and what it names. Every write is one rename, as an editor or a deployment does it.

<folder>/mesh.yaml · <service>.token · logs/<process>.log · .meshlib/ (of the config service) · host-1/ · host-2/
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

from .process import DemoError

SERVICES = ("storefront", "orders", "inventory", "prices")
TRUST_DOMAIN = "shop.dev"
PORTS = range(20_000, 32_768)
"""Below those that systems take for connections out (32768 on Linux, 49152 elsewhere), so that a process that starts
again finds its port still free."""
_MESH = """\
# The mesh of the demo. The config service watches this file: edit it, and the edit is in force within a second.
version: 1
mesh: shop
control: {urls: ["https://127.0.0.1:%d"]}
identity: {source: control}     # certificates are the config service's; every connection is mutual TLS

services:
  storefront:
    endpoints: [{registry: {}}]     # whoever has registered: nobody is listed here
%s  orders:
    endpoints: [{registry: {}}]
  inventory:
    endpoints: [{registry: {}}]
    subsets: {v1: {version: v1}, v2: {version: v2}}
    routes:
      - name: stock
        backends:           # the canary: change the weights
          - {subset: v1, weight: %s}
          - {subset: v2, weight: %s}
  prices:
    endpoints: [{registry: {}}]
    protocol: grpc
    routes:
      - name: price
        idempotent: true    # gRPC does not say which calls may be sent twice
"""
FAULT_SHARE = 0.2
_FAULT = f"""\
    routes:
      - name: pages
        retries: {{max_retries: 0}}
        fault: {{abort: {{http_status: 503, percent: {FAULT_SHARE:.0%}}}}}     # on purpose
"""


class Shop:
    """The files of one demo, in a folder that exists. `url`: of its config service."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.state_dir = folder, folder / "mesh.yaml", folder / ".meshlib"
        self._taken: set[int] = set()
        self._port = self.free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self._weights, self._fault = ("100", "0"), False
        (folder / "logs").mkdir()
        self._write()

    def write_mesh(self, v1: str, v2: str) -> None:
        """mesh.yaml with these weights of inventory's two versions, as text: they need not be right."""
        self._weights = v1, v2
        self._write()

    def inject(self, fault: bool) -> None:
        """mesh.yaml in which a share FAULT_SHARE of the calls to storefront fails on purpose, or no longer does."""
        self._fault = fault
        self._write()

    def _write(self) -> None:
        _replace(self.file, _MESH % (self._port, _FAULT if self._fault else "", *self._weights))

    def write_token(self, service: str, token: str) -> None:
        """Keep the join token of a service, for this user alone."""
        file = self.token_file(service)
        file.touch(mode=0o600)
        file.write_text(f"{token}\n")

    def token_file(self, service: str) -> Path:
        """Where the join token of a service is."""
        return self.folder / f"{service}.token"

    def log(self, process: str) -> Path:
        """The log of a process, by name."""
        return self.folder / "logs" / f"{process}.log"

    def free_port(self) -> int:
        """A port of this machine that nobody listens on, and that was not given out before. DemoError."""
        for port in random.sample(PORTS, len(PORTS)):
            if port not in self._taken and _is_free(port):
                self._taken.add(port)
                return port
        raise DemoError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)
