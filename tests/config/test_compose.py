"""A policy that came in parts is the same policy as its file, is refused by the same rules, and may be partial."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from meshlib.config import MeshConfig, config_of, effective, load_config, parse_config
from meshlib.config.compose import compose
from meshlib.config.reader import MAX_DIGITS, MAX_NESTING
from meshlib.endpoint import Endpoint
from meshlib.errors import ConfigError

from .documents import FIVE_MISTAKES, FULL

HEAD = "version: 1\nmesh: shop\ntrust_domain: shop.example\ncontrol: {urls: ['https://c:7443']}\n"
BOOTSTRAP = parse_config(HEAD, "mesh.yaml")
SOURCE = "https://c:7443"


def composed(services: dict[str, Any], defaults: dict[str, Any] | None = None) -> MeshConfig:
    return compose(BOOTSTRAP, SOURCE, defaults or {}, services)


def refused(services: Any, defaults: Any = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        composed(services, defaults)
    assert {(problem.file, problem.line, problem.column) for problem in caught.value.problems} == {(SOURCE, 0, 0)}
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


def test_the_whole_policy_there_and_back() -> None:
    """What `raw_policy` gives, through JSON, composes to the same policy for every service and route."""
    config = parse_config(FULL, "mesh.yaml")
    defaults, services = json.loads(json.dumps(config.raw_policy()))
    again = compose(config, SOURCE, defaults, services)
    assert again.names() == config.names()
    assert again.defaults == config.defaults
    assert again.raw_policy() == (defaults, services)
    for name in config.names():
        assert again.services[name] == config.services[name]
        assert again.endpoints(name) == config.endpoints(name)
        assert again.route_targets(name) == config.route_targets(name)
        for route in (None, *range(len(config.services[name].routes))):
            told, told_again = effective(config, name, route), effective(again, name, route)
            assert told.timeout_s == told_again.timeout_s
            assert set(told.provenance) == set(told_again.provenance)


def test_the_bootstrap_fields_are_this_process_s_own(tmp_path: Path) -> None:
    """They, `files` and `directory` come from the file; the file's own policy is not in force."""
    (tmp_path / "eps.yaml").write_text("[]")
    (tmp_path / "mesh.yaml").write_text(
        HEAD + "instance: {zone: a}\ndefaults: {timeout: 3s}\nservices: {own: {endpoints: [{file: eps.yaml}]}}\n"
    )
    local = load_config(tmp_path / "mesh.yaml")
    config = compose(local, SOURCE, {"mtls": "disabled"}, {"a.default": {}})
    assert (config.mesh, config.trust_domain, config.control, config.instance.zone) == (
        "shop", "shop.example", local.control, "a",
    )  # fmt: skip
    assert (config.files, config.directory) == (local.files, local.directory)
    assert (config.names(), config.defaults.timeout, config.defaults.mtls) == (("a.default",), None, "disabled")
    assert config.place(("mesh",)) == f"{tmp_path}/mesh.yaml:2"


def test_who_said_what() -> None:
    """Provenance and places of the policy name its source, without a line."""
    config = composed({"a.default": {"routes": [{"name": "x", "timeout": "2s"}]}}, {"timeout": "1s"})
    told = effective(config, "a.default", 0).provenance
    assert told["timeout"] == f"services.a.default.routes[0] ({SOURCE})"
    assert effective(config, "a.default").provenance["timeout"] == f"defaults ({SOURCE})"
    assert config.place(("services", "a.default", "routes", 0)) == SOURCE
    assert (config.written("a.default"), config.canonical("a")) == ("a.default", "a.default")


def test_the_same_rules_as_for_a_file() -> None:
    """The mistakes of a file are found in parts too, each under the path of its field."""
    with pytest.raises(ConfigError) as caught:
        parse_config(FIVE_MISTAKES)
    in_file = [(problem.path, problem.message) for problem in caught.value.problems]
    data = config_data(FIVE_MISTAKES)
    with pytest.raises(ConfigError) as caught:
        composed(data["services"], data["defaults"])
    assert sorted((problem.path, problem.message) for problem in caught.value.problems) == sorted(in_file)


def config_data(text: str) -> dict[str, Any]:
    from meshlib.config.reader import read

    data: dict[str, Any] = read(text, "f").data
    return data


