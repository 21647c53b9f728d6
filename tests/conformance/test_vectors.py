"""The vectors of other projects through `adapters.run`, with a figure per key. Skipped where the folder is absent."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from .adapters import CHECKS, EXCEPTIONS, entry_id, run

FOLDER = Path(__file__).resolve().parents[2] / "../shared/conformance"
SHARE_MAX = 0.05
OUT = [
    f"grpc_vectors.{key}"
    for key in ("grpc_message_encode", "grpc_message_decode", "metadata_encode", "metadata_decode")
]
"""Keys whose entries say what comes out of what goes in."""


def entries(name: str) -> list[dict[str, Any]]:
    """Every entry of `file.key`, or a visible skip."""
    file, _, key = name.partition(".")
    path = FOLDER / f"{file}.json"
    if not path.exists():
        pytest.skip(f"the vectors {path.name} are not beside the project")
    found = json.loads(path.read_text())[key]
    return found if isinstance(found, list) else found.get("cases", [found])


@pytest.mark.parametrize("name", CHECKS)
def test_vectors(name):
    """Every entry comes out as it expects; None only where that is contested, or excepted by name."""
    results = {index: (entry_id(entry), run(name, entry)) for index, entry in enumerate(entries(name))}
    outcomes = [outcome for _, outcome in results.values()]
    print(f"{name}: {outcomes.count(True)} of {len(outcomes)} as expected, {outcomes.count(None)} undecided")
    assert [shown for shown, outcome in results.values() if outcome is False] == []
    for entry, (shown, outcome) in zip(entries(name), results.values(), strict=True):
        contested = entry.get("valid", True) is None
        assert (outcome is None) is (contested or shown in EXCEPTIONS.get(name, {})), shown


def test_exceptions_are_few_and_real():
    """Each names an entry that exists and has a reason; together at most 5 % of the entries."""
    everything = [(name, entry_id(entry)) for name in CHECKS for entry in entries(name)]
    excepted = [(name, shown) for name, reasons in EXCEPTIONS.items() for shown in reasons]
    print(f"{len(excepted)} exceptions of {len(everything)} entries")
    assert set(excepted) <= set(everything)
    assert all(reason.strip() for reasons in EXCEPTIONS.values() for reason in reasons.values())
    assert len(excepted) <= SHARE_MAX * len(everything)


def wrong(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The same entry with the opposite expectation."""
    opposite = {
        "http_malformed.http1": {"accept": not entry.get("accept")},
        "misc.http_date": {"unix": 1.0, "strict_http": True},
        "grpc_vectors.http_to_grpc_status": {"map": {"default": "UNKNOWN", "404": "OK"}},
        "grpc_vectors.pushback": {"meaning": "retry after exactly 77 ms"},
        "grpc_vectors.status_codes": {"OK": 1},
        "grpc_vectors.content_type": {"is_grpc": not entry.get("is_grpc")},
        "grpc_vectors.backoff": {"cases": [{**case, "min_s": 0.0} for case in entry.get("cases", ())]},
        "grpc_vectors.retry_sequences": {"calls": [{"status": "OK", "server_call_index_after": 1}]},
        "grpc_vectors.retry_streaming_scripts": {"client": ["cReq(1)", "cErr(OK)"]},
        **{key: {"out": "something else"} for key in OUT},
        "misc.retry_after": {"delay_s": 12345, "accept": None},
        "misc.retry_budget": {"expect_retried": -5, "valid": entry.get("valid") is False},
        "misc.breaker": {"state": "nonsense"},
        "misc.envoy_backoff": {"max_exclusive_ms": entry.get("max_exclusive_ms", 0) * 2},
        "traceparent.propagation": {"expect": {"trace_id": "0" * 32, "outgoing_traceparent_valid": True}},
        "httproute_cases.cases": {"expect": {"status": [418], "backend": None}},
        "spiffe_ids.matchers": {"match": not entry.get("match")},
    }.get(name, {"valid": not entry.get("valid")})
    return {key: value for key, value in {**entry, **opposite}.items() if value is not None}


@pytest.mark.parametrize("name", CHECKS)
def test_an_adapter_can_say_no(name):
    """The first entry with its expectation turned round is False: no adapter agrees with everything. Where all of them
    are excepted, the first one is False as it is."""
    excepted = EXCEPTIONS.get(name, {})
    found = [entry for entry in entries(name) if entry_id(entry) not in excepted]
    if not found:
        assert CHECKS[name](entries(name)[0]) is False
        return
    # The first accepted request has no Host, which is refused whatever is expected of it.
    entry = next((e for e in found if "host:" in e.get("text", "host:").lower() and e.get("accept", True)), found[0])
    assert run(name, entry) is True
    assert run(name, wrong(name, entry)) is False


def test_it_is_importable_from_any_folder(tmp_path):
    """By its path alone, from a folder that has nothing."""
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        spec = importlib.util.spec_from_file_location("adapters", Path(__file__).with_name("adapters.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.run("misc.durations_gep2257", {"in": "1h", "valid": True, "ms": 3_600_000, "canonical": "1h"})
    finally:
        os.chdir(before)


def test_an_unknown_name_is_an_error():
    """Nothing is silently passed."""
    with pytest.raises(KeyError):
        run("misc.nonsense", {})
