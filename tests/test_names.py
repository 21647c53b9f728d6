"""Services whose endpoints are names: what a call sees of it, on loops and on threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from discovery.name_server import NameServer, name_server
from http_backend import backends

from meshlib import Mesh, MeshError, NoHealthyEndpoint, UnknownService
from meshlib.discovery import resolution

PATIENCE_S = 20.0


@pytest.fixture
def names() -> Iterator[NameServer]:
    """A name server."""
    with name_server() as running:
        yield running


def mesh_of(names: NameServer, *endpoints: dict[str, Any], **service: Any) -> Mesh:
    """A caller of `items`, at these endpoints."""
    items = {"endpoints": list(endpoints), "retries": {"max_retries": 0}, **service}
    config = {"version": 1, "mesh": "shop", "defaults": {"mtls": "disabled"}, "services": {"items": items}}
    return Mesh("shop", {**config, "dns": {"nameservers": [f"127.0.0.1:{names.port}"]}})


def until(mesh: Mesh, wanted: set[str]) -> None:
    """Call until just these have answered 20 calls; fails after a while."""
    give_up = time.monotonic() + PATIENCE_S
    while (seen := {mesh.sync_client("items").get("/").text for _ in range(20)}) != wanted:
        assert time.monotonic() < give_up, seen


def test_the_first_call_waits_for_the_first_answer(names):
    """On a loop and on threads; the loop goes on meanwhile."""
    with backends("a") as made:
        names.records["items.test", "A"] = (60, ["127.0.0.1"])

        async def main() -> str:
            async with mesh_of(names, {"dns": f"items.test:{made['a'].port}"}) as mesh:
                return (await mesh.client("items").get("/")).text

        assert asyncio.run(main()) == "a"
        with mesh_of(names, {"dns": f"items.test:{made['a'].port}"}) as mesh:
            assert mesh.sync_client("items").get("/").text == "a"


def test_nobody_is_asked_before_there_is_a_call(names):
    """A mesh of a thousand names costs what its caller calls."""
    names.records["items.test", "A"] = (60, ["127.0.0.1"])
    with mesh_of(names, {"dns": "items.test:1"}) as mesh:
        assert names.asked == []
        with pytest.raises(httpx.ConnectError):
            mesh.sync_client("items").get("/")
        assert names.asked == [("items.test", "A", "udp")]


def test_an_address_that_comes_and_one_that_goes(names):
    """Both are in force without an edit; several sources are one service."""
    with backends("a", "b", "c") as made:
        a, b, c = (made[name].port for name in "abc")
        names.records["_h._tcp.items.test", "SRV"] = (0, [f"0 1 {a} localhost."])
        mesh = mesh_of(
            names,
            {"static": [f"127.0.0.1:{c}"]},
            {"srv": "_h._tcp.items.test"},
            load_balancer={"policy": "round_robin"},
        )
        with mesh:
            until(mesh, {"a", "c"})
            names.records["_h._tcp.items.test", "SRV"] = (0, [f"0 1 {a} localhost.", f"0 1 {b} localhost."])
            until(mesh, {"a", "b", "c"})
            names.records["_h._tcp.items.test", "SRV"] = (0, [f"0 1 {b} localhost."])
            until(mesh, {"b", "c"})
            del names.records["_h._tcp.items.test", "SRV"]
            names.trouble["_h._tcp.items.test"] = "SERVFAIL"
            until(mesh, {"b", "c"})


def test_a_later_priority_is_for_when_an_earlier_one_is_gone(names):
    """RFC 2782: and it is left again when that comes back."""
    with backends("a", "b") as made:
        a, b = made["a"], made["b"]
        names.records["_h._tcp.items.test", "SRV"] = (60, [f"1 1 {a.port} localhost.", f"2 1 {b.port} localhost."])
        with mesh_of(names, {"srv": "_h._tcp.items.test"}, retries={"max_retries": 2}) as mesh:
            until(mesh, {"a"})
            a.close()
            until(mesh, {"b"})


def test_a_name_that_does_not_exist_is_an_unknown_service(names):
    """Every source says that there is no such thing."""
    with mesh_of(names, {"dns": "items.test:1"}) as mesh, pytest.raises(UnknownService, match=r"dns items\.test"):
        mesh.sync_client("items").get("/")


def test_a_name_that_cannot_be_resolved_says_why(names):
    """The service exists: it has no endpoint just now."""
    names.trouble["items.test"] = "SERVFAIL"
    with mesh_of(names, {"dns": "items.test:1"}) as mesh, pytest.raises(NoHealthyEndpoint, match="SERVFAIL"):
        mesh.sync_client("items").get("/")


def test_a_deadline_ends_the_wait_for_a_name(names):
    """And the call says what it has waited for."""
    names.trouble["items.test"] = "silent"
    said = r"dns items\.test: no name server has answered yet"
    with mesh_of(names, {"dns": "items.test:1"}, timeout="200ms") as mesh, pytest.raises(MeshError, match=said):
        mesh.sync_client("items").get("/")


def test_a_name_that_is_gone_is_believed_after_a_while(names, monkeypatch):
    """Calls go on until then."""
    monkeypatch.setattr(resolution, "MISSING_KEPT_S", 0.5)
    monkeypatch.setattr(resolution, "TTL_MIN_S", 0.1)
    monkeypatch.setattr(resolution, "NEGATIVE_S", (0.1, 0.1))
    with backends("a") as made:
        names.records["items.test", "A"] = (0, ["127.0.0.1"])
        with mesh_of(names, {"dns": f"items.test:{made['a'].port}"}) as mesh:
            assert mesh.sync_client("items").get("/").text == "a"
            names.records.clear()
            give_up = time.monotonic() + PATIENCE_S
            with pytest.raises(UnknownService, match="no such name"):
                while time.monotonic() < give_up:
                    assert mesh.sync_client("items").get("/").text == "a"


def test_names_of_a_service_that_is_routed_to(names):
    """The first call to a service waits for the names of what its routes name."""
    with backends("a") as made:
        names.records["items.test", "A"] = (60, ["127.0.0.1"])
        config = {
            "version": 1,
            "mesh": "shop",
            "defaults": {"mtls": "disabled"},
            "dns": {"nameservers": [f"127.0.0.1:{names.port}"]},
            "services": {
                "front": {"routes": [{"name": "all", "backends": [{"service": "items"}]}]},
                "items": {"allow_routes_from": ["front"], "endpoints": [{"dns": f"items.test:{made['a'].port}"}]},
            },
        }
        with Mesh("shop", config) as mesh:
            assert mesh.sync_client("front").get("/").text == "a"
