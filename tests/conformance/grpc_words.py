"""What gRPC writes down in words and numbers: codes, durations, service configs, pushback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Entry = dict[str, Any]


def pushback(entry: Entry) -> bool:
    """What a server says of the next attempt."""
    from meshlib.policy.pushback import NEVER, pushback_s

    found, meaning = pushback_s(entry["value"].encode()), entry["meaning"]
    if meaning.startswith("do not retry"):
        return found == NEVER
    return found == float(meaning.removeprefix("retry after exactly ").removesuffix(" ms")) / 1000


def status_codes(entry: Entry) -> bool:
    """Every code by its name."""
    from meshlib.grpc_code import GrpcCode

    codes = {name: number for name, number in entry.items() if name.isupper()}
    return {code.name: code.value for code in GrpcCode} == codes


def http_to_grpc(entry: Entry) -> bool:
    """The code of an answer without grpc-status; tests/transport_grpc/test_bare_http2.py shows it on the wire."""
    from meshlib.grpc_code import GrpcCode, code_of_http

    known = dict(entry["map"])
    default = GrpcCode[known.pop("default")]
    others = [status for status in range(100, 600) if str(status) not in known]
    return all(code_of_http(int(status)) is GrpcCode[name] for status, name in known.items()) and all(
        code_of_http(status) is default for status in others
    )


def json_duration(entry: Entry) -> bool:
    """Durations of proto3 in JSON."""
    from meshlib.interop.grpc_service_config import duration_nanos

    try:
        nanos = duration_nanos(json.loads(entry["json"]))
    except ValueError:
        return not entry["valid"]
    return bool(entry["valid"] and nanos == entry["nanos"])


def service_config(entry: Entry) -> bool:
    """A whole service config: is it one, and which methods has it?"""
    from meshlib import ConfigError
    from meshlib.config import config_of
    from meshlib.interop.grpc_service_config import parse_service_config

    try:
        config = parse_service_config(entry.get("config_text") or entry["config"])
    except ConfigError:
        return not entry["valid"]
    config_of({"version": 1, "mesh": "vectors", "services": {"peer": config.service()}})
    names = {f"/{service}/{method}" for each in config.methods for service, method in each.names}
    effective, first = entry.get("effective", {}), config.methods[0].attempts if config.methods else None
    return bool(
        entry["valid"]
        and set(entry.get("want_methods") or ()) <= names
        and effective.get("maxAttempts") in (None, first.max_attempts if first else None)
        and effective.get("tokenRatio") in (None, config.throttling[1] if config.throttling else None)
    )


CHECKS: dict[str, Callable[[Entry], bool | None]] = {
    "grpc_vectors.http_to_grpc_status": http_to_grpc,
    "grpc_vectors.json_duration": json_duration,
    "grpc_vectors.pushback": pushback,
    "grpc_vectors.retry_policy_validation_A6": service_config,
    "grpc_vectors.service_config": service_config,
    "grpc_vectors.status_codes": status_codes,
}
"""Every name of this part."""
