"""What this process is to the registry, and what is to be told it next. Pure.

    idle ──serve──▶ to register ──told──▶ registered ──drain──▶ to drain ──told──▶ drained
                         ▲                    │
                         └──── forgotten ─────┘   the config service lost its memory: the process's word wins

A failure is told again after full jitter below twice as long each time, up to `CAP_S`. Source: Consul's anti-entropy
(the agent's state wins); FAULTS F04, F16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime import Rng

BASE_S, CAP_S = 0.2, 4.0
"""The first and the longest ceiling of the wait before a registration is tried again, in seconds."""
UNHEARD_S = 0.5
"""A drain that could not be told for so many seconds says that nobody listens: there is no last word then."""
DOUBLINGS_MAX = 8
"""Failures in a row beyond this make no wait longer: keeps the exponent bounded."""


class Registration:
    """`document`: what is registered: instance, address, zone, weight, labels."""

    __slots__ = ("_drains_since", "_failures", "_not_before", "_state", "document")

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}
        self._state, self._failures, self._not_before = "idle", 0, float("-inf")
        self._drains_since = float("inf")

    def serve(self, document: Mapping[str, Any]) -> None:
        """The process listens: register it, at once."""
        self.document, self._state, self._failures, self._not_before = dict(document), "to register", 0, float("-inf")

    def drain(self, now: float) -> None:
        """It is going: nobody is to be sent here any more."""
        if self._state in ("to register", "registered"):  # the one may be under way: what it does is taken back
            self._state, self._drains_since = "to drain", now
            self._failures, self._not_before = 0, float("-inf")

    def due(self, now: float) -> str:
        """What is to be told now: `register`, `drain`, or '' for nothing."""
        if self._state not in ("to register", "to drain") or now < self._not_before:
            return ""
        return self._state.removeprefix("to ")

    def told(self, what: str, document: Mapping[str, Any]) -> None:
        """`document` was told, and taken; where it is another by now, that is to be told."""
        if self._state == f"to {what}" and document["instance"] == self.document.get("instance"):
            if what == "register" and document != self.document:
                return
            self._state, self._failures = {"register": "registered", "drain": "drained"}[what], 0

    def failed(self, now: float, rng: Rng) -> None:
        """It could not be told."""
        self._failures += 1
        ceiling_s = min(CAP_S, BASE_S * 2.0 ** min(self._failures - 1, DOUBLINGS_MAX))
        self._not_before = now + rng.random() * ceiling_s

    def forgotten(self) -> None:
        """The config service does not know this instance."""
        if self._state == "registered":
            self._state = "to register"

    @property
    def serving(self) -> bool:
        """Does this process believe that it is registered?"""
        return self._state == "registered"

    def leaves_word(self, now: float) -> bool:
        """Is there anything to take back at the end, and anybody who listens?"""
        unheard = self._state == "to drain" and self._failures > 0 and now - self._drains_since > UNHEARD_S
        return self._state != "idle" and not unheard
