"""The `dev` source: a certificate authority in a folder of this machine, shared by the processes that use the folder.

    <state_dir>/dev-ca/   an authority on disk (`authority_file`)

For development only: whoever reads the folder can be anybody. So: a trust domain that ends in `.dev`, servers on the
loopback interface only (`loopback_only`; the server side sees to it), a folder of our own that nobody else may enter,
one loud line per process. Another state there tells every process to fetch again.

Source: SPIRE (renew at half-life ± 10 %; overlap of the old and new root).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from ..runtime import Rng
from .authority_file import AuthorityFile
from .ca import LEAF_LIFE_S
from .renewal import renewal_s
from .roots import PROPAGATION_S, Roots
from .spiffe import SpiffeId
from .svid import Svid, TrustBundle

logger = logging.getLogger("meshlib.identity")


class DevSource:
    """SVIDs of `service` (`name` or `name.namespace`) from the local authority, which the first process makes.

    `wall` gives unix seconds; `leaf_life_s` defaults to 24 h. ValueError when `trust_domain` does not end in `.dev`.
    """

    loopback_only = True

    def __init__(
        self,
        state_dir: str | os.PathLike[str],
        trust_domain: str,
        service: str,
        *,
        wall: Callable[[], float] = time.time,
        rng: Rng | None = None,
        leaf_life_s: float = LEAF_LIFE_S,
    ) -> None:
        if not trust_domain.endswith(".dev"):
            raise ValueError(f"identity source 'dev' needs a trust domain that ends in '.dev', not {trust_domain!r}")
        self._id = SpiffeId.for_service(trust_domain, service)
        self._file, self._wall, self._leaf_life_s = AuthorityFile(Path(state_dir) / "dev-ca"), wall, leaf_life_s
        self._rng = random.SystemRandom() if rng is None else rng
        self._renew_at = 0.0

    def fetch(self) -> tuple[Svid, TrustBundle]:
        """A new leaf and the current bundle. OSError or ValueError, with a sentence, when the folder will not do."""
        _warn(os.getpid(), str(self._file.folder))
        trust_domain, now = self._id.trust_domain, self._wall()
        roots = self._file.step(lambda roots: Roots.create(trust_domain, now) if roots is None else roots.due(now))
        svid = roots.signer.issue(self._id, now=now, life_s=self._leaf_life_s)
        self._renew_at = now + renewal_s(svid.not_after - now, self._rng)
        return svid, TrustBundle(trust_domain, roots.bundle_pem)

    def changed(self) -> bool:
        """Has the authority changed since the last fetch, or is it time to renew the leaf? One `stat`."""
        return self._wall() >= self._renew_at or self._file.stamp() != self._file.seen


def rotate_leaves(state_dir: str | os.PathLike[str]) -> int:
    """Let every process of `state_dir` take a new leaf at its next refresh. Returns the new generation.

    FileNotFoundError where there is no authority yet.
    """
    return _rotated(Path(state_dir) / "dev-ca", Roots.renew_leaves).generation


def rotate_root(
    state_dir: str | os.PathLike[str], *, now: float | None = None, propagation_s: float = PROPAGATION_S
) -> int:
    """Replace the root; the previous one, and no older, stays believed. Returns the new generation.

    Two steps, `propagation_s` apart: every process believes the new root before any leaf is signed by it, so no
    handshake fails in between. Stopped after the first step, the next rotation or, some seconds later, the next process
    that fetches takes the second. A rotation that is under way is joined: both end with the same root.
    `now`: unix seconds, default the wall clock. FileNotFoundError where there is no authority yet.
    """
    folder, at = Path(state_dir) / "dev-ca", time.time() if now is None else now
    proposed = _rotated(folder, lambda roots: roots.propose(at))
    time.sleep(propagation_s)
    return _rotated(folder, lambda roots: roots.promote(proposed)).generation


@lru_cache(maxsize=1)
def _warn(_process: int, folder: str) -> None:
    """Once per process, a forked child included."""
    logger.warning("DEVELOPMENT IDENTITY: whoever can read %s can be any service of this mesh", folder)


def _rotated(folder: Path, step: Callable[[Roots], Roots]) -> Roots:
    def of_known(roots: Roots | None) -> Roots:
        if roots is None:
            message = f"{folder} holds no authority yet; the first process of the mesh that starts makes one"
            raise FileNotFoundError(message)
        return step(roots)

    file = AuthorityFile(folder)
    return file.step(of_known) if file.exists() else of_known(None)  # a wrong folder is not made
