"""tenacity's strategies as a call's schedule: what each decides, what it may not widen, whose clock and chance it has."""

from __future__ import annotations

import datetime as dt
import itertools
import logging
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import tenacity as t
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from meshlib import Mesh
from meshlib.call import Call, Reply
from meshlib.call_policy import POLICY
from meshlib.errors import TransportError
from meshlib.interop.tenacity import schedule_of
from meshlib.policy.budget import RetryBudget
from meshlib.policy.retry import Retry, RetryPolicy
from meshlib.runtime.simulation import SimulationRuntime

SEED = 11
ROOT = Path(__file__).resolve().parents[2]
SECONDS = dt.timedelta(seconds=2)


def broke() -> TransportError:
    return TransportError("reset", phase="read", cause="reset")


def delays(schedule, outcome, attempts=6, seed=SEED):
    """What a schedule says after each of the first attempts, one second apart; attempts take no time."""
    rng = random.Random(seed)
    return [
        schedule.delay_s(number, number - 1.0, outcome, rng, idle_s=number - 1.0, backoff_s=0.125, asked_s=0.0)
        for number in range(1, attempts + 1)
    ]


def waits_of_tenacity(wait, outcome, attempts=6):
    """The same from tenacity itself, its global chance seeded alike."""
    state = t.RetryCallState(t.Retrying(), None, (), {})
    state.start_time = 0.0
    before = random.getstate()
    random.seed(SEED)
    try:
        said = []
        for number in range(1, attempts + 1):
            state.attempt_number, state.outcome_timestamp, state.idle_for = number, number - 1.0, number - 1.0
            failed = isinstance(outcome, Exception)
            state.outcome = t.Future.construct(number, outcome if failed else outcome.status, failed)
            said.append(float(wait(state)))
        return said
    finally:
        random.setstate(before)


class ByOutcome(wait_base):
    """A user's own class."""

    def __call__(self, retry_state):
        return 3.0 if retry_state.outcome.failed else retry_state.outcome.result() / 1000


class Subclass(t.wait_random):
    """tenacity's formula, inherited: it gets our chance too."""


WAITS = {
    "fixed": t.wait_fixed(SECONDS),
    "none": t.wait_none(),
    "incrementing": t.wait_incrementing(start=1, increment=2, max=6),
    "exponential": t.wait_exponential(multiplier=0.5, max=4, min=1),
    "random": t.wait_random(1, 3),
    "random exponential": t.wait_random_exponential(multiplier=0.5, max=4, min=0.25),
    "full jitter": t.wait_full_jitter(multiplier=0.5, max=4),
    "exponential jitter": t.wait_exponential_jitter(max=5, jitter=2),
    "combined": t.wait_fixed(1) + t.wait_random(0, 2) + t.wait_exponential(multiplier=0.1),
    "combined with a function": t.wait_random(0, 1) + t.wait_combine(lambda state: state.attempt_number, t.wait_none()),
    "summed": sum([t.wait_random(0, 1), t.wait_random(0, 2)]),
    "chained": t.wait_chain(t.wait_fixed(1), t.wait_random(2, 3), t.wait_fixed(4) + t.wait_random(0, 1)),
    "chain of chains": t.wait_chain(t.wait_chain(t.wait_random(0, 1)), t.wait_random_exponential(max=9)),
    "a subclass": Subclass(0, 2),
    "a class of one's own": ByOutcome(),
}
CHANCE = {"random", "random exponential", "full jitter", "exponential jitter", "combined", "combined with a function",
          "summed", "chained", "chain of chains", "a subclass"}  # fmt: skip


def test_the_table_has_every_wait_of_tenacity():
    """But wait_exception, which has a test of its own, and the base."""
    used = {type(wait) for wait in WAITS.values()}
    public = {kind for kind in vars(t.wait).values() if isinstance(kind, type) and issubclass(kind, wait_base)}
    assert public - used <= {wait_base, t.wait_exception}


@pytest.mark.parametrize("outcome", [broke(), Reply(503, [])], ids=["error", "reply"])
@pytest.mark.parametrize("name", WAITS)
def test_each_wait_says_what_tenacity_says(name, outcome):
    """Number by number, with our chance seeded as tenacity's; the global chance is not touched."""
    expected = waits_of_tenacity(WAITS[name], outcome)
    before = random.getstate()
    assert delays(schedule_of(WAITS[name]), outcome) == expected
    assert random.getstate() == before


@pytest.mark.parametrize("name", WAITS)
def test_the_same_seed_gives_the_same_delays(name):
    """And another seed others, exactly where there is chance."""
    print(f"seed {SEED}")
    first, again, other = (delays(schedule_of(WAITS[name]), broke(), seed=seed) for seed in (SEED, SEED, SEED + 1))
    assert first == again
    assert (first != other) is (name in CHANCE)


