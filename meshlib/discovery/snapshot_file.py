"""The snapshot in the state_dir: the last good policy, with which a process starts while the config service is away.

It holds the fragments as they were signed; whoever reads it verifies them again, so that a disk cannot forge a policy.
The processes of a host that are the same service share the file: who writes keeps what others had put there and it does
not follow itself. One rename per write. Source: FAULTS F01 (static stability).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..identity.private_folder import locked, replace
from .fragment import REPLY_BYTES_MAX, Signed, peek

NAME = "snapshot.json"
FRAGMENTS_MAX = 10_000
"""Fragments of a snapshot; what is beyond is left out."""


def read_snapshot(folder: Path) -> list[Signed]:
    """The fragments of the snapshot in `folder`, unverified; none where there is none, or it cannot be read as one."""
    try:
        with (folder / NAME).open("rb") as file:
            text = file.read(REPLY_BYTES_MAX + 1)
        kept = json.loads(text) if len(text) <= REPLY_BYTES_MAX else {}
        signers = [str(signer) for signer in kept["signers"]]
        return [
            Signed(str(item["payload"]), str(item["signature"]), signers[int(item["signer"])])
            for item in kept["fragments"][:FRAGMENTS_MAX]
        ]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def write_snapshot(folder: Path, fragments: Sequence[Signed], keep: Iterable[str]) -> None:
    """Replace the snapshot in `folder`, which is private. What was there of the resources in `keep`, which this process
    does not follow, stays. OSError.
    """
    with locked(folder):
        others = {found[0]: signed for signed in read_snapshot(folder) if (found := peek(signed))}
        kept = [others[resource] for resource in keep if resource in others]
        replace(folder / NAME, _text([*fragments, *kept][:FRAGMENTS_MAX]))


def resources_in(fragments: Iterable[Signed]) -> set[str]:
    """The resources that fragments claim to be."""
    return {found[0] for signed in fragments if (found := peek(signed))}


def _text(fragments: Sequence[Signed]) -> bytes:
    signers = {signer: index for index, signer in enumerate(dict.fromkeys(signed.signer for signed in fragments))}
    items = [{"payload": s.payload, "signature": s.signature, "signer": signers[s.signer]} for s in fragments]
    return json.dumps({"signers": list(signers), "fragments": items}).encode()
