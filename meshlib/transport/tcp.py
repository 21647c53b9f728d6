"""What every TCP connection of ours is set to, and how a connect fails.

A peer that vanishes without a FIN must not hold a connection for the kernel's default quarter of an hour: keep-alive
finds it within 25 s when idle, TCP_USER_TIMEOUT within 20 s when something was sent (both are Linux; others keep
their defaults). Nagle is off: requests are small and complete.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from ..errors import Phase, TransportError

_OPTIONS = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000))
_ANY = ("0.0.0.0", "[::]", "")  # noqa: S104 - compared with, not bound to


def tune(fd: int) -> None:
    """Set the options on a connected socket, by its descriptor: uvloop's socket objects cannot."""
    sock = socket.socket(fileno=fd)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS:
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
    finally:
        sock.detach()


def connect_error(address: str, error: OSError) -> TransportError:
    """No connection: refused, unreachable, or the name is not known."""
    return TransportError(
        f"{address}: cannot connect: {error.strerror or error}", phase="connect", cause="refused", sent=False
    )


def broken(address: str, error: Exception, *, reused: bool, phase: Phase = "read") -> TransportError:
    """An established connection broke."""
    return TransportError(f"{address}: the connection broke: {error}", phase=phase, cause="reset", reused=reused)


def address_towards(address: str, url: str) -> str:
    """`address` (host:port) as others may reach it: where its host means "any", this machine's own address on the way
    to the host of `url`. Nothing is sent. OSError where there is no way.
    """
    host, _, port = address.rpartition(":")
    if host not in _ANY:
        return address
    target = urlsplit(url)
    family, kind, protocol, _, where = socket.getaddrinfo(target.hostname, target.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)
        own = probe.getsockname()[0]
    return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
