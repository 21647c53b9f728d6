"""Retries: the whole decision as a table, then the filter: delay, budget, deadline, trail, what the caller hears."""

from __future__ import annotations

import itertools

import pytest

from meshlib.call import Call, Reply
from meshlib.errors import (
    DeadlineExceeded,
    IdentityError,
    MeshError,
    NoHealthyEndpoint,
    PermissionDenied,
    Rejected,
    TransportError,
    UnknownService,
)
from meshlib.policy.budget import RetryBudget
from meshlib.policy.retry import IDEMPOTENT_METHODS, Retry, RetryPolicy
from meshlib.runtime.simulation import SimulationRuntime
from meshlib.served import Served

POLICIES = {
    "default": RetryPolicy(),
    "connect": RetryPolicy(on_reset=False, statuses=frozenset()),
    "reset": RetryPolicy(on_connect=False, statuses=frozenset()),
    "statuses": RetryPolicy(on_connect=False, on_reset=False, statuses=frozenset((502, 503))),
    "nothing": RetryPolicy(on_connect=False, on_reset=False, statuses=frozenset()),
}


def broke(cause: str, phase: str = "read", *, sent: bool = True) -> TransportError:
    return TransportError(cause, phase=phase, cause=cause, sent=sent)


def timed_out(phase: str, *, sent: bool, total: bool = False) -> DeadlineExceeded:
    return DeadlineExceeded(phase, phase=phase, sent=sent, total=total)


def reply(status: int, *headers: bytes) -> Reply:
    return Reply(status, [(name, b"1") for name in headers])


# name: (outcome, which retry_on names it, did a byte of the request leave, may it be retried at all)
OUTCOMES: dict[str, tuple[Reply | MeshError, str, bool, bool]] = {
    "200": (reply(200), "", True, False),
    "404": (reply(404), "", True, False),
    "500": (reply(500), "", True, False),
    "502": (reply(502), "502", True, True),
    "503": (reply(503), "503", True, True),
    "503 refused by the mesh": (reply(503, b"X-Meshlib-Refused"), "503", False, True),
    "503 told not to": (reply(503, b"x-meshlib-no-retry"), "503", True, False),
    "503 refused and told not to": (reply(503, b"x-meshlib-refused", b"x-meshlib-no-retry"), "503", False, False),
    "refused": (broke("refused", "connect", sent=False), "connect", False, True),
    "handshake reset": (broke("reset", "connect", sent=False), "connect", False, True),
    "stale connection": (broke("closed", "write", sent=False), "connect", False, True),
    "reset": (broke("reset"), "reset", True, True),
    "closed": (broke("closed"), "reset", True, True),
    "protocol": (broke("protocol"), "reset", True, True),
    "too large": (broke("too_large"), "", True, False),
    "decode": (broke("decode"), "", True, False),
    "local": (broke("local", "write", sent=False), "", False, False),
    "identity": (IdentityError("who?"), "connect", False, True),
    "attempt: pool": (timed_out("pool", sent=False), "connect", False, True),
    "attempt: connect": (timed_out("connect", sent=False), "connect", False, True),
    "attempt: write": (timed_out("write", sent=True), "reset", True, True),
    "attempt: read": (timed_out("read", sent=True), "reset", True, True),
    "deadline": (timed_out("read", sent=True, total=True), "", True, False),
    "deadline unsent": (timed_out("pool", sent=False, total=True), "", False, False),
    "no endpoint": (NoHealthyEndpoint("svc", {}), "", False, False),
    "limit": (Rejected("limit", "full"), "", False, False),
    "denied": (PermissionDenied("no"), "", False, False),
    "unknown": (UnknownService("svc"), "", False, False),
}


class Streamed:
    framed = True

    def pieces(self):
        return iter(())


def expected(name: str, policy: RetryPolicy, idempotent: bool, attempt: int, streamed: bool) -> bool:
    """The rules of the module's docstring, said a second time and differently."""
    outcome, named, sent, possible = OUTCOMES[name]
    wanted = {"connect": policy.on_connect, "reset": policy.on_reset}.get(
        named, named.isdigit() and int(named) in policy.statuses
    )
    if not (possible and wanted):
        return False
    gone = streamed and (sent or isinstance(outcome, Reply))
    return not gone and (not sent or (idempotent and attempt == 1))


