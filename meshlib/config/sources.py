"""The endpoints of a service from its sources: those that are written, and those that are learned as time goes by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from meshlib.endpoint import Endpoint

from .endpoints import Source, parse_address
from .questions import Question, Resolved


class Registered(Enum):
    """The place of what is registered with the config service."""

    REGISTERED = 0


REGISTERED = Registered.REGISTERED


@dataclass(frozen=True, slots=True)
class Named:
    """The place of what a name server answers, and what is known about each of those endpoints beforehand."""

    question: Question
    zone: str = ""
    weight: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)

    def endpoints(self, resolved: Resolved | None) -> tuple[Endpoint, ...]:
        """Those of an answer. A `weight` of 0 leaves that of the answer."""
        found = () if resolved is None else resolved.endpoints
        return tuple(
            replace(each, zone=self.zone, weight=self.weight or each.weight, labels=self.labels) for each in found
        )


Part = tuple[Endpoint, ...] | Registered | Named


def part_of(source: Source, written: tuple[Endpoint, ...]) -> Part:
    """What a source is a place for; `written`: the endpoints that it has itself."""
    if source.registry is not None:
        return REGISTERED
    if source.dns is not None:
        entry, (host, port) = source.dns, parse_address(source.dns.address)
        return Named(Question("dns", host, port), entry.zone, entry.weight, entry.labels)
    if source.srv is not None:
        return Named(Question("srv", source.srv.name), source.srv.zone, 0, source.srv.labels)
    return written


def assembled(
    parts: Sequence[Part], registered: Iterable[Endpoint], resolved: Mapping[Question, Resolved]
) -> tuple[Endpoint, ...]:
    """All endpoints in the order of the sources; an address that several have counts once: the first."""
    found: dict[tuple[str, int], Endpoint] = {}
    for part in parts:
        if isinstance(part, Named):
            endpoints: Iterable[Endpoint] = part.endpoints(resolved.get(part.question))
        else:
            endpoints = registered if part is REGISTERED else part
        for endpoint in endpoints:
            found.setdefault((endpoint.host, endpoint.port), endpoint)
    return tuple(found.values())
