"""Real channels, one per (endpoint, peer): grpc connects, the mesh picks. A channel that is let go of is closed by its
last running call, because closing one kills its calls.

Rotation: a channel bears the certificate of its birth; a new generation gets a new channel for new attempts, and the
old one lives on for the calls on it. Channels are not shared by grpc below (`use_local_subchannel_pool`), try a lost
connection again within 500 ms (grpc's own default grows to 120 s), and never retry or read a service config.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc.aio import _channel as aio_channel

if TYPE_CHECKING:
    from ..tls_stream import ClientTls

    class PemTls(ClientTls, Protocol):
        """A ClientTls that can say what it is made of, because grpc speaks TLS itself."""

        def pem(self) -> tuple[bytes, bytes, bytes]:
            """Our chain, our key, and the roots that speak for the peers."""


CHANNELS_MAX = 4096
"""Channels of one event loop, or of the threads of a process; beyond, the oldest one is let go of."""
METHODS_MAX = 4096
"""Multicallables that one channel keeps; a method beyond makes a new one per call."""

_ABANDONED: list[Connection] = []
"""What a forked child has of its parent's: as many as the parent had."""

Make = Callable[[str, Any, list[tuple[str, Any]]], Any]


class Connection:
    """A real channel to one endpoint. `inflight`: attempts on it, streams until they end. `running`: those that its
    channel does not know of (fast.py).
    """

    __slots__ = ("_close", "_lock", "_multicallables", "_retired", "channel", "generation", "inflight", "running")

    def __init__(self, channel: Any, generation: int, lock: threading.Lock, close: Callable[[Any], None]) -> None:
        self.channel, self.generation, self.inflight = channel, generation, 0
        self._lock, self._close, self._retired = lock, close, False
        self._multicallables: dict[tuple[str, bytes], Any] = {}
        self.running: set[Any] = set()

    def multicallable(self, kind: str, method: bytes) -> Any:
        """Grpc's own, of bytes."""
        found = self._multicallables.get((kind, method))
        if found is None:
            found = getattr(self.channel, kind)(method.decode("ascii"), _registered_method=True)
            if len(self._multicallables) < METHODS_MAX:
                self._multicallables[kind, method] = found
        return found

    def begin(self) -> None:
        """An attempt is going to use it."""
        with self._lock:
            self.inflight += 1

    def release(self) -> None:
        """The attempt is over."""
        with self._lock:
            self.inflight -= 1
            last = self._retired and self.inflight == 0
        if last:
            self._close(self.channel)

    def retire(self) -> None:
        """Close it, now or when its last attempt is over."""
        with self._lock:
            idle = not self._retired and self.inflight == 0
            self._retired = True
        if idle:
            self._close(self.channel)


class Connections:
    """The channels of one scope. `make`: grpc's own way to make one; `close`: to close one, from any thread."""

    def __init__(self, make: Make, close: Callable[[Any], None]) -> None:
        self._make, self._close, self._lock = make, close, threading.Lock()
        self._open: dict[tuple[str, str], Connection] = {}

    def lease(self, address: str, tls: PemTls | None, max_response_bytes: int) -> Connection:
        """The channel to use now; it is counted until `release`."""
        key = (address, "" if tls is None else tls.expected)
        generation = 0 if tls is None else tls.generation
        connection = self._open.get(key)
        if connection is None or connection.generation != generation:
            connection = self._renew(key, tls, generation, max_response_bytes)
        connection.begin()
        return connection

    def _renew(self, key: tuple[str, str], tls: PemTls | None, generation: int, max_response_bytes: int) -> Connection:
        channel = self._make(key[0], _credentials(tls), _options(tls, max_response_bytes))
        new = Connection(channel, generation, threading.Lock(), self._close)
        with self._lock:
            old = self._open.pop(key, None)
            self._open[key] = new
            crowded = self._open.pop(next(iter(self._open))) if len(self._open) > CHANNELS_MAX else None
        for connection in (old, crowded):
            if connection is not None:
                connection.retire()
        return new

    def retire(self, keep: Collection[str]) -> None:
        """Let go of the channels to addresses that are not in `keep`."""
        with self._lock:
            gone = [key for key in self._open if key[0] not in keep]
            connections = [self._open.pop(key) for key in gone]
        for connection in connections:
            connection.retire()

    def forget(self) -> list[Connection]:
        """Let go of every channel; who does closes them, or their loop is closed."""
        with self._lock:
            gone = list(self._open.values())
            self._open.clear()
        return gone

    def abandon(self) -> None:
        """Never touch a channel again, not even to free it: it is the parent process's (grpc and fork)."""
        _ABANDONED.extend(self._open.values())
        self._open.clear()


def make_aio(address: str, credentials: Any, options: list[tuple[str, Any]]) -> Any:
    """A channel of the running loop, not instrumented: a call of the mesh is one span, not one per attempt."""
    if credentials is None:
        return aio_channel.insecure_channel(address, options)
    return aio_channel.secure_channel(address, credentials, options)


def make_blocking(address: str, credentials: Any, options: list[tuple[str, Any]]) -> Any:
    """A channel for threads, not instrumented."""
    if credentials is None:
        return inspect.unwrap(grpc.insecure_channel)(address, options)
    return inspect.unwrap(grpc.secure_channel)(address, credentials, options)


def _credentials(tls: PemTls | None) -> Any:
    if tls is None:
        return None
    chain, key, roots = tls.pem()
    return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)


def _options(tls: PemTls | None, max_response_bytes: int) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.max_receive_message_length", max_response_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.primary_user_agent", "meshlib"),
    ]
    if tls is not None:
        # The peer's certificate has its SPIFFE id as URI and this name as DNS SAN, both given by the mesh's own CA.
        options += [("grpc.ssl_target_name_override", tls.server_name), ("grpc.default_authority", tls.server_name)]
    return options
