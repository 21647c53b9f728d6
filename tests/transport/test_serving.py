"""Serving: start, drain, stop; in a running loop, on a thread, and as a process that is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from serving_host import FakeHost, Running, get, parts, read_all

from meshlib.errors import ConfigError
from meshlib.transport.asgi import MeshAsgi, Receive, Scope, Send
from meshlib.transport.serving import MeshServer, adapt, serve
from meshlib.transport.wsgi import MeshWsgi


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def wsgi(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [("content-length", "4")])
    return [b"wsgi"]


class Waiting:
    """Answers when `go` is set; `begun` tells that it was asked."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/slow":
            self.begun.set()
            await asyncio.get_running_loop().run_in_executor(None, self.go.wait, 5)
        await hello(scope, receive, send)


def test_serve_in_a_running_loop(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """`await serve(…)` tells its address, logs it once, prints nothing, and cleans up when it is cancelled."""
    host = FakeHost()

    async def main() -> bytes:
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(hello, host, on_listening=listening.set_result, propagation_s=0.0))
        address, _, port = (await listening).rpartition(":")
        reader, writer = await asyncio.open_connection(address, int(port))
        writer.write(get())
        answer = await reader.read()
        writer.close()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address, int(port))
        return answer

    with caplog.at_level(logging.INFO):
        answer = asyncio.run(main())
    status, headers, body = parts(answer)
    assert (status, body, "server" in headers) == (200, b"hello", False)
    assert host.events == ["mesh started", "mesh stopped"]
    assert [r.getMessage()[:23] for r in caplog.records if r.levelno >= logging.INFO and r.name != "asyncio"] == [
        "listening on 127.0.0.1:"
    ]
    assert capsys.readouterr() == ("", "")


def test_signals_are_put_back() -> None:
    """In the main thread SIGTERM drains; afterwards the handlers are those of before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    async def main() -> None:
        def told(_address: str) -> None:
            signal.raise_signal(signal.SIGTERM)

        await MeshServer(hello, FakeHost(), on_listening=told, propagation_s=0.0).serve()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_drain_refuses_nobody() -> None:
    """While it propagates, new connections are served and told to close; what is in flight ends; nobody listens."""
    host, app = FakeHost(), Waiting()
    with Running(app, host, propagation_s=0.5) as server, server.connect() as slow:
        slow.sendall(get("/slow"))
        assert app.begun.wait(5)
        server.server.stop()
        while not host.draining:
            pass
        with server.connect() as new:
            new.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            status, headers, _ = parts(read_all(new))
        assert (status, headers["connection"]) == (200, "close")
        refused(server.port)
        app.go.set()
        assert parts(read_all(slow))[0] == 200
    assert host.in_flight.closed
    assert host.events[-1] == "mesh stopped"


def refused(port: int) -> None:
    """Until nobody accepts any more."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return
    pytest.fail("it still accepts")


def test_idle_connections_are_closed_by_the_drain() -> None:
    """A kept-alive connection without a request does not hold the shutdown."""
    with Running(hello, FakeHost()) as server, server.connect() as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(4096)
        server.server.stop()
        read_all(idle)


def test_the_grace_ends(caplog: pytest.LogCaptureFixture) -> None:
    """A request longer than the grace is cancelled; the server ends all the same."""

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        begun.set()
        await asyncio.Event().wait()

    begun = threading.Event()
    with Running(endless, FakeHost(), grace_s=0.1) as server, server.connect() as connection:
        connection.sendall(get())
        assert begun.wait(5)
        server.server.stop()
        connection.settimeout(10)
        read_all(connection)


def test_a_taken_port_is_a_sentence() -> None:
    """OSError names the address; nothing is left open."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
            asyncio.run(serve(hello, FakeHost(), port=port))


def test_a_failing_start_is_raised() -> None:
    """The mesh's own error comes out as it is; an application that does not start is a ConfigError that says why."""

    class Broken(FakeHost):
        async def startup(self) -> None:
            raise KeyError("identity")

    async def sick(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "Traceback …\nOSError: no database\n"})

    with pytest.raises(KeyError, match="identity"):
        asyncio.run(serve(hello, Broken()))
    with pytest.raises(ConfigError, match=r"the application did not start: OSError: no database$"):
        asyncio.run(serve(sick, FakeHost()))


def test_stop_before_the_start_is_remembered() -> None:
    """A server that is told to stop before it runs ends when it has begun, with its mesh."""
    host = FakeHost()
    server = MeshServer(hello, host, propagation_s=60.0)
    server.stop()
    asyncio.run(asyncio.wait_for(server.serve(), 10))
    assert host.events == ["mesh started", "mesh stopped"]


def test_a_lifespan_that_ends_early_does_not_end_the_mesh() -> None:
    """It may return or fail once it has started; the mesh stops with the server."""
    for fails in (False, True):

        async def short(scope: Scope, receive: Receive, send: Send, fails: bool = fails) -> None:
            if scope["type"] != "lifespan":
                await hello(scope, receive, send)
                return
            await receive()
            await send({"type": "lifespan.startup.complete"})
            if fails:
                raise OSError("background")

        host = FakeHost()
        with Running(short, host) as server:
            assert parts(server.talk(get()))[0] == 200
            assert host.events == ["mesh started"]
        assert host.events == ["mesh started", "mesh stopped"]


