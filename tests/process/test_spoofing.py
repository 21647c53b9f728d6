"""F26: identity headers in forty spellings. Identity is the TLS session's; a header never is.

Two worlds (`transport/headers.py`): with `strict`, the peer is verified, and only the canonical `x-meshlib-*` of such a
peer are believed; with `disabled`, nobody is known, and everybody inside is believed about deadlines and attempts, never
about who they are.
"""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path
from typing import Any

from meshlib import Mesh
from meshlib.identity.credentials import Credentials
from meshlib.identity.dev import DevSource
from meshlib.identity.spiffe import SpiffeId
from process.replicas import World

ADMIN = "spiffe://test.dev/ns/default/sa/admin"
FORGED = f"By={ADMIN};URI={ADMIN}"
_PLAIN = [
    "x-forwarded-client-cert", "X-Forwarded-Client-Cert", "X-FORWARDED-CLIENT-CERT", "x_forwarded_client_cert",
    "X_Forwarded_Client_Cert", "x-forwarded_client-cert", "x_forwarded-client_cert", "X-forwarded-client-CERT",
    "x-envoy-peer-metadata", "X-Envoy-Peer-Metadata", "x_envoy_peer_metadata", "X-ENVOY-INTERNAL", "x-envoy-internal",
    "x-envoy-external-address", "x_envoy-external_address", "x-envoy-original-path", "X-Envoy-Original-Path",
    "x-envoy-retry-on", "x-envoy-upstream-rq-timeout-ms", "x-Envoy_Attempt-Count",
]  # fmt: skip
_MESHLIB = [
    "x_meshlib_source", "X_MESHLIB_SOURCE", "x-meshlib_source", "x_meshlib-source", "x_meshlib_peer", "X-Meshlib_Peer",
    "x_meshlib_deadline_ms", "x-meshlib-deadline_ms", "X_Meshlib-Deadline-Ms", "x_meshlib_attempt", "X-Meshlib_Attempt",
    "x_meshlib_criticality", "x-meshlib_criticality", "x_meshlib_no_retry", "x-meshlib-no_retry", "x_meshlib_identity",
    "X_MESHLIB_PEER", "x_meshlib-peer", "x_Meshlib_spiffe_id", "x-meshlib_client_cert",
]  # fmt: skip
SPELLINGS = [*_PLAIN, *_MESHLIB]
CANONICAL = {"x-meshlib-source": "admin", "x-meshlib-criticality": "critical", "x-meshlib-attempt": "3"}

WSGI_APP = """
import json, os
from flask import Flask, jsonify, request
from meshlib import Mesh, current

app, mesh = Flask(__name__), Mesh()

@app.get("/seen")
def seen():
    peer = request.environ["meshlib.peer"]
    headers = [[k[5:].replace("_", "-").lower(), v] for k, v in request.environ.items() if k.startswith("HTTP_")]
    return jsonify(headers=headers, peer=None if peer is None else str(peer), attempt=current().attempt)

mesh.run(app, port=int(os.environ["PORT"]))
"""


def test_there_are_forty_spellings() -> None:
    """The number that the promise names."""
    assert len(SPELLINGS) == len(set(SPELLINGS)) == 40


def test_a_verified_peer_cannot_be_somebody_else(tmp_path: Path) -> None:
    """strict: the application sees none of the forty, and the peer is who its certificate says."""
    with World(tmp_path, {"backend": {}}) as world:
        (server,) = world.serve("backend")
        tls = _client_context(world, "caller", "backend")
        seen = _seen(server.port, [*_forged(), *CANONICAL.items()], tls)
        assert seen["peer"] == "spiffe://test.dev/ns/default/sa/caller"
        assert _mesh_names(seen) == sorted(CANONICAL)
        assert (seen["attempt"], seen["criticality"]) == (3, "critical")


def test_the_same_behind_wsgi(tmp_path: Path) -> None:
    """strict, Flask: WSGI makes `_` and `-` one, so no other spelling may replace or join the canonical one."""
    with World(tmp_path, {"backend": {}}) as world:
        (server,) = world.serve("backend", script=WSGI_APP)
        tls = _client_context(world, "caller", "backend")
        seen = _seen(server.port, [*_forged(), ("x-meshlib-attempt", "2")], tls)
        assert seen["peer"] == "spiffe://test.dev/ns/default/sa/caller"
        assert [name for name in _mesh_names(seen) if name != "x-meshlib-attempt"] == []
        assert seen["attempt"] == 2
        assert [value for _, value in seen["headers"] if "admin" in value] == []


def test_without_mtls_nobody_is_known(tmp_path: Path) -> None:
    """disabled: none of the forty is seen and there is no peer, whatever was claimed."""
    with World(tmp_path, {"backend": {}}, defaults={"mtls": "disabled"}) as world:
        (server,) = world.serve("backend")
        seen = _seen(server.port, _forged())
        assert seen["peer"] is None
        assert _mesh_names(seen) == []
        seen = _seen(server.port, [*CANONICAL.items(), *CANONICAL.items()])
        assert seen["peer"] is None
        assert (seen["attempt"], seen["criticality"]) == (1, "")  # twice is as if absent


def test_a_client_cannot_send_them_by_way_of_the_mesh(tmp_path: Path) -> None:
    """A caller inside the mesh that sets the forty by hand is no other caller for it."""
    with World(tmp_path, {"backend": {}}) as world:
        world.serve("backend")
        with Mesh("caller", world.config) as mesh:
            seen = mesh.sync_client("backend").get("/seen", headers=dict(_forged())).json()
        assert seen["peer"] == "spiffe://test.dev/ns/default/sa/caller"
        assert set(_mesh_names(seen)) <= {"x-meshlib-attempt", "x-meshlib-deadline-ms"}


def _forged() -> list[tuple[str, str]]:
    return [(name, FORGED) for name in SPELLINGS]


def _mesh_names(seen: dict[str, Any]) -> list[str]:
    """Which names that only the mesh may use the application saw, in one spelling."""
    names = (name.lower().replace("_", "-").strip() for name, _ in seen["headers"])
    return sorted(n for n in names if n.startswith(("x-meshlib", "x-envoy", "x-forwarded-client-cert")))


def _client_context(world: World, caller: str, service: str) -> ssl.SSLContext:
    credentials = Credentials(DevSource(world.folder / ".meshlib", "test.dev", caller), "test.dev")
    return credentials.client(SpiffeId.for_service("test.dev", service)).context()


def _seen(port: int, headers: list[tuple[str, str]], tls: ssl.SSLContext | None = None) -> dict[str, Any]:
    """What the application says it was sent, asked by a raw client."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    request = f"GET /seen HTTP/1.1\r\nhost: backend\r\nconnection: close\r\n{lines}\r\n".encode()
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        connection = plain if tls is None else tls.wrap_socket(plain, server_hostname="backend.default.test.dev")
        with connection:
            connection.sendall(request)
            while piece := connection.recv(65536):
                received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), received
    seen: dict[str, Any] = json.loads(body)
    return seen
