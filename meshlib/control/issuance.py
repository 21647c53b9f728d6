"""Who gets a certificate: join tokens, leaves, revocation, and the rotation of the roots.

1.  Every field of a leaf is decided here: the service is the token's, or the renewed leaf's; of a request only the key
    is taken (F24).
2.  A leaf is remembered before it is handed out, in the step that looks whether what it comes from was revoked.
3.  The services of the namespace `meshlib` are this service itself: no token and no renewal is ever for one of them.
4.  Workloads' leaves are signed by the root that signs, this service's own by the anchor: the root that everybody
    believes, also a process that slept through the last rotation, and whoever has a join token from before it.
5.  A root is replaced in two steps (`identity/roots`): believed by all, and only then signing.

Sources: SPIRE (join tokens, the order of a rotation); kubeadm (the root's hash in the token).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import PermissionDenied
from ..identity.ca import BACKDATE_S, LEAF_LIFE_S, ROOT_LIFE_S
from ..identity.control import Issued
from ..identity.csr import Csr, checked_csr
from ..identity.join_token import JoinToken
from ..identity.roots import Roots
from ..identity.signature import Signer
from ..identity.spiffe import SpiffeId
from ..identity.svid import Svid, leaf_facts
from .store import Certificate, Store

if TYPE_CHECKING:
    from ..identity.authority_file import AuthorityFile

CONTROL_SERVICE = "control.meshlib"
"""The config service as a service of the mesh."""

SIGNER_SERVICE = "signer.meshlib"
"""In whose name fragments are signed."""

SIGNER_LIFE_S = 7 * 86_400.0
"""Life of a signer, in seconds, or that of a leaf where that is longer: how old a snapshot may be that a process starts
with while this service is away."""

PROPAGATION_S = 90.0
"""How long a root that time has replaced is believed before it signs, in seconds: reconnects are spread over 60 s. For
one that lives for minutes a tenth of its life."""


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
        self._own_serials: dict[str, int] = {}
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

    def enrol(self, token_id: str, secret_sha256: str, csr_pem: bytes, instance: str = "") -> Issued:
        """A leaf for the token's service. ValueError for a bad request, which costs no use; TokenRefused;
        CertificateRevoked for a key of a revoked leaf; StoreFull.
        """
        csr = checked_csr(csr_pem)
        service = self._store.redeem(token_id, secret_sha256, csr.key_sha256, self._wall())
        return self._issue(service, csr, instance, None)

    def renew(self, service: str, serial: int, csr_pem: bytes) -> Issued:
        """A leaf for whoever has proved to be `service` with the leaf `serial`. ValueError for a bad request;
        CertificateRevoked; StoreFull; PermissionDenied for a service of the namespace `meshlib`.
        """
        if _is_own(service):
            raise PermissionDenied(f"{service} is the config service's own: its leaves are not renewed by others")
        return self._issue(service, checked_csr(csr_pem), "", serial)

    def revoke(self, serial: int) -> list[int]:
        """Revoke a leaf and all that were renewed from it; these serials. StoreFull; ValueError for one that this
        process uses itself: without it nobody would be told anything.
        """
        if serial in self._own_serials.values():
            raise ValueError("this is the config service's own certificate: rotate the root instead")
        return self._store.revoke(serial, self._wall())

    def own_svid(self) -> Svid:
        """A new leaf of the config service. To be taken again at half of its life, and after a step of a rotation."""
        return self._own(CONTROL_SERVICE, self._leaf_life_s)

    def signer(self) -> Signer:
        """A new signer of fragments. To be taken again whenever `own_svid` is."""
        return Signer(self._own(SIGNER_SERVICE, max(SIGNER_LIFE_S, self._leaf_life_s)))

    def trust_content(self, spread_s: float) -> dict[str, Any]:
        """The content of `trust`. `spread_s`: over how many seconds processes spread their renewals."""
        return {
            "bundle": self._roots.bundle_pem.decode(),
            "generation": self._roots.generation,
            "spread_s": spread_s,
            "revoked": [f"{serial:x}" for serial in self._store.revoked(self._wall())],
        }

    def rotate_leaves(self) -> int:
        """Let every process take a new leaf. The new generation."""
        return self._stepped(lambda roots: roots.renew_leaves()).generation

    def rotate_root_begin(self) -> Roots:
        """Let all believe a new root that does not sign yet. Where one is coming already, it is that one."""
        return self._stepped(lambda roots: roots.propose(self._wall(), self._root_life_s))

    def rotate_root_end(self, proposed: Roots) -> int:
        """Let the root sign that is coming in `proposed`, once everybody believes it. The generation, new unless it
        signs already.
        """
        return self._stepped(lambda roots: roots.promote(proposed)).generation

    def due(self) -> bool:
        """Take the steps that time asks for: a root that ends soon is replaced; a rotation that was left half way is
        ended. Is anything new? To be asked about every minute.
        """
        if self._due(self._roots) is self._roots:
            return False
        self._stepped(self._due)
        return True

    def _begun(self, roots: Roots | None) -> Roots:
        roots = roots or Roots.create(self.trust_domain, self._wall(), self._root_life_s)
        if (found := roots.signer.trust_domain) != self.trust_domain:
            raise ValueError(
                f"the authority in {self._authority.folder} is that of trust domain {found}, not of "
                f"{self.trust_domain}: use another state_dir, or set trust_domain back"
            )
        return self._due(roots)

    def _due(self, roots: Roots) -> Roots:
        now, coming = self._wall(), roots.coming
        if coming is not None:
            known_for = now - coming.not_before - BACKDATE_S
            if known_for < min(PROPAGATION_S, 0.1 * (coming.not_after - coming.not_before)):
                return roots
        return roots.due(now, self._root_life_s)

    def _issue(self, service: str, csr: Csr, instance: str, parent: int | None) -> Issued:
        roots, now = self._roots, self._wall()
        spiffe_id = SpiffeId.for_service(self.trust_domain, service)
        leaf_pem = roots.signer.sign(csr.public_key, spiffe_id, now=now, life_s=self._leaf_life_s)
        leaf = leaf_facts(leaf_pem)
        certificate = Certificate(leaf.serial, service, instance, parent, csr.key_sha256, leaf.not_after)
        self._store.add_certificate(certificate, now)
        return Issued(leaf_pem, roots.bundle_pem, roots.generation)

    def _own(self, service: str, life_s: float) -> Svid:
        spiffe_id = SpiffeId.for_service(self.trust_domain, service)
        svid = self._roots.anchor.issue(spiffe_id, now=self._wall(), life_s=life_s)
        self._own_serials[service] = svid.serial
        return svid

    def _stepped(self, step: Callable[[Roots], Roots]) -> Roots:
        """Take it on disk. Nobody else does so: a folder that was lost is written again from here."""
        self._roots = self._authority.step(lambda roots: step(roots or self._roots))
        return self._roots


def _is_own(service: str) -> bool:
    return service.endswith(".meshlib")
