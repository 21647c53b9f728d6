"""What a configuration says of itself: its endpoints with what is registered, its raw policy, whom its routes name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from meshlib.config import MeshConfig, effective, load_config, parse_config
from meshlib.endpoint import Endpoint

from .documents import FULL

HEAD = "version: 1\nmesh: m\ncontrol: {urls: ['https://c:1']}\n"
A, B, C, D = (Endpoint("10.0.0.1", port) for port in (1, 2, 3, 4))
ORDER = parse_config(
    HEAD
    + """\
services:
  only: {endpoints: [{registry: {}}]}
  between: {endpoints: [{static: ['10.0.0.1:1']}, {registry: {}}, {static: ['10.0.0.1:4']}]}
  static: {endpoints: [{static: ['10.0.0.1:1']}]}
  none: {}
"""
)


def test_nothing_is_registered_at_first() -> None:
    """A service whose only source is `registry` has no endpoints then; the other sources are there."""
    assert [ORDER.endpoints(f"{name}.default") for name in ("only", "between", "static", "none")] == [
        (), (A, D), (A,), (),
    ]  # fmt: skip
    known = [name for name in (*ORDER.names(), "nobody.default") if ORDER.has_registry(name)]
    assert known == ["between.default", "only.default"]


def test_registered_endpoints_stand_where_their_source_stands() -> None:
    """In the order of sources; what is said of services without the source, or that are unknown, is left out."""
    given = {"only.default": (C, B), "between.default": (B, C), "static.default": (C,), "nobody.default": (C,)}
    config = ORDER.with_registered(given)
    assert [config.endpoints(f"{name}.default") for name in ("only", "between", "static", "nobody")] == [
        (C, B), (A, B, C, D), (A,), (),
    ]  # fmt: skip
    assert ORDER.endpoints("only.default") == (), "the configuration it was made from has changed"


def test_one_address_counts_once() -> None:
    """The first of the same address counts: an earlier source's, and the first that is registered."""
    heavy, absent = Endpoint("10.0.0.1", 1, weight=9), Endpoint("10.0.0.1", 4, absent=True)
    config = ORDER.with_registered({"between.default": (heavy, absent, B, B), "only.default": (B, absent, D)})
    assert config.endpoints("between.default") == (A, absent, B)
    assert config.endpoints("only.default") == (B, absent)


def test_registering_again_replaces() -> None:
    """What an earlier `with_registered` gave is gone, in whole."""
    config = ORDER.with_registered({"only.default": (B,), "between.default": (B,)}).with_registered(
        {"only.default": (C,)}
    )
    assert (config.endpoints("only.default"), config.endpoints("between.default")) == ((C,), (A, D))
    assert config.with_registered({}).endpoints("only.default") == ()


@pytest.mark.parametrize(
    "other",
    [
        Endpoint("10.0.0.1", 3),
        Endpoint("10.0.0.2", 2),
        Endpoint("10.0.0.1", 2, "z"),
        Endpoint("10.0.0.1", 2, weight=2),
        Endpoint("10.0.0.1", 2, labels={"version": "1"}),
        Endpoint("10.0.0.1", 2, absent=True),
    ],
)
def test_version_number_follows_what_is_registered(other: Endpoint) -> None:
    """Any change of an endpoint changes it; the same is the same, and nothing is the policy's own number."""
    number = ORDER.with_registered({"only.default": (B,)}).version_number
    assert ORDER.with_registered({"only.default": (other,)}).version_number != number
    assert ORDER.with_registered({"between.default": (B,)}).version_number != number
    again = ORDER.with_registered({"between.default": (B,)}).with_registered(
        {"only.default": (B,), "none.default": (B,)}
    )
    assert again.version_number == number
    assert 0 < number < 2**48
    assert ORDER.with_registered({"only.default": ()}).version_number == ORDER.version_number
    labels = [
        Endpoint("10.0.0.1", 2, labels=dict(pairs)) for pairs in ((("a", "1"), ("b", "2")), (("b", "2"), ("a", "1")))
    ]
    assert len({ORDER.with_registered({"only.default": (endpoint,)}).version_number for endpoint in labels}) == 1


def test_the_rest_is_the_same_configuration() -> None:
    """Policy, places and provenance are not touched by what is registered."""
    config = parse_config(FULL, "mesh.yaml")
    now = config.with_registered({"inventory.default": (B,)})
    assert [endpoint.port for endpoint in now.endpoints("inventory.default")] == [8081, 8082, 2, 8083]
    assert now.place(("defaults", "timeout")) == config.place(("defaults", "timeout"))
    assert effective(now, "inventory.default", 0) == effective(config, "inventory.default", 0)
    assert (now.raw_policy(), now.files, now.directory) == (config.raw_policy(), config.files, config.directory)


def test_raw_policy(tmp_path: Path) -> None:
    """As written, under canonical names; a file source is the static one it stands for, in its place."""
    (tmp_path / "eps.yaml").write_text("- {address: '10.0.0.1:2', weight: 5}\n- 10.0.0.1:3\n")
    (tmp_path / "mesh.yaml").write_text(
        HEAD + "defaults: {timeout: 2s}\n"
        "services: {a: {endpoints: [{static: ['10.0.0.1:1']}, {file: eps.yaml}, {registry: {}}]}, b.stock: {}}\n"
    )
    defaults, services = load_config(tmp_path / "mesh.yaml").raw_policy()
    assert defaults == {"timeout": "2s"}
    assert services == {
        "a.default": {
            "endpoints": [
                {"static": ["10.0.0.1:1"]},
                {"static": [{"address": "10.0.0.1:2", "weight": 5}, "10.0.0.1:3"]},
                {"registry": {}},
            ]
        },
        "b.stock": {},
    }
    assert json.loads(json.dumps(services)) == services


def test_raw_policy_of_nothing() -> None:
    """A file without policy, and a configuration that no loader made, have an empty one."""
    by_hand = MeshConfig.model_validate({"version": 1, "mesh": "m", "services": {"a": {}}})
    assert parse_config(HEAD).raw_policy() == by_hand.raw_policy() == ({}, {})
    assert by_hand.with_registered({"a.default": (A,)}).endpoints("a.default") == ()


def test_route_targets() -> None:
    """Canonical names of what routes name, as seen from the owner's namespace; without itself, each once, sorted."""
    config = parse_config(
        """\
version: 1
mesh: m
services:
  orders.stock:
    routes:
      - {name: a, backends: [{service: web}, {service: inventory}, {service: orders}, {}]}
      - {name: b, backends: [{service: inventory, weight: 3}]}
  inventory.stock: {allow_routes_from: [orders]}
  inventory: {}
  web: {allow_routes_from: [orders.stock]}
"""
    )
    assert config.route_targets("orders.stock") == ("inventory.stock", "web.default")
    assert config.route_targets("web.default") == config.route_targets("nobody.default") == ()


def test_an_absent_endpoint_keeps_its_mark() -> None:
    """It is another endpoint than the present one, at the same address, and survives being sent to a process."""
    present, absent = Endpoint("::1", 1), Endpoint("::1", 1, absent=True)
    assert present != absent
    assert present.address == absent.address == "[::1]:1"
    assert pickle.loads(pickle.dumps(absent)) == absent
    assert not present.absent
