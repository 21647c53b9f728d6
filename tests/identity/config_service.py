"""A config service in memory, as far as identities go, and processes that get theirs from it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from meshlib.errors import IdentityError, MeshError
from meshlib.identity.ca import LEAF_LIFE_S
from meshlib.identity.control import ControlSource, Issued
from meshlib.identity.csr import checked_csr
from meshlib.identity.join_token import JoinToken, parse_bearer
from meshlib.identity.roots import Roots
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, TrustBundle, enrolment_of, leaf_facts, verify_svid

from .clocks import Clock

TRUST_DOMAIN = "shop.example"
ORDERS = SpiffeId.for_service(TRUST_DOMAIN, "orders")


class Refused(MeshError):
    """The service says no."""


class ConfigService:
    """Issues what it is asked for, when it may. `calls`: what it was asked. `down`: what every call raises, if any.

    `lost`: the next answers that do not arrive although the work was done. `skew_s`: its clock is this much ahead.
    """

    def __init__(self, clock: Clock, life_s: float = LEAF_LIFE_S) -> None:
        self.clock, self.life_s, self.skew_s = clock, life_s, 0.0
        self.roots = Roots.create(TRUST_DOMAIN, clock.now)
        self.calls: list[str] = []
        self.down: Exception | None = None
        self.lost = 0
        self.revoked: set[int] = set()
        self.issued: dict[int, int] = {}  # serial: that of the leaf which was shown for it, 0: a token
        self.before_answer: Callable[[], None] = lambda: None
        self._tokens: dict[str, tuple[str, int, set[str]]] = {}
        self._lock = Lock()

    def token(self, uses: int = 1) -> JoinToken:
        """A token of orders."""
        token = JoinToken.create(self.roots.anchor.sha256)
        self._tokens[token.id] = token.secret_sha256, uses, set()
        return token

    @property
    def bundle(self) -> TrustBundle:
        """What it lets be believed now."""
        return TrustBundle(TRUST_DOMAIN, self.roots.bundle_pem, frozenset(self.revoked))

    def rotate_root(self) -> None:
        """Both steps."""
        coming = self.roots.propose(self.clock.now)
        self.roots = coming.promote(coming)

    def enrol(self, token: JoinToken, csr_pem: bytes) -> Issued:
        """See control.Authority."""
        with self._lock:
            self._called("enrol")
            known = parse_bearer(f"Bearer {token.bearer}")
            secret, uses, keys = self._tokens.get(token.id, ("", 0, set()))
            key = checked_csr(csr_pem).key_sha256
            if known is None or known[1] != secret or (key not in keys and len(keys) == uses):
                raise Refused("the token is unknown or used")
            keys.add(key)
            return self._answer(csr_pem, 0, None)

    def renew(self, svid: Svid, bundle: TrustBundle, csr_pem: bytes) -> Issued:
        """See control.Authority."""
        with self._lock:
            self._called("renew")
            try:
                verify_svid(svid.chain(), {TRUST_DOMAIN: self.bundle}, self.clock.now + self.skew_s)
            except ValueError as error:
                raise IdentityError(f"refused our certificate: {error}") from None
            return self._answer(csr_pem, svid.serial, enrolment_of(svid.serial))

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.down is not None:
            raise self.down

    def _answer(self, csr_pem: bytes, shown: int, enrolment: int | None) -> Issued:
        now, key = self.clock.now + self.skew_s, checked_csr(csr_pem).public_key
        issued = Issued(
            self.roots.signer.sign(key, ORDERS, now=now, life_s=self.life_s, enrolment=enrolment),
            self.roots.bundle_pem,
            self.roots.generation,
        )
        self.issued[leaf_facts(issued.chain_pem).serial] = shown
        self.before_answer()
        if self.lost:
            self.lost -= 1
            raise Refused("the connection was reset")
        return issued


class Host:
    """A machine with a state folder, on which processes of orders run."""

    def __init__(self, folder: Path, service: ConfigService, clock: Clock) -> None:
        self.folder, self.service, self.clock = folder / "state/orders.default", service, clock
        self.token_file = folder / "token"

    def give_token(self, uses: int = 1) -> JoinToken:
        """As an operator does."""
        token = self.service.token(uses)
        self.token_file.write_text(f"{token}\n")
        return token

    def process(self, rng: random.Random | None = None) -> ControlSource:
        """A new process."""
        file = self.token_file if self.token_file.exists() else None
        return ControlSource(
            self.folder, TRUST_DOMAIN, "orders", self.service, file, wall=self.clock, rng=rng or random.Random(1)
        )
