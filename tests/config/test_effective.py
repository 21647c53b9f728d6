"""The levels of precedence, merged field by field, with ceilings and provenance."""

from __future__ import annotations

import dataclasses

import pytest

from meshlib.config import effective, parse_config
from meshlib.config.builtin import BUILT_IN

from .documents import FULL

HEAD = "version: 1\nmesh: m\n"


def test_built_in() -> None:
    """With nothing written, every value is the built-in one."""
    policy = effective(parse_config(HEAD + "services: {a: {}}"), "a.default")
    assert (policy.timeout_s, policy.stream_idle_timeout_s, policy.idempotent) == (10.0, 300.0, None)
    assert dataclasses.astuple(policy.retries) == (
        1, frozenset({"connect_failure", "reset", 503}), None, 0.025, 0.25, None, 0.2, 10,
    )  # fmt: skip
    assert (policy.load_balancer, policy.mtls) == ("peak_ewma", "strict")
    assert dataclasses.astuple(policy.limits) == (30.0, 3, 100 * 2**20, 100 * 2**20, 100 * 2**20)
    assert dataclasses.astuple(policy.pool) == (32, 60.0, 1800.0, 1.0)
    assert dataclasses.astuple(policy.outlier) == (5, 30.0, 0.5)
    assert dataclasses.astuple(policy.circuit_breaker) == (1024, 128)
    assert policy.provenance == dict.fromkeys(BUILT_IN, "built-in")


LEVELS = """\
version: 1
mesh: m
defaults:
  timeout: 2s
  retries: {max_retries: 2, per_try_timeout: 1s, budget: {percent: 30%}}
  limits: {max_retries: 5}
services:
  a:
    retries: {budget: {min_per_second: 3}, retry_on: [reset]}
    load_balancer: {policy: random}
    stream_idle_timeout: 1m
    routes:
      - name: x
        timeout: 500ms
        idempotent: false
        retries: {max_retries: 4}
      - name: y
"""


def test_each_level_wins_where_it_writes() -> None:
    """Built-in, then defaults, then service, then route: field by field inside the sections."""
    config = parse_config(LEVELS, "mesh.yaml")
    whole, route = effective(config, "a.default"), effective(config, "a.default", 0)
    assert (whole.timeout_s, route.timeout_s) == (2.0, 0.5)
    assert (whole.retries.max_retries, route.retries.max_retries) == (2, 4)
    assert (route.retries.budget_percent, route.retries.budget_min_per_second) == (0.3, 3)
    assert route.retries.retry_on == frozenset({"reset"})
    assert route.retries.base_interval_s == 0.025
    assert (whole.idempotent, route.idempotent) == (None, False)
    assert (route.load_balancer, route.stream_idle_timeout_s, route.limits.max_retries) == ("random", 60.0, 5)
    assert effective(config, "a.default", 1) == whole


def test_provenance() -> None:
    """For each dotted field: who set it, at which line, under the name that is written in the file."""
    told = effective(parse_config(LEVELS, "mesh.yaml"), "a.default", 0).provenance
    assert set(told) == set(BUILT_IN)
    assert told["timeout"] == "services.a.routes[0] (mesh.yaml:14)"
    assert told["retries.max_retries"] == "services.a.routes[0] (mesh.yaml:16)"
    assert told["retries.budget.percent"] == "defaults (mesh.yaml:5)"
    assert told["retries.budget.min_per_second"] == "services.a (mesh.yaml:9)"
    assert told["load_balancer.policy"] == "services.a (mesh.yaml:10)"
    assert told["idempotent"] == "services.a.routes[0] (mesh.yaml:15)"
    assert told["mtls"] == "built-in"


def test_an_inherited_value_is_lowered_to_its_ceiling() -> None:
    """Per-try timeout of defaults under a shorter timeout of the route; built-in timeout under a lower limit."""
    told = effective(parse_config(LEVELS, "mesh.yaml"), "a.default", 0)
    assert told.retries.per_try_timeout_s == 0.5
    assert told.provenance["retries.per_try_timeout"] == "timeout: services.a.routes[0] (mesh.yaml:14)"
    config = parse_config(HEAD + "defaults: {limits: {max_timeout: 1s, max_retries: 0}}", "mesh.yaml")
    low = effective(config, "stranger.default")
    assert (low.timeout_s, low.retries.max_retries) == (1.0, 0)
    assert low.provenance["timeout"] == "limits.max_timeout: defaults (mesh.yaml:3)"


def test_unknown_service_and_route() -> None:
    """A service that is not in the file has the defaults; a route that does not exist is an IndexError."""
    config = parse_config(LEVELS)
    assert effective(config, "stranger.default").timeout_s == 2.0
    with pytest.raises(IndexError):
        effective(config, "a.default", 2)


def test_it_is_frozen_and_complete() -> None:
    """Nothing in force can be changed, and every service and route of a full file has a policy."""
    config = parse_config(FULL)
    for name, service in config.services.items():
        for route in (None, *range(len(service.routes))):
            policy = effective(config, name, route)
            with pytest.raises(dataclasses.FrozenInstanceError):
                policy.mtls = "disabled"  # type: ignore[misc]
