"""How to reach a peer as the holder of one SVID: for the few connections that are not the process's own identity's.

A renewal is asked for by showing the leaf that is to be renewed, which may be that of the files.
"""

from __future__ import annotations

import ssl

from .spiffe import SpiffeId, dns_name
from .svid import Svid, TrustBundle
from .tls import client_context


class SvidTls:
    """A `transport.tls_stream.ClientTls` that never changes. `expected`: the peer's id, of a service."""

    generation = 1

    def __init__(self, svid: Svid, bundle: TrustBundle, expected: SpiffeId) -> None:
        self.expected, self.server_name = str(expected), dns_name(expected)
        self._ends, self._context = svid.not_after, client_context(svid, bundle, expected)

    def context(self) -> ssl.SSLContext:
        """The one context."""
        return self._context

    def not_after(self) -> float:
        """Unix time when the SVID ends."""
        return self._ends
