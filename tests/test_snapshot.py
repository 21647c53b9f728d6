"""What a configuration means to one process: plans that are kept, and services that have yet to arrive."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

from meshlib.config import MeshConfig, config_of
from meshlib.endpoint import Endpoint
from meshlib.learned import Learned
from meshlib.plan import ServicePlan
from meshlib.runtime.blocking import BlockingRuntime
from meshlib.snapshot import ARRIVING, Snapshot


def configured(**ports: int) -> MeshConfig:
    services = {name: {"endpoints": [{"static": [f"127.0.0.1:{port}"]}]} for name, port in ports.items()}
    return config_of({"version": 1, "mesh": "shop", "services": services})


BOOTSTRAP = {"version": 1, "mesh": "shop", "control": {"urls": ["https://127.0.0.1:7443"]}}
LEARNED, LOCK = Learned(BlockingRuntime().lock), threading.RLock()


def meant(config: MeshConfig, **more: Any) -> Snapshot:
    return Snapshot(config, "orders.default", LEARNED, LOCK, lambda: None, **more)


def plan(snapshot: Snapshot, name: str) -> ServicePlan:
    found = snapshot.plan(name)
    assert isinstance(found, ServicePlan)
    return found


def test_only_what_has_changed_is_compiled_again() -> None:
    """Among 10,000 services, endpoints that come and go cost the plan of their own service."""
    registry = {"endpoints": [{"registry": {}}]}
    policy = config_of({**BOOTSTRAP, "services": {"items": registry, "stock": registry}})
    stocked = (Endpoint("127.0.0.1", 2),)
    before = meant(policy.with_registered({"items.default": (Endpoint("127.0.0.1", 1),), "stock.default": stocked}))
    items, stock = plan(before, "items"), plan(before, "stock")
    changed = policy.with_registered({"items.default": (Endpoint("127.0.0.1", 3),), "stock.default": stocked})
    after = meant(changed, before=before)
    assert plan(after, "stock") is stock
    assert plan(after, "items") is not items
    assert [node.endpoint.port for node in plan(after, "items").routes[0].backends[0].cluster.nodes] == [3]


def test_other_defaults_change_every_plan() -> None:
    """They are in each of them."""
    first = configured(items=1)
    before = meant(first)
    defaults = config_of({"version": 1, "mesh": "shop", "defaults": {"timeout": "9s"}}).defaults
    after = meant(first.model_copy(update={"defaults": defaults}), before=before)
    assert plan(after, "items") is not plan(before, "items")


def test_what_is_looked_up_is_followed_also_ourselves() -> None:
    """A process that serves does not follow its own endpoints until it calls itself."""
    asked: list[Collection[str]] = []
    config = configured(orders=1)
    served = meant(config, known=frozenset(), asked=asked.append)
    assert served.plan("orders") is ARRIVING
    assert asked == [["orders.default"]]
    arrived = meant(config, known=frozenset({"orders.default"}), asked=asked.append)
    assert [node.endpoint.port for node in plan(arrived, "orders").routes[0].backends[0].cluster.nodes] == [1]
