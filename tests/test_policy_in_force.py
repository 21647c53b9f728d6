"""An edit of mesh.yaml: what changes, what stays, and what a broken one does."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshlib import Mesh
from meshlib.config import MeshConfig, load_config
from meshlib.plan import ServicePlan
from meshlib.telemetry.metrics import Metrics
from meshlib.watched_file import WatchedFile

TEXT = """\
version: 1
mesh: shop
defaults: {mtls: disabled}
services:
  inventory:
    timeout: TIMEOUT
    endpoints: [{static: ADDRESSES}]
    subsets: {v1: {version: "1"}}
    limits: {max_response_body: 1KiB}
"""


def written(folder: Path, timeout: str = "1s", addresses: str = '["127.0.0.1:1001", "127.0.0.1:1002"]') -> Path:
    path = folder / "mesh.yaml"
    path.write_text(TEXT.replace("TIMEOUT", timeout).replace("ADDRESSES", addresses))
    return path


def plan_of(mesh: Mesh) -> ServicePlan:
    plan = mesh._engine.plan("inventory")
    assert isinstance(plan, ServicePlan)
    return plan


def reload(mesh: Mesh) -> bool:
    assert mesh._engine.file is not None
    return mesh._engine.file.reload()


def again_at(mesh: Mesh) -> float:
    assert mesh._engine.file is not None
    return mesh._engine.file.again_at


def metric(mesh: Mesh, name: str) -> str:
    return next(line for line in mesh._engine.metrics.render().splitlines() if line.startswith(name)).split()[-1]


def test_an_edit_is_in_force_and_what_was_learned_stays(tmp_path: Path) -> None:
    """New numbers, the same nodes for the same addresses, the lost one gone."""
    with Mesh("orders", written(tmp_path)) as mesh:
        before, version = plan_of(mesh), metric(mesh, "meshlib_policy_version")
        first = before.routes[0].backends[0].cluster.nodes[0]
        first.ewma.observe(0.5, 1.0)
        written(tmp_path, "2s", '["127.0.0.1:1001", "127.0.0.1:1003"]')
        assert reload(mesh)
        after = plan_of(mesh)
        assert after.routes[0].route.timeout_s == 2.0
        assert before.routes[0].route.timeout_s == 1.0, "a plan in use was changed"
        assert after.routes[0].backends[0].cluster.nodes[0] is first
        assert [node.endpoint.port for node in after.routes[0].backends[0].cluster.nodes] == [1001, 1003]
        mesh._engine.retire()  # which the agent does two seconds later
        assert {port for _, port in mesh._engine._learned._nodes} == {"127.0.0.1:1001", "127.0.0.1:1003"}
        assert metric(mesh, "meshlib_policy_version") != version
        assert 'endpoint="127.0.0.1:1002"' not in mesh._engine.metrics.render()


def test_a_broken_edit_changes_nothing_and_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Counted, logged with its place, and the next good edit is taken."""
    path = written(tmp_path)
    with Mesh("orders", path) as mesh:
        before, version = plan_of(mesh), metric(mesh, "meshlib_policy_version")
        assert metric(mesh, "meshlib_policy_rejected_total") == "0"
        path.write_text(path.read_text().replace("timeout: 1s", "timeout: soon"))
        with caplog.at_level(logging.ERROR, "meshlib"):
            assert not reload(mesh)
        assert "mesh.yaml:6:14: services.inventory.timeout" in caplog.text
        assert plan_of(mesh) is before
        assert metric(mesh, "meshlib_policy_version") == version
        assert metric(mesh, "meshlib_policy_rejected_total") == "1"
        written(tmp_path, "3s")
        assert reload(mesh)
        assert plan_of(mesh).routes[0].route.timeout_s == 3.0


class Owner:
    """What a watched file needs of an engine; `tick` of the file is ours alone here."""

    def __init__(self, config: MeshConfig) -> None:
        self.policy, self.metrics = SimpleNamespace(config=config, version=config.version_number), Metrics()

    def identify(self, config: MeshConfig) -> None:
        """Nobody."""

    def put_in_force(self, config: MeshConfig) -> None:
        """It is."""
        self.policy = SimpleNamespace(config=config, version=config.version_number)


def test_a_broken_part_of_a_directory_is_watched_until_it_is_mended(tmp_path: Path) -> None:
    """A new part with a mistake, corrected in place, without the directory changing; a missing file that it names."""
    written(tmp_path)
    (tmp_path / "endpoints").mkdir()
    part, endpoints = tmp_path / "stock.yaml", tmp_path / "endpoints" / "stock.json"
    owner = Owner(load_config(tmp_path))
    watched = WatchedFile(owner, lambda: load_config(tmp_path), tmp_path)  # type: ignore[arg-type]
    for file, text, is_there in (
        (part, "services: {stock: {timeout: soon}}\n", False),
        (part, "services: {stock: {endpoints: [{file: endpoints/stock.json}]}}\n", False),
        (endpoints, '["127.0.0.1:1004"]', True),
    ):
        file.write_text(text)
        watched.tick()
        watched.tick()
        assert ("stock.default" in owner.policy.config.services) is is_there


