"""The `control` source: SVIDs from the config service, and the files that let a process start without it.

    start ─▶ the enrolment of the host ──▶ soon a leaf of our own ──▶ at half of its life another …
               │ none, or it has ended              (in memory only; got by showing the one before)
               ▼
             enrol with the join token, under the lock: one process of a host, the others find its files

A fetch does one thing: it adopts new trust (no network), renews our leaf, or renews the files. So a revocation or a new
root is never held up by a service that does not answer. The files are renewed past half of their life, and when our new
leaf is of another root than the last: what is kept must be believed by whoever is met after a restart. When our leaf
and the files have ended, a process enrols again, if it has a token.

Our own enrolment revoked: nothing is tried. An enrolment whose answer was lost is asked for again with the same key,
which the service counts as the same use of the token; the key is in memory, so try again with the same object.

Source: SPIRE's agent (the SVID is kept on disk, and renewed by showing the last one).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Protocol

from ..runtime import Rng
from .ca import BACKDATE_S
from .csr import make_csr
from .enrolment import Enrolment, is_enrolled
from .join_token import JoinToken
from .private_folder import make_private
from .renewal import RENEW_AT, RENEW_JITTER, Schedule, renewal_s
from .spiffe import SpiffeId
from .svid import PeerIdentityError, Svid, TrustBundle, enrolment_of, issuing_root, verify_svid

logger = logging.getLogger("meshlib.identity")

OWN_LEAF_WITHIN_S = 5.0
"""A process that began with the files' leaf asks for its own within this, at random, or a quarter of what is left."""

KEEP_WAIT_S = 1.0
"""How long new roots wait for a sibling that holds the files; it writes what it is told itself. Then: a warning."""

TOKEN_FILE_BYTES_MAX = 4096
"""The longest token file; of a longer one the rest is not read, and it is refused. A token has 121 characters."""


@dataclass(frozen=True, slots=True)
class Issued:
    """What the config service has answered: a leaf's chain, the roots to believe, and the generation of both."""

    chain_pem: bytes
    bundle_pem: bytes
    generation: int


def check_means(folder: Path, token_file: Path | None, service: str) -> None:
    """Has `service` an enrolment in `folder`, or a join token to get one with? Else, or where others can reach the
    folders, ValueError or OSError, which says what to do. What either is worth, the config service says.
    """
    if folder.parent.exists():
        make_private(folder.parent)
    if is_enrolled(folder):
        return
    if token_file is None:
        raise ValueError(
            f"{service} has no identity in {folder} and no join token to get one with: set MESHLIB_TOKEN_FILE to a "
            f"file with what `meshlib token create {service}` prints"
        )
    read_token(token_file, service)


def read_token(file: Path, service: str | None) -> JoinToken:
    """The join token in `file`; ValueError, which says how `service` gets one."""
    try:
        with file.open("rb") as opened:
            return JoinToken.parse(opened.read(TOKEN_FILE_BYTES_MAX).decode("ascii", "replace"))
    except OSError as error:
        raise ValueError(f"the join token cannot be read: {error}; {_way_out(service)}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {_way_out(service)}") from None


def _way_out(service: str | None) -> str:
    return f"make one with `meshlib token create {service}` and name its file in MESHLIB_TOKEN_FILE"


class Authority(Protocol):
    """The config service as this file needs it. Every method may block within a bound and raise MeshError."""

    def enrol(self, token: JoinToken, csr_pem: bytes) -> Issued:
        """A leaf for the key of `csr_pem`, by a join token. The same key may ask with the same token again."""

    def renew(self, svid: Svid, bundle: TrustBundle, csr_pem: bytes) -> Issued:
        """A leaf for the key of `csr_pem` and the id of `svid`, by showing `svid`."""


