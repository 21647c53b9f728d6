"""The snapshot in the state_dir: the last good policy, with which a process starts while the config service is away.

It holds the fragments as they were signed; whoever reads it verifies them again, so that a disk cannot forge a policy.
The processes of a host that are the same service share the file: who writes keeps what others had put there and it does
not follow itself. One rename per write. Source: FAULTS F01 (static stability).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..identity.private_folder import locked, replace
from .fragment import Signed, peek

NAME = "snapshot.json"
SNAPSHOT_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of a snapshot; a larger one is neither written nor read."""
FRAGMENTS_MAX = 10_000
"""Fragments of a snapshot; what is beyond is left out."""


def read_snapshot(folder: Path) -> list[Signed]:
    """The fragments of the snapshot in `folder`, unverified; none where there is none, or it cannot be read as one.

    PermissionError, which says what to do, where others can write it.
    """
    path = folder / NAME
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise PermissionError(f"{path} must be private: run chmod 600 {path}")
            text = file.read(SNAPSHOT_BYTES_MAX + 1)
        kept = json.loads(text) if len(text) <= SNAPSHOT_BYTES_MAX else {}
        signers = [str(signer) for signer in kept["signers"]]
        return [
            Signed(str(item["payload"]), str(item["signature"]), signers[int(item["signer"])])
            for item in kept["fragments"][:FRAGMENTS_MAX]
        ]
    except PermissionError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def write_snapshot(folder: Path, fragments: Sequence[Signed]) -> None:
    """Replace the snapshot in `folder`, which is private. What is there of resources that this process does not follow
    is a sibling's, and stays, as far as there is room. OSError, of it TimeoutError where a sibling is writing just now;
    ValueError where this process follows more than may be kept.
    """
    with locked(folder, 0.0, "snapshot.lock"):
        mine = {found[0] for signed in fragments if (found := peek(signed))}
        others = [signed for signed in read_snapshot(folder) if (found := peek(signed)) and found[0] not in mine]
        for kept in ([*fragments, *others], fragments):
            text = _text(kept[:FRAGMENTS_MAX])
            if len(text) <= SNAPSHOT_BYTES_MAX:
                return replace(folder / NAME, text)
    raise ValueError(f"it has {len(text)} bytes, more than {SNAPSHOT_BYTES_MAX}")


def _text(fragments: Sequence[Signed]) -> bytes:
    signers = {signer: index for index, signer in enumerate(dict.fromkeys(signed.signer for signed in fragments))}
    items = [{"payload": s.payload, "signature": s.signature, "signer": signers[s.signer]} for s in fragments]
    return json.dumps({"signers": list(signers), "fragments": items}).encode()