def test_wait_exception_is_asked_about_errors_only():
    """A reply is none: there the policy's own back-off waits."""
    schedule = schedule_of(t.wait_exception(lambda error: 2.0 if isinstance(error, TransportError) else 9.0))
    assert delays(schedule, broke(), 2) == [2.0, 2.0]
    assert delays(schedule, Reply(503, []), 2) == [0.125, 0.125]


EVENT = threading.Event()
STOPS = {
    "never": (t.stop_never, 6),
    "after attempt": (t.stop_after_attempt(3), 2),
    "after delay": (t.stop_after_delay(SECONDS), 2),
    "before delay": (t.stop_before_delay(2.1), 2),
    "event": (t.stop_when_event_set(EVENT), 6),
    "any": (t.stop_after_attempt(5) | t.stop_after_delay(3), 3),
    "all": (t.stop_after_attempt(2) & t.stop_after_delay(3), 3),
}


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("wait", [None, t.wait_fixed(0.25)])
def test_each_stop_ends_where_tenacity_would(name, wait):
    """One second passes per attempt; without a wait the policy's back-off (0.125 s) is what stop_before_delay adds."""
    stop, tries = STOPS[name]
    schedule = schedule_of(stop) if wait is None else schedule_of(wait, stop)
    said = delays(schedule, broke())
    assert said[:tries] == [0.125 if wait is None else 0.25] * tries
    assert set(said[tries:]) <= {None}
    public = {kind for kind in vars(t.stop).values() if isinstance(kind, type) and issubclass(kind, stop_base)}
    assert public - {type(stop) for stop, _ in STOPS.values()} <= {stop_base}


def test_an_event_stops_at_once():
    """stop_when_event_set, once it is set."""
    EVENT.set()
    try:
        assert delays(schedule_of(t.stop_when_event_set(EVENT)), broke(), 1) == [None]
    finally:
        EVENT.clear()


class Witness(wait_base):
    """Keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, retry_state):
        outcome = retry_state.outcome
        self.seen.append(
            (retry_state.attempt_number, retry_state.seconds_since_start, retry_state.idle_for,
             outcome.exception() if outcome.failed else outcome.result())
        )  # fmt: skip
        return 0.5


def retried(*outcomes, schedule, policy=None, deadline=100.0, budget=None, **call):
    """(reply or error, when each attempt began, the call) of a Retry over scripted outcomes; an attempt takes 1 s."""
    runtime, begun, script = SimulationRuntime(SEED), [], list(outcomes)

    async def service(_call):
        begun.append(runtime.now())
        await runtime.sleep(1.0)
        outcome = script.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    retry = Retry(
        policy or RetryPolicy(max_retries=3), budget or RetryBudget(), runtime.lock(), runtime, lambda: 1559559600.0
    )
    asked = Call("svc", "GET", b"/", **{"idempotent": True, "schedule": schedule, **call})
    asked.deadline = asked.attempt_deadline = deadline

    async def ask():
        try:
            return await retry(asked, service)
        except TransportError as error:
            return error

    return runtime.run(ask()), begun, asked


def test_a_strategy_sees_the_call_on_our_clock():
    """Virtual seconds: attempts of 1 s, waits of 0.5 s; an error as the exception, a reply's status as the result."""
    error, witness = broke(), Witness()
    _, begun, _ = retried(error, Reply(503, []), Reply(200, []), schedule=schedule_of(witness))
    assert begun == [0.0, 1.5, 3.0]
    assert witness.seen == [(1, 1.0, 0.0, error), (2, 2.5, 0.5, 503)]


def test_it_is_asked_only_about_what_may_be_tried_again():
    """A success, a final error, a call that is not idempotent, the last try: it hears of none."""
    never = schedule_of(witness := Witness())
    retried(Reply(200, []), schedule=never)
    retried(Reply(500, []), schedule=never)
    retried(broke(), schedule=never, idempotent=False)
    retried(broke(), schedule=never, policy=RetryPolicy(max_retries=0))
    assert witness.seen == []


def test_a_schedule_can_only_narrow():
    """Retries, ceiling, budget, deadline, Retry-After: each stays, whatever the schedule would do."""
    eager = schedule_of(t.wait_none(), t.stop_never)
    failures = [broke() for _ in range(20)]
    assert len(retried(*failures, schedule=eager, policy=RetryPolicy(max_retries=1))[1]) == 2
    assert len(retried(*failures, schedule=eager, max_retries=10, policy=RetryPolicy(retries_ceiling=3))[1]) == 4
    assert len(retried(*failures, schedule=eager, deadline=2.5)[1]) == 3
    poor = RetryBudget(0.0, 0.0)
    _, begun, call = retried(*failures, schedule=eager, budget=poor)
    assert (len(begun), call.trail.notes) == (1, ["not retried: the retry budget is empty"])
    patient = Reply(503, [(b"retry-after", b"7")])
    assert retried(patient, Reply(200, []), schedule=eager)[1] == [0.0, 8.0]
    assert len(retried(patient, schedule=schedule_of(t.wait_none(), t.stop_before_delay(5)))[1]) == 1