class ControlSource:
    """The identity of `service` from the config service; a `credentials.Source`.

    `folder`: `<state_dir>/<service>`. `token_file`: where a join token is, needed for the first process of a host
    only. `wall` gives unix seconds. `fetch` and `changed` are one thread's at a time, `trust` is anybody's.
    """

    loopback_only = False

    def __init__(
        self,
        folder: Path,
        trust_domain: str,
        service: str,
        authority: Authority,
        token_file: Path | None,
        *,
        wall: Callable[[], float] = time.time,
        rng: Rng | None = None,
    ) -> None:
        self._id = SpiffeId.for_service(trust_domain, service)
        self._enrolment = Enrolment(folder, trust_domain, self._id)
        self._authority, self._token_file, self._wall = authority, token_file, wall
        self._rng = random.SystemRandom() if rng is None else rng
        self._lock = Lock()  # around what `trust` writes: what was told, the generation, the leaf's schedule
        self._held: tuple[Svid, TrustBundle] | None = None
        self._told: TrustBundle | None = None
        self._generation: int | None = None
        self._leaf, self._files = Schedule(), Schedule()
        self._files_end, self._saved_pem = 0.0, b""
        self._request: tuple[bytes, bytes] | None = None

    def fetch(self) -> tuple[Svid, TrustBundle]:
        """A current SVID and bundle. The first: of the files, or by the token; later ones: what is due.

        What the authority raises; ValueError or OSError, with a sentence that says what to do, when files, token or
        answer will not do. A failure after the first success is tried again when `changed` says so.
        """
        if self._held is None:
            self._begin()
        elif not self._believe():
            self._renew(*self._held)
        assert self._held is not None  # `_begin` gives an identity or raises
        return self._held

    def enrolled(self) -> bool:
        """Do the files hold an enrolment that is valid now, so that the first fetch needs no network? As `load`, where
        they are damaged.
        """
        return self._kept() is not None

    def changed(self) -> bool:
        """Is there new trust, or is it time to renew? No I/O."""
        now = self._wall()
        with self._lock:
            told = self._held is None or self._told is not None
            return told or self._leaf.due(now) or self._files.due(now)

    def trust(self, bundle: TrustBundle, generation: int, spread_s: float) -> None:
        """What the `trust` fragment says; thread-safe, cheap, no I/O. ValueError for another trust domain's bundle.

        The next fetch adopts and keeps the bundle. A generation other than the last known asks for a new leaf, at a
        random moment within `spread_s` seconds.
        """
        if bundle.trust_domain != self._id.trust_domain:
            raise ValueError(f"the bundle is of trust domain {bundle.trust_domain}, not {self._id.trust_domain}")
        with self._lock:
            self._told = None if self._held is not None and self._held[1] == bundle else bundle
            if self._generation not in (None, generation):
                self._leaf.within(self._wall(), self._rng.random() * max(0.0, spread_s))
            self._generation = generation

    def _begin(self) -> None:
        """Take the enrolment as our identity; a leaf of our own comes soon."""
        svid, bundle = self._enrolled()
        now, self._saved_pem = self._wall(), bundle.pem
        self._plan_files(svid, _due_in_s(svid, now, self._rng))
        with self._lock:
            self._held = svid, bundle
            self._leaf.next(now, self._rng.random() * min(OWN_LEAF_WITHIN_S, (svid.not_after - now) / 4))

    def _enrolled(self) -> tuple[Svid, TrustBundle]:
        """The valid enrolment of this host, which a sibling may make while we wait for the lock."""
        if kept := self._kept():
            return kept
        with self._enrolment.locked():
            return self._kept() or self._enrol()

    def _kept(self) -> tuple[Svid, TrustBundle] | None:
        loaded = self._enrolment.load()
        if loaded is None:
            return None
        svid, bundle = loaded[0], replace(loaded[1], revoked=self._revoked())
        _check_clock(svid, self._wall())
        return (svid, bundle) if self._valid(svid, bundle) else None

    def _enrol(self) -> tuple[Svid, TrustBundle]:
        token = self._token()
        csr, key = self._request = self._request or make_csr(self._id)
        svid, bundle = self._checked(self._authority.enrol(token, csr), key)
        self._enrolment.save(svid, bundle)
        self._request = None
        return svid, bundle

    def _token(self) -> JoinToken:
        if self._token_file is None:
            raise ValueError(
                f"{self._enrolment.folder} holds no valid enrolment, and there is no join token: "
                f"{_way_out(self._id.service)}"
            )
        return read_token(self._token_file, self._id.service)

    def _believe(self) -> bool:
        """Adopt what was told. True when something was, and our leaf is good under it: the leaf can wait."""
        with self._lock:
            told, self._told = self._told, None
            if told is None or self._held is None:
                return False
            svid = self._held[0]
            self._held = svid, told
            if not (good := self._valid(svid, told)):
                self._leaf.within(self._wall(), 0.0)
        self._keep(told)
        return good

    def _keep(self, bundle: TrustBundle) -> None:
        if bundle.pem == self._saved_pem:
            return
        try:
            with self._enrolment.locked(KEEP_WAIT_S):
                self._enrolment.save_bundle(bundle)
            self._saved_pem = bundle.pem
        except OSError as error:  # it is believed all the same, and kept with the next one or with the next SVID
            logger.warning("the roots of trust domain %s could not be kept: %s", bundle.trust_domain, error)

    def _renew(self, svid: Svid, bundle: TrustBundle) -> None:
        now = self._wall()
        with self._lock:
            files_only = self._files.due(now) and not self._leaf.due(now)
        try:
            self._renew_files(svid, bundle) if files_only else self._renew_leaf(svid, bundle)
        except Exception:
            schedule, ends = (self._files, self._files_end) if files_only else (self._leaf, svid.not_after)
            with self._lock:
                schedule.failed(self._wall(), ends, self._rng)
            raise

    def _renew_leaf(self, svid: Svid, bundle: TrustBundle) -> None:
        if enrolment_of(svid.serial) in bundle.revoked:
            raise ValueError(
                f"certificate {svid.serial:x} of this process, {svid.id}, has been revoked: it is not renewed; remove "
                f"{self._enrolment.folder} and enrol again with a new token (meshlib token create)"
            )
        if not self._valid(svid, bundle):
            self._begin()
            return
        known = self._generation
        fresh, its_bundle, generation = self._asked(svid, bundle)
        now = self._wall()
        with self._lock:
            self._held = fresh, its_bundle
            if self._generation in (known, generation):  # else `trust` has asked for another in the meantime
                self._generation = generation
                self._leaf.next(now, _due_in_s(fresh, now, self._rng, fresh=True))
            if _root(fresh, its_bundle) != _root(svid, its_bundle):
                self._files.within(now, 0.0)
        self._keep(its_bundle)

    def _renew_files(self, svid: Svid, bundle: TrustBundle) -> None:
        """Unless a sibling has. Also where they were removed: whoever runs enrols whoever starts."""
        with self._enrolment.locked():
            loaded = self._enrolment.load()
            now = self._wall()
            if loaded is not None and not _worn(loaded[0], now) and _root(loaded[0], bundle) == _root(svid, bundle):
                self._plan_files(loaded[0], _due_in_s(loaded[0], now, self._rng))
                return
            shown = loaded[0] if loaded is not None and self._valid(loaded[0], bundle) else svid
            fresh, its_bundle, _ = self._asked(shown, bundle)
            self._enrolment.save(fresh, its_bundle)
            self._saved_pem = its_bundle.pem
        self._plan_files(fresh, _due_in_s(fresh, self._wall(), self._rng, fresh=True))

    def _plan_files(self, svid: Svid, after_s: float) -> None:
        with self._lock:
            self._files_end = svid.not_after
            self._files.next(self._wall(), after_s)

    def _asked(self, shown: Svid, bundle: TrustBundle) -> tuple[Svid, TrustBundle, int]:
        csr, key = make_csr(self._id)
        issued = self._authority.renew(shown, bundle, csr)
        return *self._checked(issued, key), issued.generation

    def _checked(self, issued: Issued, key: bytes) -> tuple[Svid, TrustBundle]:
        """What was issued, if it may be used; else ValueError: the config service is not believed blindly."""
        svid = Svid.load(issued.chain_pem, key)
        bundle = TrustBundle(self._id.trust_domain, issued.bundle_pem, self._revoked())
        now = self._wall()
        _check_clock(svid, now, new=True)
        if (proved := verify_svid(svid.chain(), {bundle.trust_domain: bundle}, now)) != self._id:
            raise ValueError(f"the config service has issued {proved}, but this process is {self._id}")
        return svid, bundle

    def _valid(self, svid: Svid, bundle: TrustBundle) -> bool:
        try:
            return verify_svid(svid.chain(), {bundle.trust_domain: bundle}, self._wall()) == self._id
        except PeerIdentityError:
            return False

    def _revoked(self) -> frozenset[int]:
        return frozenset() if self._held is None else self._held[1].revoked


