"""A snapshot: one configuration in force, and the plans that were compiled from it.

Plans are compiled when a service is first called, or, for what was called under the snapshot before, when this one is
put in force; then one reference is swapped. A plan is kept by its canonical service, however its name was spelt. Where
the policy comes in parts, a name may be one of which nothing is known as yet: `ARRIVING`, which is not kept.
What plans share with the snapshot before (nodes, budgets, limits) is in `Learned`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from .compilation import compile_service
from .config.effective import effective
from .config.fields import canonical_name, is_label
from .config.model import GATEWAY
from .errors import UnknownService
from .plan import ServicePlan

if TYPE_CHECKING:
    from .config import MeshConfig
    from .config.questions import Question
    from .learned import Learned
    from .runtime import Lock

NAMES_MAX = 4096
"""Spellings of services that are kept; beyond, the oldest is looked up again when it is called."""


class Arriving:
    """There is no telling yet whether a service exists: it has been asked for."""


ARRIVING = Arriving()

SIMILAR = 0.75
"""How alike a known name must be to be suggested (difflib's ratio)."""


class Snapshot:
    """`service`: who we are, canonical. `lock` guards `learned`; `compiled()` is called, under it, after a new plan.

    `known`: the services of which it is known whether they exist; None: the configuration is the whole policy.
    `asked`: is told of what is looked up, so that it is followed. `resolve`: is told what name servers are to be asked
    because of it; None: nobody asks them, and no call waits for it. `before`: the snapshot whose plans are kept where
    nothing that they were made of has changed. `strict`, `max_request_body` (bytes): what the configuration says of
    this service as a server.
    """

    __slots__ = (
        "_asked",
        "_before",
        "_compiled",
        "_learned",
        "_lock",
        "_namespace",
        "_plans",
        "_resolve_names",
        "_resolved",
        "_service",
        "config",
        "known",
        "max_request_body",
        "strict",
        "version",
    )

    def __init__(
        self,
        config: MeshConfig,
        service: str,
        learned: Learned,
        lock: Lock,
        compiled: Callable[[], None],
        known: Collection[str] | None = None,
        asked: Callable[[Collection[str]], None] | None = None,
        before: Snapshot | None = None,
        resolve: Callable[[Collection[Question]], None] | None = None,
    ) -> None:
        self._asked, self._before, self._resolve_names = asked, before, resolve
        self.config, self.version, self.known = config, config.version_number, known
        own = effective(config, service)
        self.strict, self.max_request_body = own.mtls == "strict", own.limits.max_request_body
        self._service, self._namespace = service, service.partition(".")[2]
        self._learned, self._lock, self._compiled = learned, lock, compiled
        self._plans: dict[str, ServicePlan] = {}
        self._resolved: dict[str, ServicePlan | UnknownService] = {}

    def plan(self, given: str) -> ServicePlan | UnknownService | Arriving:
        """The plan of a service by the name that was given, or why there is none, or none yet. Any thread."""
        return self._resolved.get(given) or self._resolve(given)

    def names(self) -> list[str]:
        """The spellings that were asked for."""
        return list(self._resolved)

    def addresses(self) -> set[str]:
        """The endpoints that calls may reach under the plans so far. Under the lock."""
        return {address for plan in self._plans.values() for _, address in plan.endpoints()}

    def retain(self) -> None:
        """Let go of what was learned about anything that no plan here uses. Under the lock."""
        plans = self._plans.values()
        self._learned.retain(
            {key for plan in plans for key in plan.endpoints()}, {b for plan in plans for b in plan.budgets()}
        )

    def arriving(self, given: str) -> list[str]:
        """The services, canonical, of which it must be known whether they exist before `given` can be called."""
        if self.known is None:
            return []
        unknown = []
        for name in candidates(given, self._namespace):
            if name not in self.known:
                unknown.append(name)
            elif name in self.config.services:
                break
        return unknown

    def _resolve(self, given: str) -> ServicePlan | UnknownService | Arriving:
        with self._lock:
            known = self._resolved.get(given)
            if known is not None:
                return known
            if self._asked is not None:
                self._asked(candidates(given, self._namespace))
            if self.arriving(given):
                return ARRIVING
            service = self._canonical(given)
            if service is not None and self._awaits_names(service):
                return ARRIVING
            plan = self._unknown(given) if service is None else self._nowhere(service) or self._plan_of(service)
            if len(self._resolved) >= NAMES_MAX:
                del self._resolved[next(iter(self._resolved))]
            self._resolved[given] = plan
            return plan

    def _awaits_names(self, service: str) -> bool:
        """Ask for the names of a service and of what its routes name; is one without an endpoint until they answer?"""
        awaits = False
        if self._resolve_names is not None:
            for name in (service, *self.config.route_targets(service)):
                if questions := self.config.questions(name):
                    self._resolve_names(questions)
                    unheard = any(self.config.resolved(question) is None for question in questions)
                    awaits |= unheard and not self.config.endpoints(name)
        return awaits

    def _nowhere(self, service: str) -> UnknownService | None:
        """Why a service does not exist whose names do not."""
        config = self.config
        answers = [config.resolved(question) for question in config.questions(service)]
        if not answers or config.endpoints(service) or config.has_registry(service) or config.route_targets(service):
            return None
        if not all(answer is not None and answer.missing for answer in answers):
            return None
        names = ", ".join(map(str, config.questions(service)))
        return UnknownService(service, f"has no endpoint: there is no such name ({names})")

    def _canonical(self, given: str) -> str | None:
        if given.startswith(GATEWAY):
            return given if self.config.owner(given) is not None else None
        return self.config.canonical(given, self._namespace)

    def _plan_of(self, service: str) -> ServicePlan:
        plan = self._plans.get(service)
        if plan is None:
            plan = self._plans[service] = self._kept(service) or compile_service(
                self.config, service, self._learned, self._service
            )
            self._compiled()
        return plan

    def complete(self, compiled: Callable[[], None]) -> None:
        """What was called under the snapshot before is compiled: let go of that one. `compiled`: as from now on."""
        self._before, self._compiled = None, compiled

    def _kept(self, service: str) -> ServicePlan | None:
        """The plan of the snapshot before, where everything that it was made of is the same."""
        before = self._before
        plan = None if before is None else before._plans.get(service)
        if before is None or plan is None or before.config.defaults is not self.config.defaults:
            return None
        for name in {service, *plan.services()}:
            same = before.config.owner(name) is self.config.owner(name)
            if not same or before.config.endpoints(name) != self.config.endpoints(name):
                return None
        return plan

    def _unknown(self, given: str) -> UnknownService:
        close = difflib.get_close_matches(canonical_name(given), self.config.names(), 3, SIMILAR)
        return UnknownService(given, suggestions=[name.removesuffix(".default") for name in close])


def candidates(given: str, namespace: str) -> list[str]:
    """The services, canonical, that a name may mean for a caller of `namespace`: the first that exists is meant. None
    where it is no name of a service.
    """
    if not all(map(is_label, given.split("."))) or given.count(".") > 1:
        return []
    return [given] if "." in given else list(dict.fromkeys((f"{given}.{namespace}", canonical_name(given))))
