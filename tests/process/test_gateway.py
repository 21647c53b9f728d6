"""The gateway over real sockets: streams both ways, and callers that go away."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.process
PATIENCE_S = 20


class Backend:
    """Takes one connection after another. By path: /up answers with the request's body; /slow never answers;
    /endless and /early begin an answer that does not end; all else is answered with the request's head.
    """

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.asked: list[bytes] = []
        self.began, self.gone = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            head, _, rest = head.partition(b"\r\n\r\n")
            self.asked.append(head)
            path = head.split(b" ")[1]
            if path == b"/up":
                while b"one" not in rest:
                    rest += connection.recv(65536)
                self.began.set()
                while not rest.endswith(b"0\r\n\r\n"):
                    rest += connection.recv(65536)
                head = rest
            if path == b"/early":
                connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
                path = b"/slow"
            if path in (b"/slow", b"/endless"):
                if path == b"/endless":
                    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
                self.began.set()
                while connection.recv(65536):
                    pass
                self.gone.set()
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(head), head))


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    made.listener.close()


@pytest.fixture
def gateway(backend: Backend, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The command as a process, in front of the backend; where it listens."""
    service = {
        "mtls": "disabled",
        "allow_routes_from": ["gateway/edge"],
        "endpoints": [{"static": [f"127.0.0.1:{backend.port}"]}],
    }
    beta = {
        "name": "beta",
        "matches": [{"headers": {"x-beta": "1"}}],
        "direct_response": {"status": 203, "body": "beta"},
    }
    gone = {"name": "gone", "matches": [{"path": {"prefix": "/gone"}}], "direct_response": {"status": 204}}
    items = {"name": "items", "backends": [{"service": "items"}], "retries": {"max_retries": 1}}
    edge = {"listeners": [{"name": "web", "port": 8080}], "routes": [beta, gone, items]}
    document = {
        "version": 1,
        "mesh": "shop",
        "state_dir": str(tmp_path),
        "services": {"items": service},
        "gateways": {"edge": edge},
    }
    file = tmp_path / "mesh.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [sys.executable, "-m", "meshlib", "gateway", "--config", str(file), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().split()[-1].rpartition(":")
        yield host, int(port)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def connected(gateway: tuple[str, int]) -> socket.socket:
    return socket.create_connection(gateway, timeout=PATIENCE_S)


def until(connection: socket.socket, wanted: bytes) -> bytes:
    """What comes, up to and with `wanted`; socket.timeout where that does not come."""
    seen = b""
    while wanted not in seen:
        piece = connection.recv(65536)
        assert piece, f"closed after {seen!r}"
        seen += piece
    return seen


def test_a_request_goes_on_as_it_comes(gateway: tuple[str, int], backend: Backend) -> None:
    """The backend has the first piece before the caller sends the second."""
    with connected(gateway) as connection:
        connection.sendall(b"POST /up HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        assert backend.began.wait(PATIENCE_S)
        connection.sendall(b"3\r\ntwo\r\n0\r\n\r\n")
        assert until(connection, b"two").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/slow", "/endless"])
def test_a_caller_that_goes_away_ends_its_call(path: str, gateway: tuple[str, int], backend: Backend) -> None:
    """Before the head of the answer and in its body: the backend's connection is closed, and nothing is tried again."""
    with connected(gateway) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n".encode())
        if path == "/endless":
            until(connection, b"x")
        assert backend.began.wait(PATIENCE_S)
    assert backend.gone.wait(PATIENCE_S)
    with connected(gateway) as connection:
        connection.sendall(b"GET /after HTTP/1.1\r\nhost: shop\r\n\r\n")
        until(connection, b"GET /after")
    assert [head.split(b" ")[1] for head in backend.asked] == [path.encode(), b"/after"]


@pytest.mark.parametrize("path", ["/slow", "/early"])
def test_a_caller_that_goes_away_in_the_middle_of_its_request(
    path: str, gateway: tuple[str, int], backend: Backend
) -> None:
    """The backend does not get the end of it, whether it has begun to answer or not."""
    with connected(gateway) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"
        connection.sendall(head.encode())
        if path == "/early":
            until(connection, b"x")
        assert backend.began.wait(PATIENCE_S)
    assert backend.gone.wait(PATIENCE_S)


def test_forwarded_fields_are_not_believed_in_any_spelling(gateway: tuple[str, int]) -> None:
    """To a WSGI application x_forwarded_for and x-forwarded-for are one; a fragment is no part of the path."""
    lies = b"x_forwarded_for: 10.0.0.1\r\nx_forwarded_host: evil\r\nX_Meshlib_Source: orders\r\n"
    with connected(gateway) as connection:
        connection.sendall(b"GET /z#b HTTP/1.1\r\nhost: shop\r\n" + lies + b"\r\n")
        seen = until(connection, b"x-forwarded-host: shop")
    assert b"GET /z HTTP/1.1" in seen
    assert b"x-forwarded-for: 127.0.0.1" in seen
    assert not any(word in seen for word in (b"10.0.0.1", b"evil", b"orders"))


def test_answers_without_a_body_and_routes_by_header(gateway: tuple[str, int]) -> None:
    """HEAD and 204 have none, and the next request on the connection is read; a header chooses the route."""
    with connected(gateway) as connection:
        connection.sendall(b"HEAD /a HTTP/1.1\r\nhost: shop\r\n\r\n")
        assert until(connection, b"\r\n\r\n").endswith(b"\r\n\r\n")
        connection.sendall(b"GET /gone HTTP/1.1\r\nhost: shop\r\n\r\n")
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 204")
        connection.sendall(b"GET /a HTTP/1.1\r\nhost: shop\r\nx-beta: 1\r\n\r\n")
        assert until(connection, b"beta").startswith(b"HTTP/1.1 203")
