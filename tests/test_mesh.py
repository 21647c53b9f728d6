"""Mesh: what it does not do before it starts, what it says when it cannot, how it ends."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

import meshlib
from meshlib import ConfigError, Mesh, UnknownService

PLAIN: dict[str, Any] = {
    "version": 1,
    "mesh": "shop",
    "defaults": {"mtls": "disabled"},
    "services": {"inventory": {}, "stock.warehouse": {}, "orders": {}},
}


def config(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {**PLAIN, "state_dir": str(tmp_path / ".meshlib"), **changes}


def test_making_one_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read, no thread started, not even for a configuration that does not exist."""
    monkeypatch.chdir(tmp_path)
    before = threading.active_count()
    mesh = Mesh("orders", "nowhere.yaml")
    mesh.client("inventory")
    mesh.sync_client("inventory")
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        mesh.start()
    mesh.close()


def test_every_problem_is_in_the_error_and_nothing_is_started(tmp_path: Path) -> None:
    """Two mistakes, two lines, no thread."""
    (tmp_path / "mesh.yaml").write_text("version: 1\nmesh: shop\nmesg: x\ndefaults: {timeout: soon}\n")
    mesh = Mesh("orders", tmp_path / "mesh.yaml")
    before = threading.active_count()
    with pytest.raises(ConfigError) as caught:
        mesh.start()
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [(3, "mesg"), (4, "defaults.timeout")]
    assert threading.active_count() == before
    assert not (tmp_path / ".meshlib").exists()
    mesh.close()


def test_the_configuration_is_found_by_variable_then_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$MESHLIB_CONFIG, then ./mesh.yaml; the service by $MESHLIB_SERVICE, then anonymous."""
    text = "version: 1\nmesh: {}\ndefaults: {{mtls: disabled}}\n"
    (tmp_path / "mesh.yaml").write_text(text.format("here"))
    (tmp_path / "other.yaml").write_text(text.format("there"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MESHLIB_CONFIG", raising=False)
    monkeypatch.delenv("MESHLIB_SERVICE", raising=False)
    with Mesh() as mesh:
        assert mesh.config.mesh == "here"
        assert mesh._engine.service == "anonymous.default"
    monkeypatch.setenv("MESHLIB_CONFIG", str(tmp_path / "other.yaml"))
    monkeypatch.setenv("MESHLIB_SERVICE", "orders.sales")
    with Mesh() as mesh:
        assert mesh.config.mesh == "there"
        assert mesh._engine.service == "orders.sales"


def test_a_keyword_wins_over_the_file(tmp_path: Path) -> None:
    """Overrides are fields of mesh.yaml, and are checked like it."""
    with Mesh("orders", config(tmp_path), telemetry={"tracing": {"sample": "50%"}}) as mesh:
        assert mesh.config.telemetry.tracing.sample == 0.5
    mesh = Mesh("orders", config(tmp_path), telemetri={})
    with pytest.raises(ConfigError, match="did you mean 'telemetry'"):
        mesh.start()
    mesh.close()


@pytest.mark.parametrize("name", ["Orders", "a.b.c", "orders_1", "-x", ""])
def test_a_name_that_is_no_service_name_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a sentence, at the start; an empty one is no name."""
    monkeypatch.delenv("MESHLIB_SERVICE", raising=False)
    mesh = Mesh(name, config(tmp_path))
    if name == "":
        mesh.start()
        assert mesh._engine.service == "anonymous.default"
    else:
        with pytest.raises(ConfigError, match="a service is named"):
            mesh.start()
    mesh.close()


def test_an_unknown_service_is_an_error_that_names_it_and_the_nearest(tmp_path: Path) -> None:
    """At once, typed, as httpx.ConnectError too, on both clients."""
    with Mesh("orders", config(tmp_path)) as mesh:
        with pytest.raises(UnknownService, match=r"'inventroy'.*did you mean 'inventory'") as caught:
            mesh.sync_client("inventroy").get("/")
        assert isinstance(caught.value, httpx.ConnectError)

        async def ask() -> None:
            await mesh.client("inventroy").get("/")

        with pytest.raises(httpx.ConnectError, match="inventroy"):
            asyncio.run(ask())


