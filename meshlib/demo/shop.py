"""The demo's folder: mesh.yaml and what it names. Every write is one rename, as an editor or a deployment does it.

<folder>/mesh.yaml · endpoints/<service>.yaml · logs/<process>.log · .meshlib/ (the local authority)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from meshlib import load_config

SERVICES = ("storefront", "orders", "inventory")
_MESH = """\
# The mesh of the demo. Every process watches this file: edit it, and the edit is in force within a second.
version: 1
mesh: shop
identity: {source: dev}     # a local certificate authority in .meshlib; every connection is mutual TLS

services:
  storefront:
    endpoints: [{file: endpoints/storefront.yaml}]
  orders:
    endpoints: [{file: endpoints/orders.yaml}]
  inventory:
    endpoints: [{file: endpoints/inventory.yaml}]
    subsets: {v1: {version: v1}, v2: {version: v2}}
    routes:
      - name: stock
        backends:           # the canary: change the weights
          - {subset: v1, weight: %s}
          - {subset: v2, weight: %s}
"""


class Shop:
    """The files of one demo, in a folder that exists."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.state_dir = folder, folder / "mesh.yaml", folder / ".meshlib"
        (folder / "logs").mkdir()
        (folder / "endpoints").mkdir()
        for service in SERVICES:
            self.write_endpoints(service, [])
        self.write_mesh("100", "0")

    @property
    def version(self) -> int:
        """What `meshlib_policy_version` must say where the files as they are now are in force. ConfigError."""
        return load_config(self.file).version_number

    def write_mesh(self, v1: str, v2: str) -> None:
        """mesh.yaml with these weights of inventory's two versions, as text: they need not be right."""
        _replace(self.file, _MESH % (v1, v2))

    def write_endpoints(self, service: str, replicas: Sequence[tuple[str, str]]) -> None:
        """Where the replicas of a service listen: (address, version or '')."""
        entries = [
            {"address": address, "labels": {"version": version} if version else {}} for address, version in replicas
        ]
        lines = ["# written by the demo whenever a replica starts", *(f"- {json.dumps(entry)}" for entry in entries)]
        _replace(self.folder / "endpoints" / f"{service}.yaml", "\n".join(lines if entries else [*lines, "[]"]) + "\n")

    def log(self, process: str) -> Path:
        """The log of a process, by name."""
        return self.folder / "logs" / f"{process}.log"


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)