SHORT = {
    "endpoints": [{"static": ["c"]}],
    "routes": [{"name": "x", "matches": [{"method": "get", "headers": {"a": 1}}]}],
}
DEEP: Any = []
for _ in range(MAX_NESTING):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("services", "found"),
    [
        ({"a.default": {"timeout": None}}, ["services.a.default.timeout: is empty; give it a value or leave it out"]),
        ({"a.default": None}, ["services.a.default: is empty; give it a value or leave it out"]),
        ({"a.default": {"owner": object()}}, ["services.a.default.owner: is no plain data"]),
        ({"a.default": {"owner": "\ud800"}}, ["services.a.default.owner: is no text: it has half of a surrogate pair"]),
        ({"a.default": {"subsets": {"\udfff": {}}}}, ["services.a.default.subsets: has a key that is not text"]),
        ({"a.default": {"subsets": {7: {}}}}, ["services.a.default.subsets: has a key that is not text"]),
        ({"a.default": {"owner": 10**MAX_DIGITS}}, ["services.a.default.owner: is too large a number"]),
        ({"a.default": {"owner": float("nan")}}, ["services.a.default.owner: is too large a number"]),
        ({"A": {}}, ["services.A: 'A' is not a service name: write name or name.namespace in lower-case letters, digits and hyphens"]),
        ({"a": {}, "a.default": {}}, [f"services.a.default: is the same service as 'a' ({SOURCE}); keep one"]),
        ({"a.default": {"endpoints": [{"file": "eps.yaml"}]}}, ["services.a.default.endpoints[0].file: this policy is not a file of this machine, and names none; write its content under static"]),
        ({"a.default": {"routes": [{"name": "x", "backends": [{"service": "b"}]}]}}, ["services.a.default.routes[0].backends[0].service: 'b' is not a service of this policy"]),
        ({"a.default": SHORT}, [
            "services.a.default.endpoints[0].static[0]: 'c' is not an address: write host:port or [ipv6]:port, such as 127.0.0.1:8080",
            "services.a.default.routes[0].matches[0].method: 'get' is not a method: write it in capitals, such as GET",
            "services.a.default.routes[0].matches[0].headers.a: must be a mapping of fields, not 1",
        ]),
    ],
)  # fmt: skip
def test_each_mistake(services: Any, found: list[str]) -> None:
    """What could not stand in a file cannot come in parts either; a short form is reported where it is written."""
    assert refused(services) == found


def test_too_deep() -> None:
    """MAX_NESTING holds here too, and what is beyond is not walked."""
    (first, *_) = refused({"a.default": {"routes": DEEP}})
    assert first.endswith(f"is nested deeper than {MAX_NESTING} levels")


def test_a_part_of_the_mesh() -> None:
    """A service may consent to routes of services that are not here; those that are here still need the consent."""
    inventory: dict[str, Any] = {"allow_routes_from": ["web", "orders.stock"], "subsets": {"v1": {"version": "1"}}}
    route = {"name": "x", "backends": [{"service": "inventory", "subset": "v1"}]}
    assert composed({"inventory.default": inventory}).names() == ("inventory.default",)
    assert composed({"inventory.default": inventory, "web.default": {"routes": [route]}}).route_targets(
        "web.default"
    ) == ("inventory.default",)
    assert refused({"inventory.default": inventory, "other.default": {"routes": [route]}}) == [
        "services.other.default.routes[0].backends[0].service: 'inventory.default' does not allow routes of "
        f"'other.default'; add 'other.default' to services.inventory.default.allow_routes_from ({SOURCE})"
    ]


def test_what_is_only_for_dev() -> None:
    """Addresses of other machines are refused where the source of identity is dev, and only there."""
    far = {"a.default": {"endpoints": [{"static": ["10.0.0.1:1"]}]}}
    assert composed(far).endpoints("a.default") == (Endpoint("10.0.0.1", 1),)
    with pytest.raises(ConfigError, match="source dev is for"):
        compose(parse_config("version: 1\nmesh: m\n"), SOURCE, {}, far)
    with pytest.raises(ConfigError, match="registry: needs the config service"):
        compose(parse_config("version: 1\nmesh: m\n"), SOURCE, {}, {"a.default": {"endpoints": [{"registry": {}}]}})


def test_nothing_given_is_kept_or_changed() -> None:
    """Changing what was given, or what `raw_policy` gave, changes nothing for the configuration; any mapping will do."""
    services = {"a.default": {"endpoints": [{"static": ["c:1"]}], "routes": [{"name": "x"}]}}
    before = copy.deepcopy(services)
    config = compose(BOOTSTRAP, SOURCE, MappingProxyType({}), MappingProxyType(services))
    assert services == before
    services["a.default"]["routes"].clear()
    config.raw_policy()[1]["a.default"].clear()
    assert config.raw_policy() == ({}, before)
    assert BOOTSTRAP.names() == ()


def test_version_number() -> None:
    """It is made of the content: the same parts, the same number, in any order; another value, another number."""
    a, b = {"timeout": "1s"}, {"timeout": "2s"}
    number = composed({"a.default": a, "b.default": b}).version_number
    assert 0 < number < 2**48
    assert composed({"b.default": b, "a.default": a}).version_number == number
    assert compose(BOOTSTRAP, "https://other:1", {}, {"a.default": a, "b.default": b}).version_number == number
    others = [
        composed({"a.default": b, "b.default": b}),
        composed({"a.default": a}),
        composed({"a.default": a, "b.default": b}, a),
    ]
    assert len({number, *(config.version_number for config in others)}) == 4


def test_overrides_of_a_composed_policy() -> None:
    """It stays a part of the mesh when something is laid over it."""
    config = composed({"a.default": {"allow_routes_from": ["web"]}})
    over = config_of(config, {"services": {"a.default": {"timeout": "1s"}}})
    assert over.services["a.default"].timeout == 1.0
    assert over.services["a.default"].allow_routes_from == ("web",)
