"""Every example runs as it stands, and does what it says. Those that serve run as processes, on free ports."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LAUNCH = Path(__file__).parent / "process" / "launch.py"
LINES_MAX = 60
PATIENCE_S = 30.0
"""How long anything may take before the test fails: far above what it takes, on a machine that is busy."""
PORT = re.compile(r"\b80[01][0-9]\b")
SCRIPTS = {
    "policy_in_code.py",
    "outage_in_simulation.py",
    "trace_three_services.py",
    "test_with_fakes.py",
    "sync_client.py",
    "fastapi_app.py",
    "flask_app.py",
    "quickstart/inventory.py",
    "quickstart/orders.py",
    "quickstart/call.py",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples in which the ports are free ones; nothing else is changed."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns(".meshlib", "__pycache__", ".pytest_cache"))
    files = [*copy.rglob("*.py"), *copy.rglob("*.yaml")]
    ports = sorted({port for file in files for port in PORT.findall(file.read_text())})
    free = dict(zip(ports, _free_ports(len(ports)), strict=True))
    for file in files:
        file.write_text(PORT.sub(lambda found: free[found[0]], file.read_text()))
    return copy


def _free_ports(count: int) -> list[str]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def environment(**more: str) -> dict[str, str]:
    """Of a machine where meshlib is installed and nothing of it is set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESHLIB_", "OTEL_"))}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def run(folder: Path, *command: str, **more: str) -> str:
    """What a program prints; AssertionError with all of it when it fails."""
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


Start = Callable[[Path], None]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a script as a server, and wait until it listens. At the end SIGTERM must end it well."""
    servers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def begin(script: Path) -> None:
        log = script.with_suffix(".log")
        with log.open("wb") as written:
            command = [sys.executable, str(LAUNCH), str(os.getpid()), script.name]
            server = subprocess.Popen(command, cwd=script.parent, env=environment(), stdout=written, stderr=written)
        servers.append((server, log))
        give_up = time.monotonic() + PATIENCE_S
        while "listening on" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < give_up, f"{script.name} does not listen:\n{log.read_text()}"
            time.sleep(0.02)

    try:
        yield begin
        for server, _ in servers:
            server.send_signal(signal.SIGTERM)
        for server, log in servers:
            assert server.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        for server, _ in servers:
            if server.poll() is None:
                server.kill()
            server.wait()


def test_every_example_is_run_here_and_is_short():
    """A new file needs a test; none has more lines than can be read at once."""
    found = {str(file.relative_to(EXAMPLES)) for file in EXAMPLES.rglob("*.py")}
    assert found == SCRIPTS
    long = [name for name in found if len((EXAMPLES / name).read_text().splitlines()) > LINES_MAX]
    assert long == []


def test_quickstart(folder: Path, start: Start):
    """The job's call goes through `orders` to `inventory`, which knows who asked by the certificate."""
    quickstart = folder / "quickstart"
    start(quickstart / "inventory.py")
    start(quickstart / "orders.py")
    printed = run(quickstart, "call.py")
    assert '"stock":{"item":"apple","stock":7,"asked_by":"spiffe://shop.dev/ns/default/sa/orders"}' in printed
    assert "call to orders, route -\n  attempt 1: 127.0.0.1:" in printed


def test_applications_and_threads(folder: Path, start: Start):
    """FastAPI calls Flask, Flask calls FastAPI, and a job calls both from threads."""
    start(folder / "flask_app.py")
    start(folder / "fastapi_app.py")
    printed = run(folder, "sync_client.py")
    assert [line.split()[:2] for line in printed.splitlines()] == [
        ["/items/apple", "200"],
        ["/items/pear", "200"],
        ["/items/plum", "200"],
    ]
    assert "'price': 5, 'stock': 7" in printed
    assert "'asked_by': 'spiffe://shop.dev/ns/default/sa/reporter'" in printed
    page = "import meshlib; print(meshlib.Mesh('shopper').sync_client('web').get('/pages/apple').json())"
    assert "'asked_by': 'spiffe://shop.dev/ns/default/sa/web'" in run(folder, "-c", page)


def test_policy_in_code(folder: Path):
    """The printed story: retried, not retried, retried when told, out of time, refused, unknown."""
    printed = run(folder, "policy_in_code.py")
    assert "attempt 2: 127.0.0.1:" in printed
    assert "\n503\n201\n" in printed
    assert "deadline in phase read, sent: True, ours: True" in printed
    assert "transport: " in printed
    assert "no_endpoint: " in printed
    assert "did you mean 'stock'" in printed
    assert not (folder / ".meshlib").exists()


def test_with_fakes(folder: Path):
    """The example's tests pass with the plugin alone."""
    command = ["-m", "pytest", "-p", "meshlib.testing.plugin", "-p", "no:cacheprovider", "-W", "error", "-q"]
    assert "6 passed" in run(folder, *command, "test_with_fakes.py", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def test_outage_in_simulation(folder: Path):
    """One endpoint down is not seen, both down is; afterwards all is well; another hash seed changes nothing."""
    printed = run(folder, "outage_in_simulation.py", PYTHONHASHSEED="1")
    rows = {line.split()[0]: line.split()[-1] for line in printed.splitlines()[1:-1]}
    assert rows["15-20"] == rows["20-25"] == rows["35-40"] == rows["55-60"] == "100.00%"
    assert float(rows["25-30"].rstrip("%")) < 1
    assert run(folder, "outage_in_simulation.py", PYTHONHASHSEED="2") == printed


def test_trace_three_services(folder: Path):
    """One trace; each service's span is below the attempt that reached it."""
    printed = run(folder, "trace_three_services.py")
    assert "['web', 'orders', 'stock']\ntraces: 1\n" in printed
    chain = printed.partition("traces: 1\n")[2].splitlines()
    assert [line.split()[0] for line in chain] == ["CLIENT", "CLIENT", "SERVER"] * 3
    assert [len(line) - len(line.lstrip()) for line in chain] == [2 * depth for depth in range(9)]
