"""Join tokens: one string by which a process and the config service prove themselves to each other, once.

    <id>.<secret>.<sha256 of the root>      12 hex digits · 43 characters, 32 random bytes · 64 hex digits

The hash of the root says whom the process may believe before it believes anybody (`pinned`); only `id.secret` ever
goes over the wire, and only after that check. The service keeps the SHA-256 of the secret: with 256 random bits there
is nothing that a slow hash would protect. The operator's token has the same form.

Source: kubeadm's bootstrap tokens with `--discovery-token-ca-cert-hash`; RFC 6750 §2.1 for the header.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

_BEARER = r"(?P<id>[0-9a-f]{12})\.(?P<secret>[A-Za-z0-9_-]{43})"
_TOKEN = re.compile(_BEARER + r"\.(?P<root>[0-9a-f]{64})")
_HEADER = re.compile(r"[Bb]earer +" + _BEARER)
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as its holder has it. The secret is in `str` and `bearer` only: never log either.

    `root_sha256`: SHA-256, in hex, of the DER of the root that the config service's certificate comes from.
    """

    id: str
    secret: str = field(repr=False)
    root_sha256: str

    @classmethod
    def create(cls, root_sha256: str) -> JoinToken:
        """A new token, by the system's randomness."""
        return cls(secrets.token_hex(6), secrets.token_urlsafe(_SECRET_BYTES), root_sha256)

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """The token in `text`, white space around it aside; ValueError, which never shows any of it."""
        found = _TOKEN.fullmatch(text.strip())
        if found is None:
            raise ValueError("this is no join token: one is <id>.<secret>.<sha256 of the root>, as it was printed")
        return cls(found["id"], found["secret"], found["root"])

    def __str__(self) -> str:
        return f"{self.bearer}.{self.root_sha256}"

    @property
    def bearer(self) -> str:
        """`id.secret`: what follows `Bearer ` in the Authorization header."""
        return f"{self.id}.{self.secret}"

    @property
    def secret_sha256(self) -> str:
        """What the service keeps of the secret, in hex."""
        return _sha256(self.secret)


def parse_bearer(authorization: str) -> tuple[str, str] | None:
    """The token's id and its secret's SHA-256 in hex, of a header `Bearer id.secret`; None for anything else."""
    found = _HEADER.fullmatch(authorization)
    return None if found is None else (found["id"], _sha256(found["secret"]))


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()
