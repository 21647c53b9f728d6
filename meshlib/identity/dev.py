"""The `dev` source: a certificate authority in a folder of this machine, shared by the processes that use the folder.

    <state_dir>/dev-ca/   authority.json (roots and keys) · bundle.pem (the roots believed, for other programs) · lock

For development only: whoever reads the folder can be anybody. So: a trust domain that ends in `.dev`, servers on the
loopback interface only (`loopback_only`; the server side sees to it), a folder of our own that nobody else may enter,
one loud line per process. `authority.json` is the whole state, read and replaced under a lock, by one rename: a process
killed anywhere leaves the state before or after. Another file there tells every process to fetch again.

Source: SPIRE (renew at half-life ± 10 %; overlap of the old and new root).
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from ..runtime import Rng
from .ca import LEAF_LIFE_S
from .roots import PROPAGATION_S, Roots
from .spiffe import SpiffeId
from .svid import Svid, TrustBundle

logger = logging.getLogger("meshlib.identity")

LOCK_WAIT_S = 10.0
"""How long to wait for a sibling that holds the lock; it needs a few milliseconds."""

RENEW_AT, RENEW_JITTER = 0.5, 0.1
"""A leaf is renewed after half of its life, ± 10 % of that half by chance, so that siblings do not come at once."""

_LOCK_POLL_S = 0.01
_STATE = "authority.json"


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
        self._folder, self._wall, self._leaf_life_s = Path(state_dir) / "dev-ca", wall, leaf_life_s
        self._rng = random.SystemRandom() if rng is None else rng
        self._seen, self._renew_at = None, 0.0  # type: tuple[int, int] | None, float

    def fetch(self) -> tuple[Svid, TrustBundle]:
        """A new leaf and the current bundle. OSError or ValueError, with a sentence, when the folder will not do."""
        _warn(os.getpid(), str(self._folder))
        trust_domain, now = self._id.trust_domain, self._wall()
        with _locked(self._folder):
            before = None if self._stamp() is None else _read(self._folder)
            roots = Roots.create(trust_domain, now) if before is None else before.due(now)
            _keep(self._folder, before, roots)
            seen = self._stamp()
        svid = roots.signer.issue(self._id, now=now, life_s=self._leaf_life_s)
        share = RENEW_AT * (1 + RENEW_JITTER * (2 * self._rng.random() - 1))
        self._seen, self._renew_at = seen, now + share * (svid.not_after - now)
        return svid, TrustBundle(trust_domain, roots.bundle_pem)

    def changed(self) -> bool:
        """Has the authority changed since the last fetch, or is it time to renew the leaf? One `stat`."""
        return self._wall() >= self._renew_at or self._stamp() != self._seen

    def _stamp(self) -> tuple[int, int] | None:
        """What changes whenever the state is written: a rename gives another file. None: there is none."""
        try:
            status = os.stat(self._folder / _STATE)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


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
    if not (folder / _STATE).exists():
        raise FileNotFoundError(f"{folder} holds no authority yet; the first process of the mesh that starts makes one")
    with _locked(folder):
        before = _read(folder)
        roots = step(before)
        _keep(folder, before, roots)
    return roots


def _read(folder: Path) -> Roots:
    try:
        return Roots.load((folder / _STATE).read_bytes())
    except ValueError as error:
        message = f"{folder / _STATE} is no usable authority: {error}; remove the folder {folder} to get a new one"
        raise ValueError(message) from None


def _keep(folder: Path, before: Roots | None, roots: Roots) -> None:
    """Write what has changed. The bundle goes first, so that it never lacks a root that signs."""
    if roots is not before:
        _write(folder / "bundle.pem", roots.bundle_pem)
        _write(folder / _STATE, roots.dump())


def _write(path: Path, content: bytes) -> None:
    """Replace `path` in one step; only under the lock, so one temporary name is enough."""
    fresh = path.with_suffix(path.suffix + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    fresh.rename(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder, made private if it is new. TimeoutError when a sibling holds it for longer than 10 s."""
    _private(folder.parent)
    _private(folder)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder / 'lock'} has been held by another process for {LOCK_WAIT_S:.0f} s")
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(folder: Path) -> None:
    """Make `folder` with mode 0700, or check that it is ours alone; PermissionError says what to do."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.stat(folder, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(
            f"{folder} must be a directory owned by this user (uid {os.geteuid()}), because it holds keys"
        )
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(f"{folder} has mode {mode:04o}, but it holds keys: run chmod 700 {folder}")
