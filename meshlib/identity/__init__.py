"""Who a process is and how it proves it: SPIFFE ids, SVIDs, TLS contexts, rotation.

`spiffe` (ids, pure) · `svid` (certificates at rest) · `ca` (issuing) · `roots` (which root signs, which are believed,
pure) · `renewal` (when, pure) · `private_folder` (files with keys) · `authority_file` (an authority on disk)

Sources: `dev` (a local authority) · `control` (the config service), with `csr`, `join_token`, `enrolment` (its files)
and `pinned` (first contact), `svid_tls` (renewal). `signature`: what the config service says, signed.

`tls` (the check inside the handshake) · `credentials` (the live identity: what transports use)
"""