def test_an_edit_that_says_the_same_changes_nothing(tmp_path: Path) -> None:
    """A comment is no new policy."""
    path = written(tmp_path)
    with Mesh("orders", path) as mesh:
        before = plan_of(mesh)
        path.write_text("# a comment\n" + path.read_text())
        assert not reload(mesh)
        assert plan_of(mesh) is before


def test_a_bootstrap_field_waits_for_the_next_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The policy of the same edit is taken; the field is named."""
    path = written(tmp_path)
    with Mesh("orders", path) as mesh:
        path.write_text(path.read_text().replace("mesh: shop", "mesh: store").replace("timeout: 1s", "timeout: 4s"))
        with caplog.at_level(logging.WARNING, "meshlib"):
            assert reload(mesh)
        assert "mesh, trust_domain will be in force when this process starts again" in caplog.text
        assert plan_of(mesh).routes[0].route.timeout_s == 4.0


def test_the_limit_of_a_reply_is_the_services_own(tmp_path: Path) -> None:
    """`limits.max_response_body` reaches the plan that leaves are bound with."""
    with Mesh("orders", written(tmp_path)) as mesh:
        assert plan_of(mesh).routes[0].backends[0].max_response_body == 1024


def test_an_edit_to_strict_gets_an_identity_before_it_is_in_force(tmp_path: Path) -> None:
    """A process that began in plaintext has a certificate from then on, and calls nobody without."""
    with Mesh("orders", written(tmp_path)) as mesh:
        assert mesh._engine.credentials is None
        assert not mesh._engine.strict
        path = tmp_path / "mesh.yaml"
        path.write_text(path.read_text().replace("mtls: disabled", "mtls: strict"))
        assert reload(mesh)
        assert mesh._engine.strict
        assert plan_of(mesh).routes[0].backends[0].strict
        assert mesh._engine.client_tls("inventory.default").expected == "spiffe://shop.dev/ns/default/sa/inventory"


def test_an_edit_that_needs_an_identity_that_cannot_be_had_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The state_dir is open to others: the edit is reported, and the last good policy stays."""
    (tmp_path / ".meshlib").mkdir(mode=0o755)
    with Mesh("orders", written(tmp_path)) as mesh:
        path = tmp_path / "mesh.yaml"
        path.write_text(path.read_text().replace("mtls: disabled", "mtls: strict"))
        with caplog.at_level(logging.ERROR, "meshlib"):
            assert not reload(mesh)
        assert "chmod 700" in caplog.text
        assert not mesh._engine.strict
        assert not plan_of(mesh).routes[0].backends[0].strict


def test_an_edit_waits_for_an_identity_that_fails_for_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reported once; tried again by the agent, and in force as soon as it can be."""
    (tmp_path / ".meshlib").mkdir(mode=0o755)
    with Mesh("orders", written(tmp_path)) as mesh:
        path = tmp_path / "mesh.yaml"
        path.write_text(path.read_text().replace("mtls: disabled", "mtls: strict"))
        with caplog.at_level(logging.ERROR, "meshlib"):
            assert not reload(mesh)
            assert again_at(mesh) < float("inf")
            assert not reload(mesh)
        assert caplog.text.count("is not used") == 1
        (tmp_path / ".meshlib").chmod(0o700)
        assert reload(mesh)
        assert mesh._engine.strict
        assert again_at(mesh) == float("inf")


def test_two_spellings_are_one_plan_and_terms_are_one_budget(tmp_path: Path) -> None:
    """`inventory` and `inventory.default`; the budget outlives an edit that does not change its terms."""
    with Mesh("orders", written(tmp_path)) as mesh:
        assert plan_of(mesh) is mesh._engine.plan("inventory.default")
        budget = plan_of(mesh).routes[0].backends[0].budget
        written(tmp_path, "9s")
        assert reload(mesh)
        assert plan_of(mesh).routes[0].backends[0].budget is budget
        assert len(mesh._engine._learned._budgets) == 1


def test_what_was_called_once_does_not_grow_without_bound(tmp_path: Path) -> None:
    """Hosts that are no services are not bound, and their names are bounded."""
    from meshlib.snapshot import NAMES_MAX

    with Mesh("orders", written(tmp_path)) as mesh:
        scope = mesh._engine.scope_of_threads()
        for number in range(NAMES_MAX + 10):
            scope.service(f"nobody{number}")
        assert len(mesh._engine.policy.names()) == NAMES_MAX
        assert scope._bound == {}
