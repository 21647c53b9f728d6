"""Backoff between attempts: full jitter, also at the cap, so that clients that fail together do not return together.

The n-th retry waits somewhere in [0, min((2ⁿ - 1) × base, cap)) seconds. Source: Envoy's router filter (base 25 ms, cap
10 × base), whose vectors it passes; AWS "Exponential Backoff And Jitter" for why full jitter.
`steady_s` is gRPC's, for policies with a multiplier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runtime import Rng

EXPONENT_MAX = 32
"""Retries beyond this wait no longer."""
SPREAD = 0.2
"""How much of a steady wait it may be longer or shorter (gRFC A6)."""


def ceiling_s(retry: int, base_s: float, cap_s: float) -> float:
    """The longest wait before the `retry`-th retry (from 1), in seconds."""
    return min(cap_s, (2.0 ** min(retry, EXPONENT_MAX) - 1.0) * base_s)


def backoff_s(retry: int, base_s: float, cap_s: float, rng: Rng) -> float:
    """The wait before the `retry`-th retry (from 1), in seconds."""
    return rng.random() * ceiling_s(retry, base_s, cap_s)


def steady_s(retry: int, base_s: float, cap_s: float, multiplier: float, rng: Rng) -> float:
    """The wait before the `retry`-th retry (from 1), in seconds, as gRFC A6 has it: base × multiplierⁿ⁻¹ up to the cap,
    give or take SPREAD.
    """
    wait_s = min(cap_s, base_s * multiplier ** (min(retry, EXPONENT_MAX) - 1))
    return wait_s * (1.0 - SPREAD + 2.0 * SPREAD * rng.random())
