"""Who a process is and how it proves it: SPIFFE ids, SVIDs, TLS contexts, rotation.

`spiffe` (ids, pure) · `svid` (certificates at rest) · `ca` (issuing) · `roots` (which root signs, which are believed,
pure) · `dev` (a local authority) · `tls` (the check inside the handshake) · `credentials` (the live identity: what
transports use).
"""
