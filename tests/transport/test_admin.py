"""The admin listener, as a probe and a scraper see it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from http.server import HTTPServer
from typing import Any

import pytest
from serving_host import parts, read_all

from meshlib.errors import ConfigError
from meshlib.transport.admin import ACCEPT_PAUSE_S, REQUEST_BYTES_MAX, THREADS_MAX, AdminServer


class State:
    live, ready, why, fails = True, True, "", False


def metrics() -> str:
    if State.fails:
        raise RuntimeError("no such cell")
    return "meshlib_up 1\n"


@pytest.fixture(scope="module")
def admin() -> Iterator[AdminServer]:
    server = AdminServer(
        "127.0.0.1:0", live=lambda: State.live, ready=lambda: (State.ready, State.why), metrics=metrics
    )
    yield server
    server.close()


def connect(admin: AdminServer) -> socket.socket:
    host, _, port = admin.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def ask(admin: AdminServer, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    with connect(admin) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return parts(read_all(connection))


def test_the_three_pages(admin: AdminServer) -> None:
    """Alive and ready are 200 or 503 with the reason; metrics are the exposition; HEAD has no body."""
    assert ask(admin, "/livez")[0] == 200
    State.ready, State.why = False, "draining"
    assert (ask(admin, "/readyz")[0], ask(admin, "/readyz?verbose")[2]) == (503, b"draining\n")
    State.ready = True
    status, headers, body = ask(admin, "/metrics")
    assert (status, body) == (200, b"meshlib_up 1\n")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    status, headers, body = ask(admin, "/metrics", "HEAD")
    assert (status, headers["content-length"], body) == (200, "13", b"")


def test_anything_else_is_refused(admin: AdminServer) -> None:
    """Other pages are 404, other methods 501; a page that fails is 500 with the reason, not a broken connection."""
    assert ask(admin, "/etc/passwd")[0] == 404
    assert ask(admin, "/livez", "POST")[0] == 501
    State.fails = True
    try:
        status, _, body = ask(admin, "/metrics")
    finally:
        State.fails = False
    assert (status, body) == (500, b"RuntimeError: no such cell\n")


def test_a_request_is_bounded(admin: AdminServer) -> None:
    """A header beyond 8 KiB is not read; the server goes on."""
    with connect(admin) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nx: " + b"a" * REQUEST_BYTES_MAX * 2 + b"\r\n\r\n")
        read_all(connection)
    assert ask(admin, "/livez")[0] == 200


def test_a_ninth_connection_is_closed(admin: AdminServer) -> None:
    """Eight slow clients are held; the ninth is closed at once; when they go, all is well again."""
    slow = [connect(admin) for _ in range(THREADS_MAX)]
    try:
        for connection in slow:
            connection.sendall(b"GET")
        with connect(admin) as ninth:
            assert read_all(ninth) == b""
    finally:
        for connection in slow:
            connection.close()
    for _ in range(100):
        try:
            if ask(admin, "/livez")[0] == 200:
                break
        except (IndexError, OSError):
            continue
    else:
        pytest.fail("it did not recover")


def test_a_request_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then is closed when its time is over, not given that time for each byte."""
    monkeypatch.setattr("meshlib.transport.admin.TIMEOUT_S", 0.3)
    server = AdminServer("127.0.0.1:0", live=lambda: True, ready=lambda: (True, ""), metrics=str)
    try:
        with connect(server) as dripping:
            dripping.settimeout(0.05)
            for _ in range(100):
                try:
                    dripping.sendall(b"G")
                    if not dripping.recv(1):
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            else:
                pytest.fail("5 s of single bytes were taken")
    finally:
        server.close()


def test_no_descriptor_left_is_waited_out(admin: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """accept without a free file descriptor: a pause before it is tried again, then the answer."""
    pauses: list[float] = []
    accept = HTTPServer.get_request

    def exhausted(server: HTTPServer) -> Any:
        if not pauses:
            raise OSError(errno.EMFILE, "too many open files")
        return accept(server)

    monkeypatch.setattr(HTTPServer, "get_request", exhausted)
    monkeypatch.setattr("meshlib.transport.admin.time.sleep", pauses.append)
    assert ask(admin, "/livez")[0] == 200
    assert pauses == [ACCEPT_PAUSE_S]


@pytest.mark.parametrize("listen", ["", "9000", "127.0.0.1:", "127.0.0.1:70000", "a:b"])
def test_a_bad_address_is_a_sentence(listen: str) -> None:
    """The setting is named, with what it must be."""
    with pytest.raises(ConfigError, match=r"admin\.listen must be 'host:port'"):
        AdminServer(listen, live=lambda: True, ready=lambda: (True, ""), metrics=str)


def test_close_frees_the_port() -> None:
    """After close nobody listens, and the same port can be taken at once; closing twice does nothing."""
    first = AdminServer("127.0.0.1:0", live=lambda: True, ready=lambda: (True, ""), metrics=str)
    address = first.address
    first.close()
    first.close()
    second = AdminServer(address, live=lambda: True, ready=lambda: (True, ""), metrics=str)
    assert second.address == address
    second.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # 3.12 warns of fork with threads; that is what is tested
def test_a_child_does_not_hold_the_port(admin: AdminServer) -> None:
    """In a child of fork the listener is closed: the parent's port is the parent's alone."""
    child = os.fork()
    if not child:
        os._exit(0 if admin._server.socket.fileno() == -1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ask(admin, "/livez")[0] == 200
