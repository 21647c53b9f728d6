"""When the SDK is set up for the application, and when it is left alone. Each case is a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

REPORT = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from opentelemetry import trace
from meshlib.telemetry.provider import setup_provider
"""
SETUP = "made = setup_provider('orders', 'orders-1')\nprint('made' if made else 'none')\n"


def run(code: str, **env: str) -> str:
    """What a fresh interpreter with these variables prints."""
    done = subprocess.run([sys.executable, "-c", REPORT + code], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_nothing_is_set_up_unasked(env: dict[str, str]) -> None:
    """Without an exporter, or disabled, there is no provider, and the SDK is not even loaded."""
    code = SETUP + "print('opentelemetry.sdk' in sys.modules, type(trace.get_tracer_provider()).__name__)"
    assert run(code, **env).splitlines() == ["none", "False ProxyTracerProvider"]


def test_the_provider_of_the_application_stays() -> None:
    """A provider that the application set is never replaced."""
    code = (
        "from opentelemetry.sdk.trace import TracerProvider\nmine = TracerProvider()\ntrace.set_tracer_provider(mine)\n"
    )
    check = "print(trace.get_tracer_provider() is mine)"
    assert run(code + SETUP + check, OTEL_TRACES_EXPORTER="console").splitlines() == ["none", "True"]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "orders orders-1"),
        ({"OTEL_SERVICE_NAME": "named"}, "named orders-1"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=i9,service.name=r"}, "r i9"),
    ],
)
def test_the_resource_names_the_service(env: dict[str, str], expected: str) -> None:
    """Spans are of our service and instance, unless the environment names them."""
    code = SETUP + "a = made.resource.attributes\nprint(a['service.name'], a['service.instance.id'])"
    assert run(code, OTEL_TRACES_EXPORTER="console", **env).splitlines() == ["made", expected]


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin9"}, "'zipkin9'"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'otlp_proto_grpc'"),
        ({"OTEL_TRACES_EXPORTER": "broken"}, "'broken' could not be made"),
    ],
)
def test_an_exporter_that_cannot_be_had_is_a_warning(env: dict[str, str], says: str, tmp_path: Path) -> None:
    """An exporter that is unknown, not installed or broken is named in the log, and nothing is set up."""
    installed = tmp_path / "broken-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[opentelemetry_traces_exporter]\nbroken = no_such_module:Exporter\n")
    log = run(SETUP, PYTHONPATH=str(tmp_path), **env)
    assert says in log
    assert log.endswith("none\n")


def test_spans_arrive_at_the_endpoint() -> None:
    """With only an OTLP endpoint set, a sampled call arrives there by HTTP when the provider is shut down."""
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return None

    code = SETUP + (
        "import asyncio, random\n"
        "from meshlib.call import Call, Reply\n"
        "from meshlib.telemetry.tracing import CallTrace, Tracing\n"
        "async def leaf(call): return Reply(200, [])\n"
        "asyncio.run(CallTrace(Tracing(1.0, random.Random(1)), 'stock')(Call('stock', 'GET', b'/'), leaf))\n"
        "made.shutdown()\n"
    )
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            run(code, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert [path for path, _ in received] == ["/v1/traces"]
    assert b"GET stock" in received[0][1]
    assert b"orders-1" in received[0][1]
