"""A tenacity `wait` and `stop` as the schedule of a call: `mesh.policy(schedule=…)`.

Rules of this file. tenacity is asked after a failure that the policy lets be tried again, never on a call that succeeds
(its own loop costs 12 to 78 µs there). Time and chance are ours: the RetryCallState is made with our clock, and a
random wait of tenacity's own, alone or inside wait_combine and wait_chain, runs its own formula with our `rng` in the
place of the module `random`: the same seed gives the same delays. A user's own class is called as it is; what it does
with time and chance is its own. A strategy that raises, or waits for less than nothing, is logged once and ends the
retries of that call: what the service answered is worth more to the caller than the mistake of a schedule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_chain, wait_combine

from ..call import Reply

if TYPE_CHECKING:
    from ..errors import MeshError
    from ..runtime import Rng

logger = logging.getLogger("meshlib")

_WAIT_EXCEPTION: Any = getattr(tenacity, "wait_exception", ())
"""Not in every tenacity 9."""


def schedule_of(*parts: Any) -> TenacitySchedule:
    """The schedule of a wait, a stop, or both in this order. TypeError says what is taken."""
    match parts:
        case (wait_base(), stop_base()):
            return TenacitySchedule(*parts)
        case (wait_base(),):
            return TenacitySchedule(wait=parts[0])
        case (stop_base(),):
            return TenacitySchedule(stop=parts[0])
    given = ", ".join(type(part).__name__ for part in parts)
    raise TypeError(f"schedule takes a tenacity wait, a tenacity stop, or a tuple (wait, stop), not ({given})")


class TenacitySchedule:
    """A Schedule (policy/retry.py). Without `wait` the policy's back-off waits, without `stop` only its limits end.

    What the strategies see: `attempt_number`, `seconds_since_start`, `idle_for`, `upcoming_sleep` (with a Retry-After
    in it), and `outcome`: our MeshError, or the status of a reply as a result. `start_time` is 0.0, the call's begin.
    """

    def __init__(self, wait: wait_base | None = None, stop: stop_base | None = None) -> None:
        self._wait, self._stop, self._logged = wait, stop, False
        self._owner = tenacity.Retrying(wait=wait or tenacity.wait_none(), stop=stop or tenacity.stop_never)

    def delay_s(
        self,
        number: int,
        elapsed_s: float,
        outcome: Reply | MeshError,
        rng: Rng,
        *,
        idle_s: float,
        backoff_s: float,
        asked_s: float,
    ) -> float | None:
        """See Schedule."""
        state = tenacity.RetryCallState(self._owner, None, (), {})
        state.attempt_number, state.idle_for = number, idle_s
        state.start_time, state.outcome_timestamp = 0.0, elapsed_s
        seen = outcome.status if isinstance(outcome, Reply) else outcome
        state.outcome = tenacity.Future.construct(number, seen, has_exception=seen is outcome)
        try:
            delay_s = backoff_s if self._wait is None else _wait_s(self._wait, state, rng, backoff_s)
            if not delay_s >= 0.0:
                raise ValueError(f"{self._wait!r} waits {delay_s!r} seconds")
            state.upcoming_sleep = delay_s = max(delay_s, asked_s)
            return None if self._stop is not None and self._stop(state) else delay_s
        except Exception:
            if not self._logged:
                self._logged = True
                logger.exception("the schedule of mesh.policy failed; calls under it are not retried")
            return None


def _wait_s(wait: Callable[[tenacity.RetryCallState], Any], state: Any, rng: Rng, backoff_s: float) -> float:
    """What `wait` says, by its own formula and with our chance where the formula is tenacity's."""
    formula: Any = type(wait).__call__
    if formula is wait_combine.__call__:
        parts: tuple[Any, ...] = wait.wait_funcs  # type: ignore[attr-defined]
        return float(sum(_wait_s(part, state, rng, backoff_s) for part in parts))
    if formula is wait_chain.__call__:
        strategies = wait.strategies  # type: ignore[attr-defined]
        at = min(max(state.attempt_number, 1), len(strategies))
        return _wait_s(strategies[at - 1], state, rng, backoff_s)
    if isinstance(wait, _WAIT_EXCEPTION) and not state.outcome.failed:
        return backoff_s  # its predicate takes an exception, and a reply is none
    if getattr(formula, "__module__", "") == wait_base.__module__ and "random" in formula.__code__.co_names:
        world = {**formula.__globals__, "random": _Chance(rng)}
        return float(FunctionType(formula.__code__, world, closure=formula.__closure__)(wait, state))
    return float(wait(state))


class _Chance:
    """The part of the module `random` that tenacity's formulas use, drawn from `rng` as `random.Random` would."""

    def __init__(self, rng: Rng) -> None:
        self.random = rng.random

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()
