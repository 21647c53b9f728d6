"""How a service stands on this host, by the files in the state_dir: its certificate, its roots, its snapshot.

    <state_dir>/<service>/   svid.pem, bundle.pem, snapshot.json     identity: {source: control}
    <state_dir>/dev-ca/      the local authority                     identity: {source: dev}

The files are looked at by the same code as in a process that starts, so what is wrong here would be wrong there. Nobody
is asked, and nothing is changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .bootstrap import state_dir_of
from .output import span

if TYPE_CHECKING:
    from ..config import MeshConfig
    from ..discovery.fragment import Fragment
    from ..identity.signature import Verifier
    from ..identity.spiffe import SpiffeId
    from ..identity.svid import Svid, TrustBundle

WORN_S = 3600.0
"""With less left than this, or a tenth of its life if that is less, a certificate should have been renewed long ago."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Root(NamedTuple):
    """A root that is believed: SHA-256 of its DER in hex, end in unix seconds, whether it issued our certificate."""

    sha256: str
    ends: float
    is_issuer: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What the files say of a service. `problems`: sentences, each with what to do; none: a process can start.

    `would`: how one that starts gets its certificate, where the files hold none. `snapshot_at`: unix seconds of its
    last write, 0 for none. `resources`: (resource, epoch, n) of what a process would take of it.
    """

    id: str
    source: str
    folder: Path
    would: str = ""
    svid: Svid | None = None
    bundle: TrustBundle | None = None
    snapshot_at: float = 0.0
    resources: tuple[tuple[str, str, int], ...] = ()
    problems: list[str] = field(default_factory=list)

    def roots(self) -> list[Root]:
        """Every root that is believed."""
        if self.bundle is None:
            return []
        ends = [root.not_valid_after_utc.timestamp() for root in self.bundle.roots()]
        ders = [ssl.PEM_cert_to_DER_cert(pem.decode("ascii")) for pem in _PEM.findall(self.bundle.pem)]
        issuer = _issuer(self.svid, self.bundle)
        return [Root(hashlib.sha256(der).hexdigest(), end, der == issuer) for der, end in zip(ders, ends, strict=True)]


def enrolled(state_dir: Path) -> list[str]:
    """The services that have enrolled in a state_dir, canonical."""
    from ..identity.enrolment import is_enrolled

    try:
        return sorted(folder.name for folder in state_dir.iterdir() if is_enrolled(folder))
    except OSError:
        return []


def standing_of(mesh: MeshConfig, service: str, now: float) -> Standing:
    """What the files say of `service` (`name` or `name.namespace`) at unix time `now`. ValueError for a bad name."""
    from ..config.fields import canonical_name
    from ..identity.spiffe import SpiffeId

    expected = SpiffeId.for_service(mesh.trust_domain, service)
    state_dir = state_dir_of(mesh)
    if mesh.identity.source == "dev":
        return _dev(mesh, expected, state_dir / "dev-ca")
    return _enrolled(mesh, expected, state_dir / canonical_name(service), now)


def _dev(mesh: MeshConfig, expected: SpiffeId, folder: Path) -> Standing:
    from ..identity.private_folder import read
    from ..identity.svid import TrustBundle

    standing = partial(Standing, str(expected), "dev", folder)
    try:
        bundle = TrustBundle(mesh.trust_domain, read(folder / "bundle.pem"))
    except FileNotFoundError:
        return standing("the first process makes a local authority, and takes one from it")
    except (OSError, ValueError) as error:
        return standing(problems=[str(error)])
    return standing("each process takes one from the local authority", bundle=bundle)


def _enrolled(mesh: MeshConfig, expected: SpiffeId, folder: Path, now: float) -> Standing:
    from ..identity.enrolment import Enrolment
    from ..identity.svid import enrolment_of

    standing = partial(Standing, str(expected), "control", folder)
    try:
        loaded = Enrolment(folder, mesh.trust_domain, expected).load()
    except (OSError, ValueError) as error:
        return standing(problems=[str(error)])
    if loaded is None:
        if os.path.exists(os.environ.get("MESHLIB_TOKEN_FILE", "")):
            return standing("the first process enrols with the token of MESHLIB_TOKEN_FILE")
        make = f"make a token with `meshlib token create {expected.service}`, and name its file in MESHLIB_TOKEN_FILE"
        return standing(problems=[f"it has not enrolled on this host: {make}"])
    svid, bundle = loaded
    problems = _wrong_with(svid, bundle, expected, now)
    snapshot_at, fragments = _snapshot(mesh, folder, bundle, now, problems)
    if any(enrolment_of(svid.serial) in one.content.revoked for one in fragments if one.resource == "trust"):
        problems.append(
            f"certificate {svid.serial:x} has been revoked: remove {folder}, and enrol with a new join token"
        )
    resources = tuple(sorted((one.resource, *one.version) for one in fragments))
    return standing("", svid, bundle, snapshot_at, resources, problems)


def _wrong_with(svid: Svid, bundle: TrustBundle, expected: SpiffeId, now: float) -> list[str]:
    from ..identity.svid import PeerIdentityError, verify_svid

    renew = f"a process of {expected.service} that runs renews it; where none does, the next needs a new join token"
    if now < svid.not_before:
        return [f"the certificate begins in {span(svid.not_before - now)}: set the clock of this machine"]
    if now >= svid.not_after:
        return [f"the certificate ended {span(now - svid.not_after)} ago: {renew}"]
    try:
        verify_svid(svid.chain(), {bundle.trust_domain: bundle}, now)
    except PeerIdentityError as error:
        return [f"{error.verify_message}: {renew}"]
    left = svid.not_after - now
    if left < min(WORN_S, 0.1 * (svid.not_after - svid.not_before)):
        return [f"the certificate ends in {span(left)}, and was not renewed: {renew}"]
    return []


def _snapshot(
    mesh: MeshConfig, folder: Path, bundle: TrustBundle, now: float, problems: list[str]
) -> tuple[float, list[Fragment]]:
    """When the snapshot was written, and what of it a process would take; what it would not goes to `problems`."""
    from ..discovery.fragment import parse_fragment
    from ..discovery.snapshot_file import NAME, read_snapshot

    file = folder / NAME
    if not file.exists():
        if mesh.control is None or mesh.control.fallback == "snapshot":
            problems.append(
                f"there is no snapshot in {folder}: what starts while the config service is away has no policy; a "
                "process that runs writes it"
            )
        return 0.0, []
    signed = read_snapshot(folder)
    if not signed:
        problems.append(f"{file} cannot be read as a snapshot: remove it; a process that runs writes another")
    taken, refused, verifier = [], Counter[str](), _verifiers(mesh, bundle, now)
    for one in signed:
        try:
            verifier(one.signer).verify(one.payload.encode("utf-8", "surrogatepass"), one.signature)
            taken.append(parse_fragment(one))
        except (OSError, ValueError) as error:
            refused[getattr(error, "verify_message", str(error))] += 1
    for why, count in refused.items():
        problems.append(f"a process would not use {count} of {len(signed)} parts of the snapshot: {why}")
    return file.stat().st_mtime, taken


def _verifiers(mesh: MeshConfig, bundle: TrustBundle, now: float) -> Callable[[str], Verifier]:
    """The verifier of a signer's chain, made once for each."""
    from ..followed_policy import SIGNER_SERVICE
    from ..identity.signature import Verifier
    from ..identity.spiffe import SpiffeId

    expected = SpiffeId.for_service(mesh.trust_domain, SIGNER_SERVICE)

    @cache
    def verifier(chain: str) -> Verifier:
        return Verifier.of(chain.encode("ascii", "replace"), bundle, expected, now)

    return verifier


def _issuer(svid: Svid | None, bundle: TrustBundle) -> bytes:
    """The root that issued the certificate, in DER; none: b''."""
    from ..identity.svid import issuing_root

    try:
        return b"" if svid is None else ssl.PEM_cert_to_DER_cert(issuing_root(svid, bundle).decode("ascii"))
    except ValueError:
        return b""
