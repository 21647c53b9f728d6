"""Who gets a certificate: join tokens, leaves, revocation, and the rotation of the roots.

1.  Every field of a leaf is decided here: the service is the token's, or the renewed leaf's; of a request only the key
    is taken (F24).
2.  A leaf is remembered before it is handed out, in the step that looks whether its enrolment was revoked. A renewal
    has the enrolment of the leaf that was shown; a token that is redeemed, a new one for each key.
3.  The services of the namespace `meshlib` are this service itself: no token and no renewal is ever for one of them.
4.  Workloads' leaves are signed by the root that signs, this service's own by the anchor: the root that everybody
    believes, also a process that slept through the last rotation, and whoever has a join token from before it.
5.  A root is replaced in two steps (`identity/roots`): believed by all, and only then signing. When all believe it, is
    the caller's to know.

Sources: SPIRE (join tokens, the order of a rotation); kubeadm (the root's hash in the token).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import PermissionDenied
from ..identity.ca import BACKDATE_S, LEAF_LIFE_S, ROOT_LIFE_S, new_enrolment
from ..identity.control import Issued
from ..identity.csr import Csr, checked_csr
from ..identity.join_token import JoinToken
from ..identity.roots import Roots
from ..identity.signature import Signer
from ..identity.spiffe import SpiffeId
from ..identity.svid import ENROLMENT_BITS, Svid, enrolment_of, leaf_facts
from .store import REVOKED_MAX, Store

if TYPE_CHECKING:
    from ..identity.authority_file import AuthorityFile

CONTROL_SERVICE = "control.meshlib"
"""The config service as a service of the mesh."""

SIGNER_SERVICE = "signer.meshlib"
"""In whose name fragments are signed."""

_log = logging.getLogger("meshlib.control")


class RotationTooSoon(Exception):
    """Another root now would strand those that slept through the last rotation; the message says when it would not."""


class Issuer:
    """The certificate authority of `trust_domain`, in `authority` and `store`; made where there is none yet.

    `leaf_life_s`, `root_life_s`: of new certificates. `wall` gives unix seconds. One thread at a time; may block on the
    disk. ValueError when the authority is another trust domain's, or damaged; OSError when the folder will not do.
    """

    def __init__(
        self,
        store: Store,
        authority: AuthorityFile,
        trust_domain: str,
        leaf_life_s: float = LEAF_LIFE_S,
        root_life_s: float = ROOT_LIFE_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.trust_domain, self._store, self._authority = trust_domain, store, authority
        self._leaf_life_s, self._root_life_s, self._wall = leaf_life_s, root_life_s, wall
        self._own_enrolment = new_enrolment()
        self._signer: tuple[str, float, Signer] | None = None  # the root it is of, when it begins
        self._made_at = store.made_at(wall())
        self.is_new = False  # is the authority new, so that nobody believes anything yet?
        self._roots = authority.step(self._begun)

    @property
    def generation(self) -> int:
        """Of roots and leaves: it grows with each step of a rotation."""
        return self._roots.generation

    @property
    def root_sha256(self) -> str:
        """What a join token pins today: the hash of the anchor."""
        return self._roots.anchor.sha256

    def create_token(self, service: str, uses: int = 1, ttl_s: float = 600.0) -> JoinToken:
        """A new join token for `service` (`name` or `name.namespace`), good for `uses` ≥ 1 keys within `ttl_s` seconds.

        ValueError for a service that gets none, or a number out of its range; StoreFull.
        """
        canonical = SpiffeId.for_service(self.trust_domain, service).service or ""
        if _is_own(canonical):
            raise ValueError(f"{canonical} is the config service's own: nobody else may be it")
        if uses < 1 or not ttl_s > 0:
            raise ValueError(f"a join token has at least one use and some time, not {uses} uses in {ttl_s} s")
        token, now = JoinToken.create(self.root_sha256), self._wall()
        self._store.add_token(token.id, token.secret_sha256, service=canonical, uses=uses, expires=now + ttl_s, now=now)
        return token

    def create_operator(self) -> JoinToken:
        """A new operator's token, which replaces the one before."""
        token = JoinToken.create(self.root_sha256)
        self._store.set_operator(token.id, token.secret_sha256)
        return token

    def enrol(
        self, token_id: str, secret_sha256: str, csr_pem: bytes, instance: str = "", expected: str = ""
    ) -> Issued:
        """A leaf for the token's service, which is `expected` if that is given. ValueError for a bad request, which
        costs no use; TokenRefused; CertificateRevoked for a use that was revoked; StoreFull.
        """
        csr = checked_csr(csr_pem)
        service, enrolment = self._store.redeem(
            token_id, secret_sha256, csr.key_sha256, new_enrolment(), self._wall(), expected
        )
        return self._issue(service, csr, enrolment, token=token_id, instance=instance)

    def renew(self, service: str, serial: int, csr_pem: bytes) -> Issued:
        """A leaf for whoever has proved to be `service` with the leaf `serial`. ValueError for a bad request;
        CertificateRevoked; StoreFull; PermissionDenied for a service of the namespace `meshlib`.
        """
        if _is_own(service):
            raise PermissionDenied(f"{service} is the config service's own: its leaves are not renewed by others")
        return self._issue(service, checked_csr(csr_pem), enrolment_of(serial))

    def revoke(self, serial: int, *, seen: bool = False) -> int:
        """Revoke the enrolment that the leaf `serial` belongs to: that leaf, and every other that came, or is to come,
        from the same use of a token. The enrolment.

        ValueError for one that was never issued, unless `seen` in use, or the store is too young to know; and for one
        that this process uses itself: without it nobody would be told anything.
        """
        enrolment, now = enrolment_of(serial), self._wall()
        if enrolment == self._own_enrolment:
            raise ValueError("this is the config service's own certificate: rotate the root instead")
        unknown = seen or now < self._made_at + self._leaf_life_s
        is_one = 0 < enrolment < 1 << ENROLMENT_BITS
        if not is_one or not self._store.revoke(enrolment, now, self._leaf_life_s, unknown=unknown):
            raise ValueError(f"no certificate {serial:x} was issued, or it has ended: meshlib status shows the serials")
        if (count := self._store.revoked(now).in_all) > REVOKED_MAX:
            _log.error(
                "%d enrolments are revoked, and processes are told of the last %d: replace the root twice, so that the "
                "others end too (meshlib ca rotate --root)", count, REVOKED_MAX,
            )  # fmt: skip
        return enrolment

    def own_svid(self) -> Svid:
        """A new leaf of the config service. To be taken again at half of its life, and after a step of a rotation."""
        return self._own(CONTROL_SERVICE, self._leaf_life_s)

    def signer(self) -> Signer:
        """Who signs fragments, as long as its root lives: what a process has kept is as good as its roots. To be asked
        for whenever `own_svid` is; it is the same one until another root is the anchor.
        """
        anchor, now = self._roots.anchor, self._wall()
        known = self._signer
        if known is None or known[0] != anchor.sha256 or now < known[1]:
            svid = self._own(SIGNER_SERVICE, anchor.not_after - now)
            known = self._signer = anchor.sha256, svid.not_before, Signer(svid)
        return known[2]

    def trust_content(self, spread_s: float) -> dict[str, Any]:
        """The content of `trust`. `spread_s`: over how many seconds processes spread their renewals."""
        return {
            "bundle": self._roots.bundle_pem.decode(),
            "generation": self._roots.generation,
            "spread_s": spread_s,
            "revoked": [f"{enrolment:x}" for enrolment in self._store.revoked(self._wall()).enrolments],
        }

    def rotate_leaves(self) -> int:
        """Let every process take a new leaf. The new generation."""
        return self._stepped(lambda roots: roots.renew_leaves()).generation

    @property
    def coming(self) -> Roots | None:
        """A rotation of the root that is under way."""
        return None if self._roots.coming is None else self._roots

    def rotate_root_begin(self, force: bool = False) -> Roots:
        """Let all believe a new root that does not sign yet. Where one is coming already, it is that one.

        RotationTooSoon while leaves of the previous root may live: it would be dropped, and who slept through the last
        rotation would believe nobody any more. `force`: drop it all the same.
        """
        roots = self._roots
        ends = roots.signer.not_before + BACKDATE_S + self._leaf_life_s
        if roots.previous is not None and roots.coming is None and not force and self._wall() < ends:
            at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ends + 1.0))
            raise RotationTooSoon(
                f"the root was replaced lately, and processes that slept through it would be lost: from {at} on it may "
                'be replaced again; at once, and without those, with "force": true'
            )
        return self._stepped(lambda roots: roots.propose(self._wall(), self._root_life_s))

    def rotate_root_end(self, proposed: Roots) -> int:
        """Let the root sign that is coming in `proposed`, once everybody believes it. The generation, new unless it
        signs already.
        """
        return self._stepped(lambda roots: roots.promote(proposed)).generation

    def due(self) -> bool:
        """Take the steps that time asks for: a root that ends soon is replaced, beginning as `rotate_root_begin` does;
        one that has ended, at once. Is anything new? To be asked about every minute.
        """
        if self._due(self._roots) is self._roots:
            return False
        self._stepped(self._due)
        return True

    def _begun(self, roots: Roots | None) -> Roots:
        self.is_new = roots is None
        roots = roots or Roots.create(self.trust_domain, self._wall(), self._root_life_s)
        if (found := roots.signer.trust_domain) != self.trust_domain:
            raise ValueError(
                f"the authority in {self._authority.folder} is that of trust domain {found}, not of "
                f"{self.trust_domain}: use another state_dir, or set trust_domain back"
            )
        return self._due(roots)

    def _due(self, roots: Roots) -> Roots:
        now = self._wall()
        if roots.coming is not None and now < roots.signer.not_after:
            return roots  # how old it is says nothing of whom it was told
        return roots.due(now, self._root_life_s)

    def _issue(self, service: str, csr: Csr, enrolment: int, *, token: str = "", instance: str = "") -> Issued:
        roots, now = self._roots, self._wall()
        spiffe_id = SpiffeId.for_service(self.trust_domain, service)
        leaf_pem = roots.signer.sign(csr.public_key, spiffe_id, now=now, life_s=self._leaf_life_s, enrolment=enrolment)
        leaf = leaf_facts(leaf_pem)
        self._store.add_leaf(enrolment_of(leaf.serial), service, leaf.not_after, now, token=token, instance=instance)
        if token:
            _log.info("%s enrolled with join token %s: certificate %x", service, token, leaf.serial)
        return Issued(leaf_pem, roots.bundle_pem, roots.generation)

    def _own(self, service: str, life_s: float) -> Svid:
        spiffe_id = SpiffeId.for_service(self.trust_domain, service)
        return self._roots.anchor.issue(spiffe_id, now=self._wall(), life_s=life_s, enrolment=self._own_enrolment)

    def _stepped(self, step: Callable[[Roots], Roots]) -> Roots:
        """Take it on disk. Nobody else does so: a folder that was lost is written again from here."""
        self._roots = self._authority.step(lambda roots: step(roots or self._roots))
        return self._roots


def _is_own(service: str) -> bool:
    return service.endswith(".meshlib")
