"""The replicas of the demo's services, on two hosts that are folders: what a host keeps, its processes share.

The first process of a service on a host enrols with the service's join token; the others there find its enrolment, and
the snapshot of the policy beside it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from pathlib import Path

from .process import LOOK_S, Process, admin_in
from .shop import Shop

HOSTS = 2
"""Replicas of a service are spread over so many hosts, in turn."""
CLOSE_WITHIN_S = 1.8
"""For all processes to end by themselves; after that they are killed. A drain without calls takes one second."""


class Replica(Process):
    """One process of a service. `admin`: host:port of its probes, once it listens. `version`: '' where there is one."""

    def __init__(self, shop: Shop, service: str, number: int, version: str = "") -> None:
        name = f"{service}-{number}"
        super().__init__(name, shop.log(name))
        self.service, self.version, self.admin = service, version, ""
        self._shop, self._port = shop, shop.free_port()
        self.state_dir = shop.folder / f"host-{1 + (number - 1) % HOSTS}"

    def move(self) -> None:
        """Start the next time on another port."""
        self._port = self._shop.free_port()

    def arguments(self) -> list[str]:
        """The application of its service."""
        return [self.service]

    def variables(self) -> dict[str, str]:
        """Who it is, where its mesh is, and where it may keep what it is given."""
        told = {
            "MESHLIB_CONFIG": str(self._shop.file),
            "MESHLIB_TOKEN_FILE": str(self._shop.token_file(self.service)),
            "MESHLIB_STATE_DIR": str(self.state_dir),
            "MESHLIB_INSTANCE": self.name,
            "PORT": str(self._port),
        }
        return {**told, **(labelled(self.version) if self.version else {})}

    def listens(self) -> bool:
        """Does its log say where it listens, and where its admin pages are?"""
        self.admin = admin_in(self.said())
        return super().listens() and bool(self.admin)


class Fleet:
    """All replicas of all services."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.replicas: list[Replica] = []

    def add(self, service: str, version: str = "") -> Replica:
        """One more replica of a service, not yet started."""
        replica = Replica(self.shop, service, 1 + len(self.of(service)), version)
        self.replicas.append(replica)
        return replica

    def of(self, service: str) -> list[Replica]:
        """The replicas of a service."""
        return [replica for replica in self.replicas if replica.service == service]

    def named(self, name: str) -> Replica:
        """The replica of this name."""
        return next(replica for replica in self.replicas if replica.name == name)

    def start(self, replicas: Iterable[Replica]) -> None:
        """Start these, and wait until all listen. DemoError."""
        started = list(replicas)
        for replica in started:
            replica.launch()
        for replica in started:
            replica.wait_listening()

    def close(self) -> None:
        """End every process: asked first, killed after `CLOSE_WITHIN_S`."""
        for replica in self.replicas:
            if replica.alive:
                replica.send(signal.SIGTERM)
        give_up = time.monotonic() + CLOSE_WITHIN_S
        while any(replica.alive for replica in self.replicas) and time.monotonic() < give_up:
            time.sleep(LOOK_S)
        for replica in self.replicas:
            replica.kill()


def labelled(version: str) -> dict[str, str]:
    """What makes a process of inventory one of this version: for the mesh, and for its own answers."""
    return {"MESHLIB_LABELS": f"version={version}", "INVENTORY_VERSION": version}


def hosts(replicas: Iterable[Replica]) -> set[Path]:
    """The hosts that these are on."""
    return {replica.state_dir for replica in replicas}
