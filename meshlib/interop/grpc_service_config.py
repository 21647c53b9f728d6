"""A service config of gRPC (gRFC A2, A6) → the fields of a service in a mesh.yaml.

What gRPC itself would refuse is a ConfigError with every problem by its JSON path. What has no counterpart here is in
`left_out`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config.settings import MULTIPLIER_MAX, MULTIPLIER_MIN
from ..config.units import format_duration
from ..errors import ConfigError, Problem
from ..grpc_code import GrpcCode

ATTEMPTS_MAX = 5
"""More attempts count as this many (gRFC A6)."""
TOKENS_MAX = 1000
"""More tokens are refused (gRFC A6)."""
SECONDS_MAX = 315_576_000_000
"""A longer duration is refused (google.protobuf.Duration)."""
NANOS_MAX = 2**63 - 1
"""A longer one that is none the less valid counts as this."""
BALANCERS = {"pick_first": "", "round_robin": "round_robin", "least_request_experimental": "least_request",
             "weighted_round_robin": "peak_ewma"}  # fmt: skip
"""What gRPC calls its policies, and what does that here; '': nothing."""

_DURATION = re.compile(r"(-?)([0-9]*)(?:\.([0-9]{0,9}))?s").fullmatch


def duration_nanos(value: Any) -> int:
    """A Duration in the JSON of proto3, in nanoseconds, saturated at 64 bits. Raises ValueError."""
    match = _DURATION(value) if isinstance(value, str) else None
    if match is None or not (match[2] or match[3]):
        raise ValueError(f"must be a duration such as 1.5s, not {str(value)[:80]!r}")
    seconds, fraction = int(match[2] or 0), int((match[3] or "").ljust(9, "0"))
    if seconds > SECONDS_MAX:
        raise ValueError(f"must be at most {SECONDS_MAX} seconds")
    nanos = min(seconds * 10**9 + fraction, NANOS_MAX)
    return -nanos if match[1] else nanos


@dataclass(frozen=True, slots=True)
class Attempts:
    """A retry policy, or a hedging policy, where `codes` are those that are not fatal."""

    max_attempts: int
    codes: tuple[GrpcCode, ...]
    initial_s: float = 0.0
    max_s: float = 0.0
    multiplier: float = 1.0
    hedging: bool = False


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """`names`: (service, method), where '' is all of them. None: not written."""

    names: tuple[tuple[str, str], ...]
    timeout_s: float | None
    attempts: Attempts | None


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """`throttling`: (tokens, ratio with three decimals). `left_out`: JSON paths of what is not kept here, and why."""

    methods: tuple[MethodConfig, ...]
    balancer: str
    throttling: tuple[int, float] | None
    left_out: tuple[tuple[str, str], ...]

    def service(self) -> dict[str, Any]:
        """The fields of the service in a mesh.yaml: the most specific names come first."""
        routes = []
        for config in self.methods:
            for service, method in config.names:
                grpc = {key: value for key, value in (("service", service), ("method", method)) if value}
                routes.append((not method, not service, {**({"matches": [{"grpc": grpc}]} if grpc else {})}, config))
        made = []
        for number, (_, _, match, config) in enumerate(sorted(routes, key=lambda each: each[:2])):
            route: dict[str, Any] = {"name": f"method-config-{number}", **match}
            if config.timeout_s:
                route["timeout"] = format_duration(config.timeout_s)
            if config.attempts is not None and not config.attempts.hedging:
                route["retries"] = _retries(config.attempts)
            made.append(route)
        balancer = {"load_balancer": {"policy": self.balancer}} if self.balancer else {}
        return {"protocol": "grpc", **balancer, **({"routes": made} if made else {})}


def _retries(attempts: Attempts) -> dict[str, Any]:
    return {
        "max_retries": attempts.max_attempts - 1,
        "retry_on": [code.name.lower() for code in attempts.codes],
        "back_off": {
            "base_interval": format_duration(attempts.initial_s),
            "max_interval": format_duration(max(attempts.initial_s, attempts.max_s)),
            "multiplier": min(max(attempts.multiplier, MULTIPLIER_MIN), MULTIPLIER_MAX),
        },
    }


def parse_service_config(source: str | Mapping[str, Any]) -> ServiceConfig:
    """A service config from its JSON. ConfigError has every problem."""
    try:
        data = json.loads(source) if isinstance(source, str) else source
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the service config is no JSON: {error}") from error
    reading = _Reading()
    config = reading.config(data if isinstance(data, Mapping) else reading.wrong("", "must be an object", {}))
    if reading.problems:
        raise ConfigError(reading.problems)
    return config


class _Reading:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.left_out: list[tuple[str, str]] = []

    def wrong(self, path: str, message: str, instead: Any = None) -> Any:
        """Note a mistake; what to go on with."""
        self.problems.append(Problem("service config", 0, 0, path, message))
        return instead

    def config(self, data: Mapping[str, Any]) -> ServiceConfig:
        seen: set[tuple[str, str]] = set()
        methods = tuple(
            self._method(each, f"methodConfig[{index}]", seen)
            for index, each in enumerate(self._list(data, "methodConfig", ""))
        )
        return ServiceConfig(methods, self._balancer(data), self._throttling(data), tuple(self.left_out))

    def _list(self, data: Any, name: str, at: str) -> list[Any]:
        found = data.get(name)
        if found is None:
            return []
        return found if isinstance(found, list) else self.wrong(f"{at}{name}", "must be a list", [])

    def _balancer(self, data: Mapping[str, Any]) -> str:
        named = [next(iter(each), "") for each in self._list(data, "loadBalancingConfig", "") if isinstance(each, dict)]
        known = [name for name in named if name in BALANCERS]
        if named and not known:
            self.wrong("loadBalancingConfig", f"names no policy that is known: {', '.join(named)[:200]}")
        name = known[0] if known else str(data.get("loadBalancingPolicy", "")).lower()
        if name and not BALANCERS.get(name):
            self.left_out.append(("loadBalancingConfig", f"there is no {name[:80]} here; the mesh balances each call"))
        return BALANCERS.get(name, "")

    def _method(self, data: Any, at: str, seen: set[tuple[str, str]]) -> MethodConfig:
        if not isinstance(data, Mapping):
            data = self.wrong(at, "must be an object", {})
        names = []
        for index, each in enumerate(self._list(data, "name", f"{at}.")):
            path = f"{at}.name[{index}]"
            name = (each.get("service") or "", each.get("method") or "") if isinstance(each, Mapping) else ("", "")
            if not all(isinstance(part, str) for part in name) or (name[1] and not name[0]):
                self.wrong(path, "must be texts, and a method needs its service")
            elif name in seen:
                self.wrong(path, "is there twice")
            else:
                seen.add(name)
                names.append(name)
        timeout_s = self._seconds(data, "timeout", at)
        for field, why in (
            ("waitForReady", "a call waits for an endpoint within its deadline"),
            ("maxRequestMessageBytes", "limits are of a service: limits.max_request_body"),
            ("maxResponseMessageBytes", "limits are of a service: limits.max_response_body"),
        ):
            if field in data:
                self.left_out.append((f"{at}.{field}", why))
        retry, hedging = data.get("retryPolicy"), data.get("hedgingPolicy")
        if retry is not None and hedging is not None:
            self.wrong(at, "has retryPolicy and hedgingPolicy: only one of them is possible")
        attempts = self._retry(retry, f"{at}.retryPolicy") if retry is not None else None
        if hedging is not None:
            attempts = self._hedging(hedging, f"{at}.hedgingPolicy")
            self.left_out.append((f"{at}.hedgingPolicy", "calls are not hedged by this release"))
        return MethodConfig(tuple(names), timeout_s, attempts)

    def _retry(self, data: Any, at: str) -> Attempts:
        if not isinstance(data, Mapping):
            data = self.wrong(at, "must be an object", {})
        multiplier = data.get("backoffMultiplier")
        if type(multiplier) not in (int, float) or not multiplier > 0:
            multiplier = self.wrong(f"{at}.backoffMultiplier", "must be a number above 0", 1)
        initial_s, max_s = (self._seconds(data, name, at, needed=True) for name in ("initialBackoff", "maxBackoff"))
        codes = self._codes(data, "retryableStatusCodes", at)
        if not codes:
            self.wrong(f"{at}.retryableStatusCodes", "must name at least one code")
        return Attempts(self._attempts(data, at), codes, initial_s or 0.0, max_s or 0.0, float(multiplier))

    def _hedging(self, data: Any, at: str) -> Attempts:
        if not isinstance(data, Mapping):
            data = self.wrong(at, "must be an object", {})
        delay_s = self._seconds(data, "hedgingDelay", at)
        codes = self._codes(data, "nonFatalStatusCodes", at)
        return Attempts(self._attempts(data, at), codes, delay_s or 0.0, hedging=True)

    def _attempts(self, data: Mapping[str, Any], at: str) -> int:
        number = data.get("maxAttempts")
        if type(number) is not int or number < 2:
            number = self.wrong(f"{at}.maxAttempts", "must be a whole number of 2 or more", 2)
        return min(int(number), ATTEMPTS_MAX)

    def _codes(self, data: Mapping[str, Any], name: str, at: str) -> tuple[GrpcCode, ...]:
        found = []
        for index, each in enumerate(self._list(data, name, f"{at}.")):
            try:
                found.append(GrpcCode(each) if type(each) is int else GrpcCode[str(each).upper()])
            except (KeyError, ValueError):
                self.wrong(f"{at}.{name}[{index}]", f"{str(each)[:80]!r} is no status code")
        return tuple(found)

    def _seconds(self, data: Mapping[str, Any], name: str, at: str, *, needed: bool = False) -> float | None:
        mistake, nanos = "", 0
        try:
            nanos = duration_nanos(data[name]) if data.get(name) is not None else 0
        except ValueError as error:
            mistake = str(error)
        if not mistake and (nanos < 0 or (needed and not nanos)):
            mistake = "must be there, and above 0" if needed else "must not be negative"
        if mistake:
            self.wrong(f"{at}.{name}", mistake)
        return nanos / 1e9 if nanos > 0 else None

    def _throttling(self, data: Mapping[str, Any]) -> tuple[int, float] | None:
        of = data.get("retryThrottling")
        if of is None:
            return None
        if not isinstance(of, Mapping):
            of = self.wrong("retryThrottling", "must be an object", {})
        tokens, ratio = of.get("maxTokens"), of.get("tokenRatio")
        if type(tokens) is not int or not 0 < tokens <= TOKENS_MAX:
            tokens = self.wrong("retryThrottling.maxTokens", f"must be a whole number from 1 to {TOKENS_MAX}", 1)
        truncated = int(ratio * 1000) / 1000 if isinstance(ratio, int | float) and abs(ratio) < TOKENS_MAX else 0.0
        if truncated <= 0:
            self.wrong("retryThrottling.tokenRatio", f"must be a number from 0.001 to {TOKENS_MAX}")
        self.left_out.append(("retryThrottling", "retries have a budget of their own here: retries.budget"))
        return int(tokens), truncated