def test_the_last_request_drains() -> None:
    """After `max_requests` the server says so and drains as if it were told to."""
    host = FakeHost()
    with Running(hello, host, max_requests=2, propagation_s=0.5) as server:
        for _ in range(2):
            assert parts(server.talk(get()))[0] == 200
        while not host.draining:
            pass
        with server.connect() as late:
            late.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert parts(read_all(late))[1]["connection"] == "close"
        refused(server.port)


def test_a_request_on_its_way_to_an_idle_connection_is_served() -> None:
    """When nothing is accepted any more, an open connection is served once more, and told to close."""
    with Running(hello, FakeHost()) as server, server.connect() as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        while not received.endswith(b"hello"):
            received += idle.recv(4096)
        server.server.stop()
        refused(server.port)
        idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers, body = parts(read_all(idle))
    assert (status, headers["connection"], body) == (200, "close", b"hello")


def test_any_application_is_adapted() -> None:
    """ASGI, WSGI, and what `mesh.asgi` and `mesh.wsgi` made, are served; none is wrapped twice."""
    host = FakeHost()
    mesh = MeshAsgi(hello, host)
    assert adapt(mesh, host) is mesh
    for app in (wsgi, MeshWsgi(wsgi, host)):
        with Running(app, host) as server:
            assert parts(server.talk(get()))[2] == b"wsgi"
    assert adapt(hello, None) is hello
    assert len(host.calls) == 2


# Processes

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from serving_host import FakeHost, SERVER_SVID, AUTHORITY
from meshlib.transport.asgi import MeshAsgi
from meshlib.transport.wsgi import MeshWsgi

async def hello(scope, receive, send):
    assert scope["type"] == "http"
    peer = str(scope["state"]["meshlib.peer"]).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(peer))]}})
    await send({{"type": "http.response.body", "body": peer}})

def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [str(environ["meshlib.peer"]).encode()]

strict = MeshAsgi(hello, FakeHost("strict"))
disabled = MeshAsgi(hello, FakeHost())
meshed = MeshWsgi(wsgi, FakeHost())

if __name__ == "__main__":
    import asyncio
    from meshlib.transport.serving import serve
    async def slow(scope, receive, send):
        assert scope["type"] == "http"
        await asyncio.sleep(float(scope["query_string"] or 0))
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"done"}})
    asyncio.run(serve(slow, FakeHost(), on_listening=lambda a: print(a, flush=True), propagation_s=0.2, grace_s=5))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "program.py"
    path.write_text(PROGRAM.format(tests=str(Path(__file__).parent)))
    return path


class Process:
    """A child process; `line(text)` waits for its output; killed and reaped at the end."""

    def __init__(self, *command: str, cwd: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
        self.child = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""

    def line(self, text: str) -> str:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.said += line
            if text in line:
                return line
        pytest.fail(f"{text!r} was not said: {self.said}")

    def end(self) -> int:
        """Its exit code; everything it said is in `said`."""
        self.said += self.child.communicate(timeout=15)[0]
        return self.child.returncode

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.child.kill()
        self.child.communicate()


def ask(port: int, request: bytes = get()) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request)
        return read_all(connection)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.process
def test_sigterm_ends_what_is_in_flight_and_exits_0(program: Path) -> None:
    """A request that is being served when SIGTERM comes is answered; the exit code is 0; nothing is printed."""
    with Process(str(program), cwd=program.parent) as process:
        port = int(process.line("127.0.0.1:").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(get("/?0.8"))
            assert parts(ask(port))[0] == 200  # the first was accepted before this one
            process.child.send_signal(signal.SIGTERM)
            assert parts(read_all(connection))[0] == 200
        assert process.end() == 0
        assert process.said.count("\n") == 1


@pytest.mark.process
def test_a_second_interrupt_ends_at_once(program: Path) -> None:
    """Ctrl-C twice: a request of a minute does not hold the process."""
    with Process(str(program), cwd=program.parent) as process:
        port = int(process.line("127.0.0.1:").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
            connection.sendall(get("/?60"))
            assert parts(ask(port))[0] == 200
            process.child.send_signal(signal.SIGINT)
            assert parts(ask(port))[1]["connection"] == "close"
            process.child.send_signal(signal.SIGINT)
            read_all(connection)
        assert process.end() == 0


@pytest.mark.process
def test_a_bare_uvicorn_needs_the_protocol_class(program: Path, free_port: int) -> None:
    """Without it a strict mesh refuses to start, saying what to do; with it no TLS flag is needed."""
    command = ("-m", "uvicorn", "program:strict", "--port", str(free_port))
    with Process(*command, cwd=program.parent) as bare:
        assert bare.end() == 3
        assert "uvicorn --http meshlib.transport.uvicorn:PeerProtocol" in bare.said
    with Process(*command, "--http", "meshlib.transport.uvicorn:PeerProtocol", cwd=program.parent) as process:
        process.line("Uvicorn running")
        assert not ask(free_port).startswith(b"HTTP")
    command = ("-m", "uvicorn", "program:disabled", "--port", str(free_port))
    with Process(*command, "--http", "meshlib.transport.uvicorn:PeerProtocol", cwd=program.parent) as process:
        process.line("Uvicorn running")
        assert parts(ask(free_port))[2] == b"None"
        process.child.send_signal(signal.SIGINT)
