"""FakeMesh: a real Mesh whose calls end at fake services in memory; `on_fakes`: the same for a mesh that exists."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, Self, TypeVar

from ..config import MeshConfig, config_of, parse_config
from ..mesh import Mesh
from .fake_service import FakeService
from .faults import Fault
from .memory import Fakes

ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | MeshConfig
Config = TypeVar("Config", ConfigLike, ConfigLike | None)


class FakeMesh(Mesh):
    """A Mesh in memory: `client`, `sync_client`, `transport`, `policy` and errors are the ones of production.

    `config`: a path, a dict, a MeshConfig or YAML text (told by its line breaks); None: as of Mesh. `service`: the
    caller. `seed` of balancing, back-off and faults; None: the running simulation's, else 0. `overrides`: as of Mesh.
    A service without endpoints gets one for each of its subsets. Nothing has to be closed.

    >>> mesh = FakeMesh({"version": 1, "mesh": "shop", "services": {"inventory": {}}})
    >>> inventory = mesh.service("inventory").reply(json={"stock": 7})
    >>> mesh.sync_client("inventory").get("/items/7").json()
    {'stock': 7}
    >>> with mesh.fault("inventory", abort=503):
    ...     mesh.sync_client("inventory").get("/items/7").status_code
    503
    >>> inventory.count
    1
    """

    def __init__(
        self,
        config: ConfigLike | None = None,
        service: str | None = "tests",
        *,
        seed: int | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__(service, _unless_text(config), **overrides)
        self.fakes = Fakes(self._engine, seed)
        self._engine.surroundings = self.fakes

    def service(self, name: str) -> FakeService:
        """The fake that stands for a service, the same one each time; UnknownService as from a call."""
        return self.fakes.service(name)

    def fault(
        self, service: str, *, abort: int | None = None, delay: float = 0.0, refuse: bool = False, percent: float = 100
    ) -> Fault:
        """From now on, or for a `with` block, `percent` of the attempts to `service` go wrong; see `Fault`."""
        return self.fakes.fault(service, abort=abort, delay=delay, refuse=refuse, percent=percent)

    def put_in_force(self, config: ConfigLike) -> None:
        """Another policy, as when mesh.yaml is edited: calls in flight end under the old one. ConfigError."""
        self.fakes.put_in_force(policy_of(config))

    @property
    def metrics(self) -> str:
        """The text of `/metrics`."""
        return self._engine.metrics.render()

    async def serve(self, *_arguments: Any, **_options: Any) -> NoReturn:
        """RuntimeError: nobody has a certificate here, so nothing listens. Call `mesh.asgi(app)` in memory instead."""
        raise RuntimeError("a FakeMesh does not serve: give mesh.asgi(app) to httpx.ASGITransport, or use Mesh")

    async def __aenter__(self) -> Self:
        self.start()  # a simulation has no thread to read files in
        return self

    def __enter__(self) -> Self:
        self.start()
        return self


@contextmanager
def on_fakes(mesh: Mesh, *, seed: int | None = None) -> Iterator[Fakes]:
    """Inside the `with` block, the calls of `mesh`, and of every client it has given out, end at fake services.

    For an application that has its Mesh in a module. `mesh` has not started, and is afterwards as if it never had.
    RuntimeError where it has.

    >>> mesh = Mesh("orders", {"version": 1, "mesh": "shop", "services": {"inventory": {}}})
    >>> client = mesh.sync_client("inventory")
    >>> with on_fakes(mesh) as fakes:
    ...     _ = fakes.service("inventory").reply(json={"stock": 7})
    ...     client.get("/items/7").json()
    {'stock': 7}
    """
    engine = mesh._engine
    if engine.started or engine.closed:
        raise RuntimeError(f"{mesh!r} has started: put it on fakes before its first call")
    before, engine.surroundings = engine.surroundings, Fakes(engine, seed)
    try:
        yield engine.surroundings
    finally:
        if mesh._host is not None:
            mesh._host.close()
        engine.surroundings, engine.closed = before, False
        engine.reset()


def policy_of(config: ConfigLike) -> MeshConfig:
    """A path, a dict, a MeshConfig or YAML text, as a MeshConfig. ConfigError."""
    return config_of(_unless_text(config))


def _unless_text(config: Config) -> Config | MeshConfig:
    return parse_config(config) if isinstance(config, str) and "\n" in config else config
