"""What a reply may cost before it is refused. The same numbers hold for every runtime.

Sources: Envoy refuses heads above 60 KiB and 100 fields by default, so a reply that passes one passes us. The others
are ours: a server has no use for more than a few interim replies, and a buffered body is bounded because memory is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Limits on one reply; passing one is TransportError(cause="too_large"), 1xx beyond `interim` are "protocol".

    `head_bytes`: status line and header fields, counted before they are parsed; trailers and chunk framing between two
    pieces of body have the same limit. `fields`: header fields, and again trailer fields. `interim`: 1xx replies before
    the final one. `body_bytes`: a body that is collected in memory; a streamed one is bounded by back-pressure instead.
    """

    head_bytes: int = 65536
    fields: int = 100
    interim: int = 8
    body_bytes: int = 100 * 1024 * 1024
