"""What a TCP connection is set to, and how its failures are told."""

from __future__ import annotations

import socket

from meshlib.transport import tcp


def test_a_vanished_peer_is_found_within_half_a_minute() -> None:
    """F15: keep-alive and user timeout end a half-open connection within 30 s; Nagle is off; the descriptor stays open."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        tcp.tune(sock.fileno())
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            get = [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name, _ in tcp._OPTIONS]
            idle, interval, count, user_ms = get
            assert idle + interval * count <= 30
            assert user_ms <= 30_000


def test_errors_name_the_address_and_what_happened() -> None:
    """A refused connect was not sent and may be retried; a broken connection may have been."""
    refused = tcp.connect_error("a:1", ConnectionRefusedError(111, "Connection refused"))
    assert (refused.phase, refused.cause, refused.sent, refused.retryable) == ("connect", "refused", False, True)
    assert str(refused) == "a:1: cannot connect: Connection refused"
    broken = tcp.broken("a:1", ConnectionResetError(104, "reset"), reused=True, phase="write")
    assert (broken.phase, broken.cause, broken.sent, broken.reused, broken.retryable) == (
        "write",
        "reset",
        True,
        True,
        False,
    )


def test_an_address_that_means_any_becomes_the_one_on_the_way() -> None:
    """0.0.0.0 is where to listen, not where to be found; another address is left as it is. Nothing is sent."""
    assert tcp.address_towards("0.0.0.0:8080", "https://127.0.0.1:7443") == "127.0.0.1:8080"
    assert tcp.address_towards("10.1.2.3:8080", "https://127.0.0.1:7443") == "10.1.2.3:8080"
    assert tcp.address_towards("[::1]:8080", "https://127.0.0.1:7443") == "[::1]:8080"
