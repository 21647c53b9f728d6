"""What scenes act upon: every process, the files, the traffic, and the waits that measure."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from meshlib.identity.ca import BACKDATE_S

from .census import Census, Member, total
from .config_service import ConfigService
from .fleet import Fleet
from .shop import TRUST_DOMAIN, Shop
from .shopper import Shopper

GIVE_UP_S = 10.0
"""A promise that takes this long is broken; nobody waits longer."""
LOOK_S = 0.03
IN_FORCE_S = 1.0
"""Promised: from the edit of mesh.yaml until every process that follows the edited service works by it."""
SIGMAS = 3.0
EDITED = "inventory"
"""The service whose policy the scenes edit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. `rate`: calls a second. Counts are of calls; `canary`: percent of v2, step by step."""

    rate: float = 130
    steady_calls: int = 400
    split_calls: int = 400
    canary: tuple[int, ...] = (10, 50, 100, 0)
    victims: tuple[str, ...] = ("orders-1", "inventory-1", "prices-1")
    down_calls: int = 150
    after_calls: int = 100
    calls_min: int = 5000


@dataclass(frozen=True, slots=True)
class Scene:
    """`held`: was what was `promised` also what was `measured`? `figures`: the numbers behind the sentence."""

    name: str
    promised: str
    measured: str
    held: bool
    figures: dict[str, Any] = field(default_factory=dict)


class Leaf(NamedTuple):
    """The certificate that a process shows: its serial number, and when it was issued, in whole unix seconds."""

    serial: str
    issued: float


@dataclass(frozen=True, slots=True)
class Stage:
    """What scenes act upon; `say` tells what happens now."""

    plan: Plan
    shop: Shop
    control: ConfigService
    fleet: Fleet
    shopper: Shopper
    census: Census
    say: Callable[[str], None]

    @property
    def members(self) -> list[Member]:
        """Every process of the mesh, but the config service."""
        return [*self.fleet.replicas, self.shopper]

    def until(self, began: float, reached: Callable[[], bool]) -> float:
        """Seconds from `began` (monotonic) until it is seen to be so; infinite after GIVE_UP_S."""
        while not reached():
            if time.monotonic() > began + GIVE_UP_S:
                return float("inf")
            time.sleep(LOOK_S)
        return time.monotonic() - began

    def until_all(self, began: float, ask: Callable[[Member], bool]) -> float:
        """The same, until `ask` has been true for every process."""
        waiting = self.members

        def reached() -> bool:
            waiting[:] = [member for member in waiting if not ask(member)]
            return not waiting

        return self.until(began, reached)

    def edit(self, v2: int) -> float:
        """Edit mesh.yaml: v2 of inventory gets so many percent. Seconds until that is in force in every process that
        follows inventory: each then shows the version that the config service has published.
        """
        return self.in_force(EDITED, lambda: self.shop.write_mesh(str(100 - v2), str(v2)))

    def in_force(self, service: str, write: Callable[[], None]) -> float:
        """The same of any edit that changes the policy of one service."""
        before, began = self.control.version(service), time.monotonic()
        write()
        published = self.until(began, lambda: self.control.version(service) != before)
        if published == float("inf"):
            return published
        version = self.control.version(service)
        return self.until_all(began, lambda member: self.version(member, service) in (None, version))

    def version(self, member: Member, service: str = EDITED) -> int | None:
        """The version of a service's policy that a process works by; None where it does not follow that service."""
        shown = self.census.scrape(member).get("meshlib_policy_version", ())
        return next((int(value) for labels, value in shown if labels["resource"] == f"service/{service}.default"), None)

    def versions(self) -> list[int]:
        """The same, of all that follow it."""
        return [version for member in self.members if (version := self.version(member)) is not None]

    def served(self, member: Member) -> float:
        """Requests that a process has served since it started."""
        return total(self.census.scrape(member), "meshlib_served_total")

    def leaf(self, member: Member) -> Leaf:
        """The certificate that a process shows in a new handshake; it must verify."""
        context = ssl.create_default_context(cafile=str(self.shop.state_dir / "control" / "ca" / "bundle.pem"))
        context.check_hostname = False  # a SPIFFE id is no host name
        host, _, port = member.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=GIVE_UP_S) as plain,
            context.wrap_socket(plain, server_hostname=f"{member.service}.default.{TRUST_DOMAIN}") as secure,
        ):
            shown: Any = secure.getpeercert()  # not None: it was verified
        return Leaf(shown["serialNumber"], ssl.cert_time_to_seconds(shown["notBefore"]) + BACKDATE_S)


def sigmas_off(seen: int, of: int, share: float) -> float:
    """How many standard deviations of a binomial `seen` of `of` is from `share`; infinite where there is none."""
    off = abs(seen - of * share)
    sigma = (of * share * (1 - share)) ** 0.5
    return off / sigma if sigma else 0.0 if off == 0 else float("inf")


def milliseconds(seconds: float) -> int | None:
    """Whole milliseconds; None for a wait that was given up."""
    return None if seconds == float("inf") else round(seconds * 1e3)


def said(seconds: float, reached: str, never: str) -> str:
    """What was `reached`, and after how long; `never` for a wait that was given up."""
    return never if seconds == float("inf") else f"{reached} {seconds * 1e3:.0f} ms"
