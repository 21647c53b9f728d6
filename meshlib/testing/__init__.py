"""Tests of what runs on the mesh: the production engine, with fake services in memory and, where wanted, virtual time.

    FakeMesh(config)            a Mesh whose calls end at fake services; nothing touches network, files or threads
    on_fakes(mesh)              the same for a Mesh that an application already has
    FakeService, FakeRequest    what a service answers, call after call, and what it was asked
    assert_route(config, …)     what the policy would do with a call, without making it
    simulate(main, seed=…)      an hour in milliseconds; the same seed gives the same transcript

With pytest the fixtures `mesh_factory`, `fake_mesh` and `virtual_time` are there without an import (`plugin.py`).
Importing this package loads nothing: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fake_mesh import FakeMesh, on_fakes
    from .fake_service import FakeRequest, FakeService, Script
    from .faults import Fault
    from .memory import Fakes
    from .route_assertion import assert_route
    from .simulation import Simulated, Simulation, simulate

_HOMES = {
    "FakeMesh": "fake_mesh",
    "FakeRequest": "fake_service",
    "FakeService": "fake_service",
    "Fakes": "memory",
    "Fault": "faults",
    "Script": "fake_service",
    "Simulated": "simulation",
    "Simulation": "simulation",
    "assert_route": "route_assertion",
    "on_fakes": "fake_mesh",
    "simulate": "simulation",
}

__all__ = [
    "FakeMesh",
    "FakeRequest",
    "FakeService",
    "Fakes",
    "Fault",
    "Script",
    "Simulated",
    "Simulation",
    "assert_route",
    "on_fakes",
    "simulate",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'meshlib.testing' has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
