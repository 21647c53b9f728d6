"""The demo itself, scaled down, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = (
    "Plan(rate=100, steady_calls=60, split_calls=120, canary=(50, 0), victims=('inventory-1',),"
    " down_calls=40, after_calls=30, calls_min=600)"
)
PROGRAM = f"""
import sys
from meshlib.demo.driver import run
from meshlib.demo.stage import Plan
sys.exit(run(as_json=True, plan={PLAN}))
"""


@pytest.fixture
def temporary(tmp_path: Path) -> dict[str, str]:
    """An environment whose temporary folder can be looked at, with a mesh of the user's that is not the demo's."""
    return {**os.environ, "TMPDIR": str(tmp_path), "MESHLIB_CONFIG": "/nowhere.yaml", "MESHLIB_STATE_DIR": "/nowhere"}


@pytest.mark.process
def test_every_promise_is_held_and_nothing_is_left(temporary: dict[str, str], tmp_path: Path) -> None:
    """One JSON object on stdout whose counts agree; exit code 0 as every scene held; no folder behind."""
    demo = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=temporary, capture_output=True, text=True, timeout=120, check=False
    )
    assert demo.returncode == 0, demo.stderr
    told = json.loads(demo.stdout)
    assert [scene["name"] for scene in told["scenes"] if not scene["held"]] == []
    assert len(told["scenes"]) == 11
    (fault,) = [scene["figures"] for scene in told["scenes"] if scene["name"].startswith("an injected fault")]
    assert (told["failures"], told["injected"]) == (0, len(fault["injected"]))
    assert told["injected"] > 0
    assert told["calls"] >= 600
    edges = {(edge["source"], edge["destination"]): edge["calls"] for edge in told["edges"]}
    chain = {("shopper", "storefront"), ("storefront", "orders"), ("orders", "inventory"), ("storefront", "prices")}
    assert set(edges) == chain | {("visitor", "storefront")}
    sent = told["calls"] - told["injected"]
    assert sent <= edges["shopper", "storefront"] <= sent + told["retries"]
    assert 0 < told["p50_ms"] <= told["p99_ms"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything(temporary: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    """Also while it starts: exit code 130, nothing on stdout, no folder, and so no process that could write to it."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=temporary, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        while not list(tmp_path.glob("meshlib-demo-*/logs/prices-2.log")):
            assert demo.poll() is None
        demo.send_signal(number)
        out, errors = demo.communicate(timeout=20)
    assert (demo.returncode, out) == (130, ""), errors
    assert list(tmp_path.iterdir()) == []
