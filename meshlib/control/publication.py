"""A mesh.yaml as resources: which there are, and what each of them says. Pure.

    defaults            what holds for every service, as it is written
    service/<name>      its policy as it is written, and which services its routes need
    endpoints/<name>    who is registered under its name

A process gets resources, not the file: what it does not call it does not learn (DESIGN §2.5). Content is as written,
not as compiled: the process compiles it with the same code, and says what is wrong where the file says it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..config.model import MeshConfig

Endpoints = list[dict[str, Any]]
"""Who is registered under a name: `Registry.endpoints`."""


def contents(config: MeshConfig) -> dict[str, Any]:
    """`defaults`, and `service/<name>` of each service in the policy, by resource."""
    defaults, services = config.raw_policy()
    found: dict[str, Any] = {"defaults": defaults}
    for name, policy in services.items():
        found[f"service/{name}"] = {"policy": policy, "needs": list(config.route_targets(name))}
    return found


def policy_contents(config: MeshConfig, before: Iterable[str], endpoints: Callable[[str], Endpoints]) -> dict[str, Any]:
    """Everything that a new policy decides: its `contents`, None for each service that was in the policy `before`
    (canonical names, `Catalog.services`) and is no more, and `endpoints/<name>` of all of these.
    """
    found = contents(config)
    for name in {*before} - {*config.services}:
        found[f"service/{name}"] = None
    for name in {*before, *config.services}:
        found[f"endpoints/{name}"] = endpoints_content(endpoints(name), in_policy=name in config.services)
    return found


def endpoints_content(endpoints: Endpoints, *, in_policy: bool) -> Endpoints | None:
    """The content of `endpoints/<name>`: None, no such service, where it is not in the policy and nobody registered."""
    return endpoints if endpoints or in_policy else None
