"""The gunicorn worker, under a real gunicorn."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from serving_host import get, parts
from test_serving import Process, ask, free_port, program

pytest.importorskip("gunicorn")
__all__ = ["free_port", "program"]

WORKER = "meshlib.transport.gunicorn.PeerWorker"


@pytest.mark.process
@pytest.mark.parametrize(("app", "body"), [("disabled", b"None"), ("meshed", b"None")])
def test_a_worker_serves_and_ends(app: str, body: bytes, program: Path, free_port: int) -> None:
    """ASGI and WSGI meshes are served; SIGTERM to the master ends worker and master with exit code 0."""
    command = (
        "-m",
        "gunicorn",
        "-k",
        WORKER,
        "-b",
        f"127.0.0.1:{free_port}",
        "--graceful-timeout",
        "2",
        f"program:{app}",
    )
    with Process(*command, cwd=program.parent) as process:
        process.line("Booting worker")
        answer = ask(free_port, get())
        assert parts(answer)[0] == 200
        assert body in parts(answer)[2]
        process.child.send_signal(signal.SIGTERM)
        assert process.end() == 0
        assert "Traceback" not in process.said
