"""What scenes act upon: every process, the files, the traffic, and the waits that measure."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .census import Census, Member, total
from .fleet import Fleet
from .shop import Shop
from .shopper import Shopper

GIVE_UP_S = 10.0
"""A promise that takes this long is broken; nobody waits longer."""
LOOK_S = 0.03


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. `rate`: calls a second. Counts are of calls; `canary`: percent of v2, step by step."""

    rate: float = 80
    steady_calls: int = 300
    split_calls: int = 400
    canary: tuple[int, ...] = (10, 50, 100, 0)
    victims: tuple[str, ...] = ("orders-1", "inventory-1")
    down_calls: int = 120
    after_calls: int = 80
    calls_min: int = 3000


@dataclass(frozen=True, slots=True)
class Scene:
    """`held`: was what was `promised` also what was `measured`? `figures`: the numbers behind the sentence."""

    name: str
    promised: str
    measured: str
    held: bool
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """What scenes act upon; `say` tells what happens now."""

    plan: Plan
    shop: Shop
    fleet: Fleet
    shopper: Shopper
    census: Census
    say: Callable[[str], None]

    @property
    def members(self) -> list[Member]:
        """Every process of the mesh."""
        return [*self.fleet.replicas, self.shopper]

    def until_in_force(self, began: float) -> float:
        """Seconds from `began` (monotonic) until every process is seen to work by the files as they are now."""
        version = self.shop.version
        return self.until_all(
            began, lambda member: total(self.census.scrape(member), "meshlib_policy_version"), version
        )

    def until_all(self, began: float, ask: Callable[[Member], float], wanted: float) -> float:
        """Seconds from `began` until `ask` has given `wanted` for every process; infinite after GIVE_UP_S."""
        waiting = self.members
        while waiting:
            waiting = [member for member in waiting if ask(member) != wanted]
            if time.monotonic() > began + GIVE_UP_S:
                return float("inf")
            if waiting:
                time.sleep(LOOK_S)
        return time.monotonic() - began

    def served(self, member: Member) -> float:
        """Requests that a process has served since it started."""
        return total(self.census.scrape(member), "meshlib_served_total")

    def serial(self, member: Member) -> str:
        """The serial number of the certificate that a process shows in a new handshake; it must verify."""
        context = ssl.create_default_context(cafile=str(self.shop.state_dir / "dev-ca" / "bundle.pem"))
        context.check_hostname = False  # a SPIFFE id is no host name
        host, _, port = member.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=GIVE_UP_S) as plain,
            context.wrap_socket(plain, server_hostname=f"{member.service}.default.shop.dev") as secure,
        ):
            certificate = secure.getpeercert()
        return str(certificate["serialNumber"]) if certificate else ""


def milliseconds(seconds: float) -> int | None:
    """Whole milliseconds; None for a wait that was given up."""
    return None if seconds == float("inf") else round(seconds * 1e3)