@pytest.mark.parametrize("name", OUTCOMES)
@pytest.mark.parametrize("retry_on", POLICIES)
def test_the_whole_decision(name, retry_on):
    """Every outcome × retry_on × idempotent × attempt being served × body: retried exactly when the rules say so."""
    policy, outcome = POLICIES[retry_on], OUTCOMES[name][0]
    for idempotent, attempt, streamed in itertools.product((False, True), (0, 1, 2), (False, True)):
        served = Served(lambda: 0.0, attempt=attempt) if attempt else None
        body = Streamed() if streamed else b"x"
        call = Call("svc", "POST", b"/", body=body, idempotent=idempotent, served=served)
        refusal = policy.refusal(call, outcome)
        assert (refusal is None) is expected(name, policy, idempotent, max(attempt, 1), streamed), (
            f"idempotent={idempotent} attempt={attempt} streamed={streamed}: {refusal!r}"
        )


@pytest.mark.parametrize(
    ("outcome", "call", "sentence"),
    [
        ("200", {}, ""),
        ("503 told not to", {}, "the reply says not to retry"),
        ("503", {"idempotent": False}, "POST is not declared idempotent"),
        ("503", {"body": Streamed()}, "the body was streamed and cannot be sent again"),
        ("503", {"served": Served(lambda: 0.0, attempt=2)}, "the call being served is a retry itself"),
        ("503", {"max_retries": 0}, "no retry is allowed"),
        ("deadline", {}, "the deadline has passed"),
    ],
)
def test_each_refusal_has_a_sentence(outcome, call, sentence):
    """The trail says which rule it was; '' where nothing failed."""
    asked = Call("svc", "POST", b"/", **{"idempotent": True, **call})
    assert RetryPolicy().refusal(asked, OUTCOMES[outcome][0]) == sentence


def test_retry_on_is_named_when_it_is_the_reason():
    """A failure that retry_on leaves out is not silent."""
    call = Call("svc", "GET", b"/", idempotent=True)
    assert POLICIES["nothing"].refusal(call, broke("reset")) == "retry_on does not name this failure"


@pytest.mark.parametrize(
    ("asked", "policy", "ceiling", "retries"),
    [(None, 1, 3, 1), (None, 0, 3, 0), (0, 1, 3, 0), (2, 1, 3, 2), (9, 1, 3, 3), (3, 1, 3, 3), (4, 1, 0, 0)],
)
def test_how_many(asked, policy, ceiling, retries):
    """The policy's number, or the caller's, which may be higher but never above the ceiling."""
    call = Call("svc", "GET", b"/", idempotent=True, max_retries=asked)
    rules = RetryPolicy(max_retries=policy, retries_ceiling=ceiling)
    allowed = 0
    while rules.refusal(call, reply(503)) is None:
        call, allowed = call.fork(), allowed + 1
    assert allowed == retries
    assert rules.refusal(call, reply(503)) == (
        f"{retries} of {retries} retries used" if retries else "no retry is allowed"
    )


def test_idempotent_methods_are_those_of_the_rfc():
    """RFC 9110 §9.2.2: the safe ones, PUT and DELETE."""
    assert frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}) == IDEMPOTENT_METHODS


# The filter.


class Tier:
    """A Retry over scripted outcomes in virtual time."""

    def __init__(self, *outcomes, policy=None, budget=None, deadline=10.0, seed=3, **call) -> None:
        print(f"seed {seed}")
        self.runtime = SimulationRuntime(seed)
        self.script, self.begun = list(outcomes), []
        retry = Retry(
            policy or RetryPolicy(max_retries=3),
            budget or RetryBudget(),
            self.runtime.lock(),
            self.runtime,
            lambda: 1559559600.0,
        )
        self.call = Call("svc", "GET", b"/", idempotent=True, **call)
        self.call.deadline = self.call.attempt_deadline = deadline
        self.retry = retry

    def run(self):
        return self.runtime.run(self.retry(self.call, self.service))

    async def service(self, call):
        self.begun.append((call.number, self.runtime.now()))
        outcome = self.script.pop(0)
        if isinstance(outcome, MeshError):
            raise outcome
        return outcome


def test_it_tries_until_it_succeeds():
    """Failures are replaced by the reply that came, attempts are numbered from 1."""
    tier = Tier(broke("reset"), reply(503), reply(200))
    assert tier.run().status == 200
    assert [number for number, _ in tier.begun] == [1, 2, 3]
    assert tier.call.trail.notes == []


