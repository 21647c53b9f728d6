"""Policy assertions: what mesh.yaml would do with a call, by the routing of production, as one line of a test."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..explanation import Explanation, HeaderValues, explain
from .fake_mesh import ConfigLike, policy_of

SHARE_TOLERANCE = 1e-9


def assert_route(
    config: ConfigLike,
    service: str,
    *,
    method: str = "GET",
    path: str = "/",
    headers: HeaderValues | None = None,
    source: str | None = None,
    route: str | None = None,
    backends: str | Collection[str] | Mapping[str, float] | None = None,
    timeout_s: float | None = None,
    retries: int | Mapping[str, Any] | None = None,
    idempotent: bool | None = None,
    status: int | None = None,
) -> Explanation:
    """Assert what a call would meet; what is None is not looked at. Returns the explanation.

    `config`: a path, a dict, a MeshConfig or YAML text. `method`, `path`, `headers`, `source`: the call, as of
    `meshlib.explain`. `route`: the name of the one that takes it. `backends`: `"inventory/v2"` (service/subset) alone,
    several, or with their weights, of which only the proportions count. `timeout_s`: the total. `retries`:
    `max_retries`, or any part of `explain(…).to_dict()["retries"]`. `idempotent`: may it be sent twice? `status`: 404
    where no route takes it.

    AssertionError lists each difference, and the whole explanation. Raises ConfigError and UnknownService too.

    >>> policy = '''
    ... version: 1
    ... mesh: shop
    ... services:
    ...   inventory:
    ...     subsets: {v1: {version: "1"}, v2: {version: "2"}}
    ...     routes:
    ...       - name: beta
    ...         matches: [{headers: {x-beta: "1"}}]
    ...         backends: [{subset: v2}]
    ...       - name: main
    ...         backends: [{subset: v1, weight: 90}, {subset: v2, weight: 10}]
    ...         timeout: 500ms
    ... '''
    >>> _ = assert_route(policy, "inventory", headers={"x-beta": "1"}, backends="inventory/v2", timeout_s=10)
    >>> _ = assert_route(policy, "inventory", backends={"inventory/v1": 9, "inventory/v2": 1}, timeout_s=0.5)
    """
    __tracebackhide__ = True
    found = explain(policy_of(config), service, method=method, path=path, headers=headers, source=source)
    told = found.to_dict()
    differences = [
        *_differs("status", status, found.status),
        *_differs("route", route, found.route),
        *_differs("backends", _wanted_shares(backends, told["backends"]), _shares(told["backends"])),
        *_differs("timeout_s", timeout_s, told["timeout_s"], found.policy.provenance.get("timeout", "")),
        *_differs("idempotent", idempotent, found.idempotent),
    ]
    wanted = {"max_retries": retries} if isinstance(retries, int) else dict(retries or {})
    for name, value in wanted.items():
        if name not in told["retries"]:
            raise ValueError(f"retries: {name!r} is not a part of it; there are {', '.join(told['retries'])}")
        by = found.policy.provenance.get("retries." + name.removesuffix("_s"), "")
        differences += _differs(f"retries.{name}", value, told["retries"][name], by)
    if differences:
        raise AssertionError("\n".join(["the policy says otherwise:", *differences, "", str(found)]))
    return found


def _differs(field: str, wanted: Any, found: Any, level: str = "") -> list[str]:
    if wanted is None or wanted == found:
        return []
    return [
        f"  {field}",
        f"    expected  {_shown(wanted)}",
        f"    found     {_shown(found)}" + (level and f"  ({level})"),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, _Shares):
        return (
            ", ".join(f"{name} {share:.4%}" if share is not None else name for name, share in value.items()) or "none"
        )
    return repr(value)


class _Shares(dict[str, float]):
    """Backends by `service/subset`, with their share of the calls."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Shares)
            and self.keys() == other.keys()
            and all(abs(share - other[name]) < SHARE_TOLERANCE for name, share in self.items())
        )

    __hash__ = None


def _shares(backends: list[dict[str, Any]]) -> _Shares:
    shares = _Shares()
    for backend in backends:
        name = _name(backend["service"]) + (f"/{backend['subset']}" if backend["subset"] else "")
        shares[name] = shares.get(name, 0.0) + backend["share"]
    return _Shares({name: share for name, share in shares.items() if share})


def _wanted_shares(wanted: Any, found: list[dict[str, Any]]) -> _Shares | None:
    if wanted is None:
        return None
    if isinstance(wanted, str):
        wanted = [wanted]
    if not isinstance(wanted, Mapping):  # the names alone: whatever shares they have
        shares = _shares(found)
        return _Shares({_name(name): shares.get(_name(name), 0.0) for name in wanted})
    total = sum(wanted.values())
    if total <= 0:
        raise ValueError(f"backends: the weights must have a positive sum, got {dict(wanted)!r}")
    return _Shares({_name(name): weight / total for name, weight in wanted.items() if weight})


def _name(service: str) -> str:
    """`inventory.default/v2` as `inventory/v2`."""
    name, slash, subset = service.partition("/")
    return name.removesuffix(".default") + slash + subset
