"""`meshlib gateway`, as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

pytestmark = pytest.mark.process


def written(tmp_path: Path) -> Path:
    """A mesh with a gateway that answers itself."""
    file = tmp_path / "mesh.yaml"
    route = {
        "name": "hello",
        "matches": [{"path": {"exact": "/hello"}}],
        "direct_response": {"status": 200, "body": "hi"},
    }
    gateways = {"edge": {"listeners": [{"name": "web", "port": 8080}], "routes": [route]}}
    document = {"version": 1, "mesh": "shop", "state_dir": str(tmp_path), "gateways": gateways}
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return file


def test_it_serves_and_stops(tmp_path: Path) -> None:
    """It says where it listens, answers there, and ends with a signal."""
    command = [
        sys.executable,
        "-m",
        "meshlib",
        "gateway",
        "--config",
        str(written(tmp_path)),
        "--listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            assert httpx.get(f"http://{address}/hello").text == "hi"
            assert httpx.get(f"http://{address}/other").status_code == 404
        finally:
            process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "nope"], "there is no gateway 'nope' in the configuration; it has edge"),
        (["--listen", "nowhere"], "is not an address"),
    ],
)
def test_what_keeps_it_from_starting(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Exit code 2, and why."""
    command = [sys.executable, "-m", "meshlib", "gateway", "--config", str(written(tmp_path)), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert said in ran.stderr
