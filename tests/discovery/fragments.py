"""Fragments for tests: what the config service would have signed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from meshlib.discovery.fragment import Fragment, Signed, parse_fragment

MESH = "shop"


def signed(resource: str, n: int, content: Any, epoch: str = "e1", mesh: str = MESH) -> Signed:
    """The text of a fragment; nobody has signed it."""
    payload = json.dumps({"resource": resource, "epoch": epoch, "n": n, "mesh": mesh, "content": content})
    return Signed(payload, "c2ln", "PEM")


def fragment(resource: str, n: int, content: Any, epoch: str = "e1", mesh: str = MESH) -> Fragment:
    """The same, parsed."""
    return parse_fragment(signed(resource, n, content, epoch, mesh))


def service(
    name: str, n: int, policy: Mapping[str, Any] | None = None, needs: tuple[str, ...] = (), **more: Any
) -> Fragment:
    """The policy of a service."""
    return fragment(f"service/{name}", n, {"policy": dict(policy or {}), "needs": list(needs)}, **more)


def endpoint(address: str, state: str = "ready", **labels: str) -> dict[str, Any]:
    """An entry of `endpoints/…`."""
    return {"address": address, "zone": "", "weight": 1, "labels": labels, "state": state}


def endpoints(name: str, n: int, *addresses: str, **more: Any) -> Fragment:
    """Who has registered as a service."""
    return fragment(f"endpoints/{name}", n, [endpoint(address) for address in addresses], **more)


def trust(n: int, **content: Any) -> dict[str, Any]:
    """Content of a `trust` fragment."""
    return {"bundle": "PEM", "generation": n, "spread_s": 0.0, "revoked": [], **content}
