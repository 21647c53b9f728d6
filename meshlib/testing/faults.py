"""Injected faults: a share of the attempts to a service that goes wrong, by the seed of the mesh.

A fault sits on the wire, in front of the fake service: retries, budget, breaker and ejection see it as they would see
the real one. (Envoy injects above its router, where retries do not.) What was aborted or refused never arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ..runtime import Rng


class Fault:
    """In force from its making to `remove()`, or to the end of its `with` block; made by `FakeMesh.fault`.

    `abort`: a status from 400 to 599. `delay`: seconds > 0, before whatever comes next. `refuse`: no connection.
    `percent`: share of the attempts, above 0, up to 100. `injected` counts them. ValueError: out of range, or no
    effect, or both `abort` and `refuse`.
    """

    def __init__(
        self, abort: int | None, delay: float, refuse: bool, percent: float, remove: Callable[[Fault], None]
    ) -> None:
        if abort is not None and not 400 <= abort <= 599:
            raise ValueError(f"abort must be a status from 400 to 599, got {abort!r}")
        if not 0 <= delay < float("inf"):
            raise ValueError(f"delay must be a positive number of seconds, got {delay!r}")
        if not 0 < percent <= 100:
            raise ValueError(f"percent must be above 0 and at most 100, got {percent!r}")
        if (abort is not None and refuse) or not (abort or delay or refuse):
            raise ValueError("a fault has an effect: abort=STATUS or refuse=True, and delay=SECONDS")
        self.abort, self.delay_s, self.refuse, self.percent = abort, delay, refuse, percent
        self.injected = 0
        self._remove = remove

    def strikes(self, rng: Rng) -> bool:
        """Does it hit the attempt that is being made? Counted when it does."""
        hit = rng.random() * 100 < self.percent
        self.injected += hit
        return hit

    def remove(self) -> None:
        """It is over. Idempotent."""
        self._remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remove()
