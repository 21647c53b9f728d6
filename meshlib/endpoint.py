"""An endpoint: one address of one service, as discovery reports it. Frozen; what is learned lives in a Node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`host` is a name or an IP literal without brackets; `weight` ≥ 1 is its share; `labels` select subsets.

    `priority` ≥ 0: it is called only while none of a lower number can be (RFC 2782).
    `absent`: its lease has ended. It may have gone, or only its way to the config service: it is used while it answers.
    """

    host: str
    port: int
    zone: str = ""
    weight: int = 1
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)
    absent: bool = False
    priority: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Endpoint, (self.host, self.port, self.zone, self.weight, dict(self.labels), self.absent, self.priority)

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 literal: the key under which learned state survives an update."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def has(self, labels: Mapping[str, str]) -> bool:
        """Does it carry all of `labels`? An empty selector selects everything."""
        return all(self.labels.get(name) == value for name, value in labels.items())