def test_a_bare_name_is_of_the_callers_namespace_then_of_default(tmp_path: Path) -> None:
    """`stock` is stock.warehouse for a caller in warehouse, and nothing for one in default."""
    with Mesh("packer.warehouse", config(tmp_path)) as mesh:
        assert mesh._engine.plan("stock").service == "stock.warehouse"
        assert mesh._engine.plan("inventory").service == "inventory.default"
    with Mesh("orders", config(tmp_path)) as mesh:
        assert isinstance(mesh._engine.plan("stock"), UnknownService)
        assert mesh._engine.plan("stock.warehouse").service == "stock.warehouse"


def test_a_service_without_endpoints_says_so_at_once(tmp_path: Path) -> None:
    """NoHealthyEndpoint, with the reason."""
    with Mesh("orders", config(tmp_path)) as mesh, pytest.raises(meshlib.NoHealthyEndpoint, match="no endpoints"):
        mesh.sync_client("inventory").get("/")


def test_a_closed_mesh_stays_closed(tmp_path: Path) -> None:
    """Calls and starts are RuntimeErrors; closing again is nothing; no thread is left."""
    mesh = Mesh("orders", config(tmp_path))
    with mesh:
        client, agent = mesh.sync_client("inventory"), mesh._engine._agent
    for again in (mesh.start, lambda: client.get("/")):
        with pytest.raises(RuntimeError, match="closed"):
            again()
    mesh.close()
    asyncio.run(mesh.aclose())
    assert agent is not None
    assert not agent._thread.is_alive()


def test_the_clients_are_kept_unless_they_have_options(tmp_path: Path) -> None:
    """The same object for a service; another with options; a new one after it was closed."""
    with Mesh("orders", config(tmp_path)) as mesh:
        client = mesh.sync_client("inventory")
        assert mesh.sync_client("inventory") is client
        assert mesh.sync_client("inventory", headers={"x": "y"}) is not client
        client.close()
        assert mesh.sync_client("inventory") is not client


def test_a_forked_child_begins_anew(tmp_path: Path) -> None:
    """Its own instance, agent and learned state; the parent's go on."""
    with Mesh("orders", config(tmp_path)) as mesh:
        instance, agent = mesh._engine.instance, mesh._engine._agent
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                fresh = not mesh._engine.started and mesh._engine.instance != instance
                mesh.start()
                running = mesh._engine._agent is not agent and mesh._engine._agent._thread.is_alive()
                os.write(write, b"yes" if fresh and running else b"no")
            finally:
                os._exit(0)
        assert os.read(read, 3) == b"yes"
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
        assert mesh._engine.started
        assert agent._thread.is_alive()


def test_a_strict_server_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An anonymous server would have no identity to be known by."""
    monkeypatch.delenv("MESHLIB_SERVICE", raising=False)
    mesh = Mesh(None, {**PLAIN, "defaults": {}, "state_dir": str(tmp_path / ".meshlib")})
    with pytest.raises(ConfigError, match="a server needs a name"):
        asyncio.run(mesh.serve(lambda scope, receive, send: None))
    mesh.close()


def test_the_dev_identity_serves_the_loopback_only(tmp_path: Path) -> None:
    """An address that others reach is refused with the reason."""
    mesh = Mesh("orders", {**PLAIN, "defaults": {}, "state_dir": str(tmp_path / ".meshlib")})
    with pytest.raises(ConfigError, match="loopback"):
        asyncio.run(mesh.serve(lambda scope, receive, send: None, host="0.0.0.0"))
    mesh.close()


def test_serving_without_an_application_says_what_to_do(tmp_path: Path) -> None:
    """There is nothing to serve."""
    mesh = Mesh("orders", config(tmp_path))
    with pytest.raises(ConfigError, match="decorate a handler"):
        asyncio.run(mesh.serve())
    mesh.close()


def test_a_server_that_is_starting_is_not_ready() -> None:
    """Whoever waits for it would call a port on which nobody listens yet."""
    with Mesh("orders", {"version": 1, "mesh": "shop", "defaults": {"mtls": "disabled"}}) as mesh:
        mesh.start()
        assert mesh._is_ready()
        mesh._own_host().own_server = True
        assert not mesh._is_ready()
        mesh._own_host().listening = "127.0.0.1:1000"
        assert mesh._is_ready()
