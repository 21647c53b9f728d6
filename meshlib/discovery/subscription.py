"""What one process wants of the policy, what of it has arrived, and what may be put in force. Pure.

    wanted ──reply──▶ arrived ──complete?──▶ proposed ──does it compose?──▶ in force
                        │ older, foreign, unasked, suspected: ignored              │ no: rejected, with why; the last
                        ▼                                                         ▼ good version stays in force

Rules. Versions only grow within an epoch; an epoch that was left never comes back. A service goes in only when
everything that its routes name has arrived (warm swap). What cannot be used is rejected on its own; its neighbours go
in. A service that was there and is gone is believed at the second report, like endpoints (`registered`). Nothing that
has arrived is forgotten for being unused. Sources: xDS (versions, NACK per resource, warming), gRFC A46 for the mistake
of one bad resource rejecting all; FAULTS F03, F04.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from ..endpoint import Endpoint
from ..errors import ConfigError
from .fragment import DEFAULTS, TRUST, Fragment, ServiceContent, Signed, Version, endpoints_resource, service_resource
from .registered import FOREVER, Registered

C = TypeVar("C")

WANTED_MAX = 4096
"""Services that one process follows; a name beyond is not followed, and a call to it fails as unknown."""
WANTED_BYTES_MAX = 840_000
"""What the names that are followed may take of a poll, whose body may have 1 MiB; a name beyond is not followed."""
EPOCHS_MAX = 16
"""Epochs that were left and are remembered, so that they are not taken for new ones."""
REJECTED_TOLD_MAX = 256
"""Rejections told with one poll; the others are told once these are over."""
WHY_MAX = 500
"""Characters of the reason for a rejection, as it is reported to the config service."""

KNOWN = "it is known already"
SUSPECTED = "it takes away so much that it must be said twice"
"""Why a fragment is ignored, in the two cases that are nothing to complain of."""

_BYTES_OF_A_NAME = 160
_SERVICE = "service/"
_ENDPOINTS = "endpoints/"


class Subscription:
    """Of one process. `own`: its own service, canonical, whose policy always comes. Used under one lock.

    `reports` counts the replies. `rejected`: resource → (version, why).
    """

    def __init__(self, mesh: str, own: str) -> None:
        self.mesh, self.own = mesh, own
        self.wanted: dict[str, None] = {}
        self._size = 0
        self.reports = 0
        self.epoch = ""
        self.rejected: dict[str, tuple[Version, str]] = {}
        self._arrived: dict[str, Fragment] = {}
        self._in_force: dict[str, Fragment] = {}
        self._registered: dict[str, Registered] = {}
        self._unusable: dict[str, Version] = {}
        self._suspected: dict[str, int] = {}
        self._left: list[str] = []
        self._served: tuple[Fragment, Fragment] | None = None
        self._tried: frozenset[tuple[str, Version]] = frozenset()

    # What is asked for

    def want(self, services: Iterable[str]) -> bool:
        """Follow these too (canonical names). True: something is new."""
        before = len(self.wanted)
        for service in services:
            size = 3 * len(service) + _BYTES_OF_A_NAME  # in `want`, and twice in `have`
            if service in self.wanted or len(self.wanted) >= WANTED_MAX or self._size + size > WANTED_BYTES_MAX:
                continue
            self.wanted[service] = None
            self._size += size
        return len(self.wanted) > before

    def request(self) -> dict[str, Any]:
        """`want`, `have` and `rejected` of a poll."""
        have = {resource: fragment.version for resource, fragment in self._arrived.items()} | self._unusable
        told = islice(self.rejected.items(), REJECTED_TOLD_MAX)
        rejected = {name: {"version": version, "why": why[:WHY_MAX]} for name, (version, why) in told}
        return {"want": list(self.wanted), "have": have, "rejected": rejected}

    # What has arrived

    def begin_report(self) -> None:
        """A reply is taken now, fragment by fragment. What is taken before the first is what a disk has kept."""
        self.reports += 1

    def take(self, fragment: Fragment, now: float) -> str:
        """Take one whose signature is verified. '' when it is taken, else why it is ignored, as a clause."""
        resource, version = fragment.resource, fragment.version
        if fragment.mesh != self.mesh:
            return f"it is of the mesh {fragment.mesh!r}, not of {self.mesh!r}"
        known = self._arrived.get(resource)
        if known is not None and known.version == version:
            return KNOWN
        if version[0] in self._left:
            return f"it is of epoch {version[0]}, which was left"
        if known is not None and known.version[0] == version[0] and version[1] < known.version[1]:
            return f"it is version {version[1]}, older than {known.version[1]}"
        if not self._believed(fragment, known):
            return SUSPECTED
        if self.reports > 0:  # what a disk has kept may be of several epochs, and says nothing about the present one
            self._enter(version[0])
        self._arrived[resource] = fragment
        self._unusable.pop(resource, None)
        self.rejected.pop(resource, None)
        if resource.startswith(_ENDPOINTS):
            name = resource.removeprefix(_ENDPOINTS)
            self._registered.setdefault(name, Registered()).update(version[0], fragment.content or (), now)
        return ""

    def refuse(self, resource: str, version: Version, why: str) -> None:
        """A fragment that cannot be read: its version is not asked for again, and what is in force stays."""
        self._unusable[resource] = version
        self.rejected[resource] = (version, why)

    def trust(self) -> Fragment | None:
        """The newest `trust`."""
        return self._arrived.get(TRUST)

    # What is in force

    def settle(self, compose: Callable[[Mapping[str, Any], Mapping[str, Mapping[str, Any]]], C]) -> C | None:
        """What is to be in force now, made by `compose(defaults, services)`, which raises ConfigError; None: no change.

        What does not compose is rejected, and tried again when anything else has arrived. `defaults` and services of
        one edit were written for each other: `defaults` are held back while a service that is in force is rejected, and
        services that are in force while the `defaults` of their edit are. Nothing is in force before our own service.
        """
        fresh = self._fresh()
        tried = frozenset((resource, fragment.version) for resource, fragment in fresh.items())
        if not fresh or tried == self._tried:
            return None
        made: C | None = None
        while fresh:
            try:
                made = self._composed(fresh, compose)
            except ConfigError as error:
                blamed = _blamed(error, fresh)
                if not blamed:
                    made = self._one_by_one(fresh, compose)
                    break
                for resource in blamed:
                    self._reject(fresh.pop(resource), error)
                self._hold_back(fresh)
            else:
                made = self._force(fresh, made)
                break
        self._tried = frozenset((resource, fragment.version) for resource, fragment in self._fresh().items())
        return made

    def _hold_back(self, fresh: dict[str, Fragment]) -> None:
        """Take out what must not go in beside what has been rejected."""
        if DEFAULTS in fresh and any(_key(name) in self._in_force for name in self.rejected if name != DEFAULTS):
            self.rejected[DEFAULTS] = (fresh.pop(DEFAULTS).version, "held back: a service that is in force is rejected")
        if DEFAULTS in self.rejected and DEFAULTS in self._in_force:
            version = self.rejected[DEFAULTS][0]
            for resource in [r for r, f in fresh.items() if f.version == version and _key(r) in self._in_force]:
                self.rejected[resource] = (fresh.pop(resource).version, "held back: its `defaults` are not in force")

    def knows(self, service: str) -> bool:
        """Is it known whether this service exists, and what it needs to be called?"""
        return service in self._in_force

    def exists(self, service: str) -> bool:
        """Is it in force?"""
        fragment = self._in_force.get(service)
        return fragment is not None and fragment.content is not None

    def known(self) -> frozenset[str]:
        """Every service that may be called, or of which it is known that there is none."""
        return frozenset(name for name, fragment in self._in_force.items() if not self._is_for_serving(fragment))

    def endpoints(self, now: float) -> dict[str, tuple[Endpoint, ...]]:
        """Canonical service → who has registered as it."""
        return {name: registered.endpoints(now) for name, registered in self._registered.items()}

    def next_at(self) -> float:
        """When `endpoints` will change by itself, in monotonic seconds."""
        return min((registered.next_at() for registered in self._registered.values()), default=FOREVER)

    def versions(self) -> dict[str, Version]:
        """Resource → the version that is in force."""
        return {fragment.resource: fragment.version for fragment in self._kept()}

    def signed(self) -> list[Signed]:
        """What is in force, as it was signed: what a restart begins with."""
        return [fragment.signed for fragment in self._kept()]

    def _kept(self) -> list[Fragment]:
        others = [f for r, f in self._arrived.items() if r == TRUST or r.startswith(_ENDPOINTS)]
        return [*others, *self._in_force.values()]

    # Inside

    def _enter(self, epoch: str) -> None:
        if epoch != self.epoch:
            if self.epoch:
                self._left = [*self._left, self.epoch][-EPOCHS_MAX:]
            self.epoch = epoch

    def _believed(self, fragment: Fragment, known: Fragment | None) -> bool:
        resource = fragment.resource
        if resource.startswith(_ENDPOINTS):
            registered = self._registered.get(resource.removeprefix(_ENDPOINTS))
            return registered is None or registered.believes(fragment.version[0], fragment.content or (), self.reports)
        gone = fragment.content is None and known is not None and known.content is not None
        if not gone or self._suspected.get(resource, self.reports) < self.reports:
            self._suspected.pop(resource, None)
            return True
        self._suspected[resource] = self.reports
        return False

    def _fresh(self) -> dict[str, Fragment]:
        """Resources that have arrived in another version than is in force, and whose needs have all arrived."""
        if DEFAULTS not in self._arrived:
            return {}
        found = {}
        for resource in self._arrived:
            if resource == DEFAULTS or resource.startswith(_SERVICE):
                name = _key(resource)
                fragment = self._used(name)
                if self._in_force.get(name) is not fragment and (resource == DEFAULTS or self._complete(name)):
                    found[resource] = fragment
        return found

    def _used(self, name: str) -> Fragment:
        """What has arrived of a service, or of `defaults`, as this process uses it: of its own service, unless it calls
        it, without the routes, whose backends it would have to follow.
        """
        fragment = self._arrived[DEFAULTS if name == DEFAULTS else service_resource(name)]
        if not self._serves_only(name) or fragment.content is None:
            return fragment
        if self._served is None or self._served[0] is not fragment:
            policy = {field: value for field, value in fragment.content.policy.items() if field != "routes"}
            self._served = fragment, replace(fragment, content=ServiceContent(policy, ()))
        return self._served[1]

    def _is_for_serving(self, fragment: Fragment) -> bool:
        return self._served is not None and self._served[1] is fragment

    def _serves_only(self, name: str) -> bool:
        """Its own service, which it does not call. It does not follow its siblings: n replicas would cost n²."""
        return name == self.own and name not in self.wanted

    def _complete(self, service: str) -> bool:
        """Has everything arrived that a call to it may need: endpoints too, and the same of what its routes name?"""
        seen, waiting = {service}, [service]
        while waiting:
            name = waiting.pop()
            if service_resource(name) not in self._arrived:
                return False
            content = self._used(name).content
            if content is None:
                continue
            if endpoints_resource(name) not in self._arrived and not self._serves_only(name):
                return False
            waiting += [need for need in content.needs if need not in seen]
            seen.update(content.needs)
        return True

    def _composed(self, fresh: Mapping[str, Fragment], compose: Callable[..., C]) -> C:
        chosen = {**self._in_force, **{_key(resource): fragment for resource, fragment in fresh.items()}}
        defaults = chosen.pop(DEFAULTS).content if DEFAULTS in chosen else {}
        services = {name: f.content.policy for name, f in chosen.items() if isinstance(f.content, ServiceContent)}
        return compose(defaults, services)

    def _one_by_one(self, fresh: dict[str, Fragment], compose: Callable[..., C]) -> C | None:
        """What each does alone, `defaults` last; who needs another waits for the next round. The rest is rejected."""
        made, errors, progress = None, {}, True
        defaults = fresh.pop(DEFAULTS, None)
        while progress and fresh:
            progress = False
            for resource, fragment in list(fresh.items()):
                try:
                    alone = self._composed({resource: fragment}, compose)
                except ConfigError as error:
                    errors[resource] = error
                else:
                    made = self._force({resource: fresh.pop(resource)}, alone) or made
                    progress = True
        for resource, fragment in fresh.items():
            self._reject(fragment, errors[resource])
        last = {} if defaults is None else {DEFAULTS: defaults}
        self._hold_back(last)
        for fragment in last.values():
            try:
                made = self._force(last, self._composed(last, compose)) or made
            except ConfigError as error:
                self._reject(fragment, error)
        return made

    def _force(self, fresh: Mapping[str, Fragment], made: C) -> C | None:
        """These are in force by what was made of them, unless our own service is not: then nothing is."""
        own = service_resource(self.own)
        if self.own not in self._in_force and own not in fresh and own in self.rejected:
            return None
        for resource, fragment in fresh.items():
            self._in_force[_key(resource)] = fragment
            self.rejected.pop(resource, None)
        return made

    def _reject(self, fragment: Fragment, error: ConfigError) -> None:
        own = [problem for problem in error.problems if _is_at(problem.path, fragment.resource)]
        self.rejected[fragment.resource] = (fragment.version, "\n".join(map(str, own)) or str(error))


def _key(resource: str) -> str:
    return resource.removeprefix(_SERVICE)


def _blamed(error: ConfigError, fresh: Mapping[str, Fragment]) -> list[str]:
    """The fresh resources at whose fields the problems are."""
    return [name for name in fresh if any(_is_at(problem.path, name) for problem in error.problems)]


def _is_at(path: str, resource: str) -> bool:
    field = DEFAULTS if resource == DEFAULTS else f"services.{_key(resource)}"
    return path == field or path.startswith((f"{field}.", f"{field}["))
