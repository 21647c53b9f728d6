"""The policy as it is followed: signed fragments in, from a reply or from the snapshot on disk; configurations out.

Nothing is believed that the config service's signer has not signed, under the roots that this process believes already:
so a new root comes only with the signature of an old one (F04), and neither a relay nor a disk can say anything. What
cannot be used is rejected per resource, counted, and logged once; the last good version stays (F03).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from .config.compose import compose
from .discovery.fragment import TRUST, Fragment, FragmentError, Reply, Signed, parse_fragment, peek
from .discovery.subscription import KNOWN, SUSPECTED, Subscription
from .identity.signature import Verifier
from .identity.spiffe import SpiffeId
from .identity.svid import TrustBundle

if TYPE_CHECKING:
    from .config import MeshConfig
    from .endpoint import Endpoint
    from .telemetry.metrics import Metrics

logger = logging.getLogger("meshlib.control")

SIGNER_SERVICE = "signer.meshlib"
"""Whose certificate signs fragments."""

Believe = Callable[[TrustBundle, int, float], None]


class PutInForce(Protocol):
    """Who is told of another policy."""

    def __call__(self, config: MeshConfig, known: Collection[str], *, quiet: bool) -> None:
        """`known`: services of which it is known whether they exist. `quiet`: only endpoints have changed."""


class FollowedPolicy:
    """Of one process. Used under its follower's lock. `believe`: takes roots, generation and spread of a `trust`."""

    def __init__(
        self, bootstrap: MeshConfig, own: str, source: str, metrics: Metrics, put_in_force: PutInForce, believe: Believe
    ) -> None:
        self.subscription = Subscription(bootstrap.mesh, own)
        self._bootstrap, self._source, self._metrics = bootstrap, source, metrics
        self._put_in_force, self._believe = put_in_force, believe
        self._signer = SpiffeId.for_service(bootstrap.trust_domain, SIGNER_SERVICE)
        self._policy: MeshConfig | None = None
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self._ignored: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        self._shown: set[str] = set()
        self._counted: dict[str, Any] = {}
        self.unsaved = False

    @property
    def in_force(self) -> bool:
        """Has anything been put in force?"""
        return self._policy is not None

    def verify(self, fragments: Iterable[Signed], bundle: TrustBundle) -> None:
        """FragmentError where one is not signed by the config service: then nothing of its reply is believed. Needs no
        lock, and changes nothing.
        """
        verifiers: dict[str, Verifier] = {}
        for signed in fragments:
            verifier = verifiers.get(signed.signer)
            if verifier is None:
                try:
                    chain = signed.signer.encode("ascii", "replace")
                    verifier = verifiers[signed.signer] = Verifier.of(chain, bundle, self._signer, time.time())
                except (ValueError, OSError) as error:
                    raise FragmentError(f"the signer is not the config service's: {error}") from None
            try:
                verifier.verify(signed.payload.encode("utf-8", "surrogatepass"), signed.signature)
            except ValueError as error:
                raise FragmentError(f"a fragment is not signed by the config service: {error}") from None

    def take(self, reply: Reply, now: float) -> None:
        """Take a reply that is verified, and put in force what it changes."""
        self.subscription.begin_report()
        for signed in reply.signed:
            self._take_one(signed, now, self._believe)
        self.publish(now)

    def take_snapshot(self, fragments: Iterable[Signed], bundle: TrustBundle, now: float) -> None:
        """Take what a disk has kept, before any reply; what is not signed as it should be is logged and left. It is put
        in force by `publish`, or by the first reply, with what that has newer. Of its `trust` only the revocations are
        believed: the roots of a process are those of its enrolment, which may be newer.
        """

        def believe(kept: TrustBundle, generation: int, spread_s: float) -> None:
            self._believe(replace(bundle, revoked=bundle.revoked | kept.revoked), generation, spread_s)

        for signed in fragments:
            try:
                self.verify((signed,), bundle)
            except FragmentError as error:
                logger.error("a part of the snapshot is not used: %s", error)
            else:
                self._take_one(signed, now, believe)
        self.unsaved = False

    def publish(self, now: float) -> None:
        """Put in force what has changed by what was taken, or by time alone."""
        policy = self.subscription.settle(self._composed)
        self._report_rejected()
        endpoints = self.subscription.endpoints(now)
        if policy is None and (self._policy is None or endpoints == self._endpoints):
            return
        quiet, self._policy, self._endpoints = policy is None, policy or self._policy, endpoints
        assert self._policy is not None
        self._show_versions()
        self._put_in_force(self._policy.with_registered(endpoints), self.subscription.known(), quiet=quiet)

    # Inside

    def _composed(self, defaults: Any, services: Any) -> MeshConfig:
        return compose(self._bootstrap, self._source, defaults, services)

    def _take_one(self, signed: Signed, now: float, believe: Believe) -> None:
        try:
            fragment = parse_fragment(signed)
            bundle = self._bundle_in(fragment)
        except ValueError as error:
            if (named := peek(signed)) is None:
                logger.error("a fragment of the policy is not used: %s", error)
            else:
                self.subscription.refuse(*named, str(error))
            return
        ignored = self.subscription.take(fragment, now)
        if ignored:
            self._say_ignored(fragment.resource, ignored)
            return
        self._ignored.pop(fragment.resource, None)
        self.unsaved = True
        if bundle is not None:
            believe(bundle, fragment.content.generation, fragment.content.spread_s)

    def _say_ignored(self, resource: str, why: str) -> None:
        """Once, until something else is ignored of this resource, or something taken."""
        if self._ignored.get(resource) != why and why not in (KNOWN, SUSPECTED):
            self._ignored[resource] = why
            logger.error("%s from the config service is ignored: %s", resource, why)

    def _bundle_in(self, fragment: Fragment) -> TrustBundle | None:
        """The roots in a `trust`; ValueError where they are none."""
        if fragment.resource != TRUST:
            return None
        trust = fragment.content
        return TrustBundle(self._bootstrap.trust_domain, trust.bundle_pem.encode("ascii", "replace"), trust.revoked)

    def _report_rejected(self) -> None:
        for resource, (version, why) in self.subscription.rejected.items():
            if self._counted.get(resource) != version:
                self._counted[resource] = version
                self._metrics.counter("meshlib_policy_rejected_total", {"resource": resource}).add()
                logger.error("%s is not used, the last good version stays in force:\n%s", resource, why)

    def _show_versions(self) -> None:
        self._versions = {resource: version[1] for resource, version in self.subscription.versions().items()}
        for resource in self._versions.keys() - self._shown:
            self._shown.add(resource)
            self._metrics.gauge("meshlib_policy_version", {"resource": resource}, partial(self._version, resource))

    def _version(self, resource: str) -> float:
        return self._versions.get(resource, 0)