def test_a_retry_after_is_kept_to_whatever_a_schedule_returns():
    """The filter holds it, not the adapter's good will."""

    class Hasty:
        def delay_s(self, *_seen, **_more):
            return 0.0

    assert retried(Reply(503, [(b"retry-after", b"7")]), Reply(200, []), schedule=Hasty())[1] == [0.0, 8.0]


def test_where_the_schedule_ends_the_trail_says_so():
    """And the last outcome is what the caller gets."""
    last = broke()
    outcome, begun, call = retried(broke(), last, schedule=schedule_of(t.wait_none(), t.stop_after_attempt(2)))
    assert (outcome, len(begun)) == (last, 2)
    assert call.trail.notes == ["not retried: the schedule of this call ends here"]


@pytest.mark.parametrize(
    "wait",
    [
        t.wait_fixed(-1),
        t.wait_fixed(float("nan")),
        t.wait_exception(lambda error: 1 / 0),
        ByOutcome() + (lambda _: "x"),
    ],
)
def test_a_mistake_of_a_strategy_ends_the_retries_and_is_logged_once(wait, caplog):
    """The caller gets what the service answered, not the strategy's mistake."""
    schedule, error = schedule_of(wait), broke()
    with caplog.at_level(logging.ERROR, "meshlib"):
        for _ in range(3):
            assert retried(error, schedule=schedule)[0] is error
    assert [record.getMessage() for record in caplog.records] == [
        "the schedule of mesh.policy failed; calls under it are not retried"
    ]


def test_an_endless_wait_is_refused_by_the_deadline():
    """Infinity is a number of seconds, later than every deadline."""
    _, begun, call = retried(broke(), schedule=schedule_of(t.wait_fixed(float("inf"))))
    assert (len(begun), call.trail.notes) == (1, ["not retried: the deadline leaves no time for another attempt"])


def test_a_policy_carries_it_to_the_call():
    """An inner one wins, an inner policy without one keeps it; each part and the pair are taken."""
    mesh, stop = Mesh("orders"), t.stop_after_attempt(2)
    with mesh.policy(schedule=stop):
        outer = POLICY.get().schedule
        with mesh.policy(timeout=1.0):
            assert POLICY.get().schedule is outer
        with mesh.policy(schedule=(t.wait_none(), stop)):
            assert POLICY.get().schedule is not outer
        with mesh.policy(schedule=t.wait_none() + t.wait_random()):
            pass
    assert POLICY.get() is None


@pytest.mark.parametrize(
    "given",
    [3, "1s", (), (1, 2), t.retry_always, (t.stop_never, t.wait_none()), (t.wait_none(),) * 2, t.Retrying(),
     (t.wait_none(), t.stop_never, t.stop_never), [t.wait_none()], lambda state: 1.0, t.wait_none, (t.wait_none(), None)],
)  # fmt: skip
def test_anything_else_is_refused_with_what_is_taken(given):
    """TypeError where the policy is made, also for tenacity's other objects."""
    with pytest.raises(TypeError, match=r"schedule takes a tenacity wait, a tenacity stop, or a tuple \(wait, stop\)"):
        Mesh("orders").policy(schedule=given)


def test_nobody_who_does_not_ask_imports_it():
    """Neither library, with a mesh in use and a schedule refused."""
    script = (
        "import sys\n"
        "from meshlib.testing import FakeMesh\n"
        "mesh = FakeMesh({'version': 1, 'mesh': 'shop', 'services': {'inventory': {}}})\n"
        "mesh.service('inventory').reply(status=503)\n"
        "with mesh.policy(max_retries=2):\n"
        "    mesh.sync_client('inventory').get('/')\n"
        "try:\n"
        "    mesh.policy(schedule=1)\n"
        "except TypeError:\n"
        "    print([name for name in sys.modules if 'tenacity' in name or 'pybreaker' in name])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_deprecated_ways_to_say_it_are_the_same_object():
    """`initial=` of wait_exponential_jitter, which tenacity warns about when it is made, not when it is asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wait = t.wait_exponential_jitter(initial=2, max=50, jitter=1)
    said = delays(schedule_of(wait), broke(), 3)
    assert all(2.0 * 2**n <= delay < 2.0 * 2**n + 1 for n, delay in enumerate(said))
    assert said == sorted(said)
    assert len({b - a for a, b in itertools.pairwise(said)}) == 2
