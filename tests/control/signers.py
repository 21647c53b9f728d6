"""A signer for tests: it says what it signed, and counts."""

from __future__ import annotations

from typing import cast

from meshlib.identity.signature import Signer


class CountingSigner:
    """`signed`: every payload, in order."""

    def __init__(self, name: str = "first") -> None:
        self.name, self.signed = name, []  # type: str, list[bytes]

    def sign(self, payload: bytes) -> str:
        self.signed.append(payload)
        return f"{self.name}-{len(self.signed)}"


def as_signer(signer: CountingSigner) -> Signer:
    return cast(Signer, signer)