def test_the_last_failure_is_what_the_caller_gets():
    """A 503 that stays a 503 is a reply, an error that stays one is raised; the trail says why it ended."""
    tier = Tier(broke("reset"), reply(503), policy=RetryPolicy(max_retries=1))
    assert tier.run().status == 503
    assert tier.call.trail.notes == ["not retried: 1 of 1 retries used"]
    last = broke("reset")
    tier = Tier(reply(503), last, policy=RetryPolicy(max_retries=1))
    with pytest.raises(TransportError) as caught:
        tier.run()
    assert caught.value is last


def test_waits_are_full_jitter_below_their_ceilings():
    """Before the n-th retry it waits less than (2ⁿ - 1) × 25 ms, on the runtime's clock."""
    tier = Tier(*[reply(503)] * 3, reply(200))
    tier.run()
    waits = [b - a for (_, a), (_, b) in itertools.pairwise(tier.begun)]
    assert all(0 < wait < ceiling for wait, ceiling in zip(waits, (0.025, 0.075, 0.175), strict=True))


def test_retry_after_is_waited_for():
    """A server that says 2 is not asked before 2 seconds have passed."""
    tier = Tier(Reply(503, [(b"Retry-After", b"2")]), reply(200))
    tier.run()
    assert tier.begun[1][1] >= 2.0


@pytest.mark.parametrize("headers", [[(b"retry-after", b"300")], [(b"retry-after", b"10")]])
def test_a_wait_beyond_the_deadline_is_not_begun(headers):
    """The reply is handed over at once instead of sleeping into the deadline."""
    tier = Tier(Reply(503, headers))
    assert tier.run().status == 503
    assert tier.runtime.now() == 0.0
    assert tier.call.trail.notes == ["not retried: the deadline leaves no time for another attempt"]


def test_an_empty_budget_ends_it():
    """No retry without a deposit, and the trail says so."""
    tier = Tier(reply(503), budget=RetryBudget(0.0, 0.0))
    assert tier.run().status == 503
    assert tier.call.trail.notes == ["not retried: the retry budget is empty"]


def test_only_a_retry_that_is_made_is_paid():
    """Refusals by the deadline or the rules leave the budget as it was."""
    budget = RetryBudget(0.0, 1.0)
    Tier(Reply(503, [(b"retry-after", b"300")]), budget=budget).run()
    Tier(reply(503, b"x-meshlib-no-retry"), budget=budget).run()
    assert budget.balance(0.0) == 10.0
    Tier(reply(503), reply(200), budget=budget).run()
    assert budget.balance(0.0) == 9.0


def test_a_refused_reply_frees_its_connection():
    """The stream of a reply that is retried is closed before the wait."""
    closed = []

    class Stream:
        async def read(self) -> bytes:
            return b""

        async def aclose(self) -> None:
            closed.append(True)

    first = Reply(503, [], stream=Stream())
    ended = []
    first.at_end(ended.append)
    Tier(first, reply(200)).run()
    assert (closed, ended) == ([True], [None])


@pytest.mark.parametrize(
    ("outcomes", "more", "spent"),
    [
        ([reply(200)], {}, False),
        ([reply(503), reply(200)], {}, False),
        ([reply(503)] * 4, {}, True),
        ([broke("reset")] * 4, {}, True),
        ([reply(503, b"x-meshlib-no-retry")], {}, True),
        ([reply(503)], {"max_retries": 0}, False),
        ([reply(503)], {"budget": RetryBudget(0.0, 0.0)}, True),
        ([broke("refused", "connect", sent=False)], {"budget": RetryBudget(0.0, 0.0)}, False),
    ],
    ids=["ok", "recovered", "retries used", "errors", "told not to", "no retries allowed", "budget empty", "unsent"],
)
def test_the_caller_is_told_when_this_tier_has_spent_its_retries(outcomes, more, spent):
    """Served.spent: set when the outcome is final and the work may have been done; never for what provably was not."""
    served = Served(lambda: 0.0)
    tier = Tier(*outcomes, served=served, **more)
    try:
        tier.run()
    except TransportError:
        assert outcomes[-1].status if isinstance(outcomes[-1], Reply) else True
    assert served.spent is spent


def test_a_reply_is_not_lost_to_an_empty_pick():
    """The 503 that was to be retried is the answer when no endpoint is left for the second attempt."""
    first = reply(503)
    tier = Tier(first, NoHealthyEndpoint("svc", {"a:1": "ejected"}))
    assert tier.run() is first
    assert "not retried: no endpoint of 'svc'" in tier.call.trail.notes[-1]


def test_a_bug_is_not_retried():
    """Only errors of the tree are failures of the network; anything else goes up at once."""
    tier = Tier()
    with pytest.raises(IndexError):
        tier.run()
    assert len(tier.begun) == 1
