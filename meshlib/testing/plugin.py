"""The pytest plugin: fixtures for a mesh in memory and for virtual time. Tests that do not ask for them see nothing.

    --meshlib-seed N        the seed of every fixture here; `random` draws one per test. Default: 0.

The seed of a failed test is in its report. Loading this file loads nothing of the mesh.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .fake_mesh import FakeMesh
    from .simulation import Simulated, Simulation

SEED_BITS = 32


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of this plugin."""
    help_text = "seed of meshlib's fixtures: a number, or `random` for one per test (default: 0)"
    parser.getgroup("meshlib").addoption("--meshlib-seed", default="0", metavar="N", type=_seed, help=help_text)


@pytest.fixture
def mesh_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test; when it fails, its report says how to repeat it."""
    given = request.config.getoption("--meshlib-seed")
    seed: int = random.SystemRandom().getrandbits(SEED_BITS) if given is None else given
    request.node.add_report_section("call", "meshlib", f"seed {seed}: repeat with --meshlib-seed={seed}")
    return seed


@pytest.fixture
def mesh_factory(mesh_seed: int) -> Iterator[Callable[..., FakeMesh]]:
    """`mesh_factory(config, …)` makes a FakeMesh with the seed of this test; it is closed with the test.

    def test_stock(mesh_factory):
        mesh = mesh_factory("mesh.yaml")
        mesh.service("inventory").fail("refused").then.reply(json={"stock": 7})
        assert mesh.sync_client("inventory").get("/items/7").json() == {"stock": 7}
    """
    from .fake_mesh import FakeMesh

    made: list[FakeMesh] = []

    def make(config: Any = None, service: str | None = "tests", **options: Any) -> FakeMesh:
        made.append(FakeMesh(config, service, **{"seed": mesh_seed, **options}))
        return made[-1]

    yield make
    for mesh in made:
        mesh.close()


@pytest.fixture
def fake_mesh(mesh_factory: Callable[..., FakeMesh]) -> FakeMesh:
    """A FakeMesh of the policy that production would read: `$MESHLIB_CONFIG`, else `./mesh.yaml`."""
    return mesh_factory()


@pytest.fixture
def virtual_time(mesh_seed: int) -> Callable[..., Simulated[Any]]:
    """`virtual_time(main)` is `simulate(main)` with the seed of this test.

    def test_an_hour(virtual_time):
        async def main(sim):
            mesh = FakeMesh("mesh.yaml")
            …
        virtual_time(main)
    """
    from .simulation import simulate

    def run(main: Callable[[Simulation], Coroutine[Any, Any, Any]], *, seed: int | None = None) -> Simulated[Any]:
        return simulate(main, seed=mesh_seed if seed is None else seed)

    return run


def _seed(text: str) -> int | None:
    return None if text == "random" else int(text)
