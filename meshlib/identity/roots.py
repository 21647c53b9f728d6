"""Which root signs and which are believed, and the steps by which one replaces another. Pure.

    settled ── propose ──▶ believed, not yet signing ── promote ──▶ settled

A root is believed by all before it signs, and as long as a leaf of it may be in use. `propose` adds a root and takes
none away; `promote` makes it sign and drops what signed before the last but one. Leaves of that one are gone by then:
the `propose` in between told every process to take a new leaf. So any number of rotations may follow each other, each
may stop after any step, and whoever comes next goes on from there. The whole is one text, so a step is one write.

The root that signed before keeps its key: it is the `anchor`, which also a process believes that slept through the last
rotation. What must be believed by all, whenever they looked last, is signed by it.

Source: SPIRE's prepared and active authorities.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from .ca import BACKDATE_S, ROOT_LIFE_S, CertificateAuthority

ROOT_RENEW_S = 30 * 24 * 3600.0
"""A root with less than this left, or 30 % of its life, is replaced, in the same two steps, by whoever asks `due`."""

ROOT_DROP_S = 24 * 3600.0
"""A root that no longer signs is dropped with this left, or 10 % of its life: nothing new is signed until its end."""

PROPAGATION_S = 2.0
"""How long a new root is believed before it signs: four times what a process takes to look again (engine)."""

_WHOLE_SECOND_S = 1.0  # certificates have whole seconds, rounded down: a root may look this much older than it is


@dataclass(frozen=True, slots=True)
class Roots:
    """The roots of one trust domain. Each step gives another object with the next `generation`, or the same object.

    `coming`: believed, and the next to sign. `previous`: the root that signed before, if any, still believed.
    """

    generation: int
    signer: CertificateAuthority
    coming: CertificateAuthority | None = None
    previous: CertificateAuthority | None = None

    @classmethod
    def create(cls, trust_domain: str, now: float, life_s: float = ROOT_LIFE_S) -> Roots:
        """The first root, which signs at once: nobody believes anything yet. ValueError for a bad trust domain."""
        return cls(1, CertificateAuthority.create(trust_domain, now=now, life_s=life_s))

    @classmethod
    def load(cls, text: bytes) -> Roots:
        """What `dump` has written, or ValueError."""
        try:
            kept = json.loads(text)
            generation, coming, previous = kept["generation"], kept["coming"], kept["previous"]
            if type(generation) is not int:
                raise ValueError(f"the generation is {generation!r}, not a number")
            return cls(generation, _authority(kept["signer"]), _perhaps(coming), _perhaps(previous))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it lacks a field, or has one of another type ({error})") from None

    def dump(self) -> bytes:
        """The whole as text, with the private keys."""
        roots = {"signer": self.signer, "coming": self.coming, "previous": self.previous}
        kept = {name: root and _pair(root) for name, root in roots.items()}
        return json.dumps({"generation": self.generation, **kept}, indent=1).encode()

    @property
    def bundle_pem(self) -> bytes:
        """All that are believed: one to three certificates, the newest first."""
        return b"".join(root.certificate_pem for root in (self.coming, self.signer, self.previous) if root)

    @property
    def anchor(self) -> CertificateAuthority:
        """The root that every process believes, also one that slept through the last rotation."""
        return self.previous or self.signer

    def renew_leaves(self) -> Roots:
        """The same roots in a new generation, which tells every process to take a new leaf."""
        return replace(self, generation=self.generation + 1)

    def propose(self, now: float, life_s: float = ROOT_LIFE_S) -> Roots:
        """Believe a new root. The same object where one is coming already: two rotations at once are one."""
        if self.coming is not None:
            return self
        coming = CertificateAuthority.create(self.signer.trust_domain, now=now, life_s=life_s)
        return replace(self, generation=self.generation + 1, coming=coming)

    def promote(self, proposed: Roots) -> Roots:
        """Let the root sign that was coming in `proposed`. The same object where it no longer is: it signs already."""
        if self.coming is None or proposed.coming is None:
            return self
        if self.coming.certificate_pem != proposed.coming.certificate_pem:
            return self
        return Roots(self.generation + 1, self.coming, previous=self.signer)

    def due(self, now: float, life_s: float = ROOT_LIFE_S) -> Roots:
        """All steps that time asks for: a root that ends soon is replaced, one that is known to all begins to sign.

        And one that ends soon and does not sign is dropped. Where the signer has ended no leaf is valid, so there is
        nobody to wait for. `life_s`: of a new root.
        """
        if self.previous is not None and _ends(self.previous, now, ROOT_DROP_S, 0.1):
            return replace(self, generation=self.generation + 1, previous=None).due(now, life_s)
        if self.coming is None:
            ends_soon = _ends(self.signer, now, ROOT_RENEW_S, 0.3)
            return self.propose(now, life_s).due(now, life_s) if ends_soon else self
        known = now - self.coming.not_before >= BACKDATE_S + PROPAGATION_S + _WHOLE_SECOND_S
        return self.promote(self).due(now, life_s) if known or self.signer.not_after <= now else self


def _ends(root: CertificateAuthority, now: float, within_s: float, share: float) -> bool:
    life_s = root.not_after - root.not_before - BACKDATE_S
    return root.not_after - now < min(within_s, share * life_s)


def _perhaps(pair: dict[str, str] | None) -> CertificateAuthority | None:
    return _authority(pair) if pair else None


def _pair(authority: CertificateAuthority) -> dict[str, str]:
    return {"certificate": authority.certificate_pem.decode(), "key": authority.private_key_pem.decode()}


def _authority(pair: dict[str, str]) -> CertificateAuthority:
    return CertificateAuthority.load(pair["certificate"].encode(), pair["key"].encode())