def _check_clock(svid: Svid, now: float, *, new: bool = False) -> None:
    if now < svid.not_before:
        wrong = f"begins {svid.not_before - now:.0f} s from now"
    elif new and now >= svid.not_after:
        wrong = f"is new, and ended {now - svid.not_after:.0f} s ago"
    else:
        return
    raise ValueError(f"the certificate of {svid.id} {wrong}: set the clock of this machine")


def _life_s(svid: Svid) -> float:
    """By the certificate alone, whatever our clock says."""
    return max(0.0, svid.not_after - svid.not_before - BACKDATE_S)


def _due_in_s(svid: Svid, now: float, rng: Rng, *, fresh: bool = False) -> float:
    """When to renew it, counted from its issue. `fresh`: that was now, by a clock that may differ from ours."""
    life_s, left_s = _life_s(svid), svid.not_after - now
    return renewal_s(min(life_s, left_s), rng) if fresh else renewal_s(life_s, rng) - (life_s - left_s)


def _worn(svid: Svid, now: float) -> bool:
    """Past half of its life, but for the jitter?"""
    return svid.not_after - now <= (1 - RENEW_AT * (1 - RENEW_JITTER)) * _life_s(svid)


def _root(svid: Svid, bundle: TrustBundle) -> bytes | None:
    try:
        return issuing_root(svid, bundle)
    except ValueError:
        return None
