"""The enrolment of a service on a host: what its first process was given, kept for all that follow.

    <state_dir>/<service>/   svid.pem (key and chain, one file: one rename) · bundle.pem · lock      all private

With it a process starts while the config service is down, and gets a leaf of its own when it is up. The bundle is
written first: it is never without the root of the leaf beside it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from . import private_folder
from .spiffe import SpiffeId
from .svid import Svid, TrustBundle

ENROLMENT_WAIT_S = 30.0
"""How long to wait for a sibling that enrols: it holds the lock until the config service answers. Then TimeoutError."""

_SVID = "svid.pem"
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


def is_enrolled(folder: Path) -> bool:
    """Does `folder` hold an enrolment? What it is worth, `Enrolment.load` says."""
    return (folder / _SVID).exists()


class Enrolment:
    """The files of `expected`, a service of `trust_domain`, in `folder`, which need not exist yet."""

    def __init__(self, folder: Path, trust_domain: str, expected: SpiffeId) -> None:
        self.folder, self._trust_domain, self._expected = folder, trust_domain, expected
        self._svid, self._bundle = folder / _SVID, folder / "bundle.pem"

    def load(self) -> tuple[Svid, TrustBundle] | None:
        """What is kept, or None: nothing is. Whether it is still valid, is the caller's to say.

        PermissionError when others can reach it; ValueError when it is damaged or somebody else's. Both say what to do.
        """
        if not self.folder.exists():
            return None
        private_folder.make_private(self.folder.parent)
        private_folder.make_private(self.folder)
        try:
            key, begin, chain = private_folder.read(self._svid).partition(_CERTIFICATE)
        except FileNotFoundError:
            return None
        try:
            svid = Svid.load(begin + chain, key)
            bundle = TrustBundle(self._trust_domain, private_folder.read(self._bundle))
            if svid.id != self._expected:
                raise ValueError(f"it is of {svid.id}, not {self._expected}")
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{self.folder} holds no usable enrolment: {error}; remove {_SVID} there, and give a new join token "
                "(meshlib token create)"
            ) from None
        return svid, bundle

    def save(self, svid: Svid, bundle: TrustBundle) -> None:
        """Keep both; only under `locked`. Which enrolments are revoked, is not kept here."""
        self.save_bundle(bundle)
        private_folder.replace(self._svid, svid.private_key_pem.rstrip() + b"\n" + svid.certificate_pem)

    def save_bundle(self, bundle: TrustBundle) -> None:
        """Keep other roots with the same SVID; only under `locked`."""
        private_folder.replace(self._bundle, bundle.pem)

    def locked(self, wait_s: float = ENROLMENT_WAIT_S) -> AbstractContextManager[None]:
        """Hold the files; folder and parent are made private. TimeoutError after `wait_s` seconds."""
        return private_folder.locked(self.folder, wait_s)
