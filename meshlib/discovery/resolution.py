"""Which DNS names are looked up when, and which endpoints they make: pure, so that time and answers are arguments.

Rules:
  * a name is asked again after its TTL, never sooner than `TTL_MIN_S`, a little later by chance;
  * stale beats empty (RFC 8767): a failure (SERVFAIL, timeout, an empty answer) keeps the last addresses for as long as
    it lasts; a name that does not exist keeps them for `MISSING_KEPT_S`; then there is none;
  * a failure is tried again after 1 s, 2 s, 4 s … `RETRY_MAX_S`; that a name does not exist is believed for the TTL of
    the zone's SOA (RFC 2308), within `NEGATIVE_S`;
  * SRV (RFC 2782): each target is a name of its own, kept as such. Its priority becomes the endpoint's: a later one is
    called only while none of an earlier one can be. A target of "." says that there is no such service.
Sources: FAULTS F11; Envoy STRICT_DNS; gRPC's min_time_between_resolutions (30 s).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..config.questions import Question, Resolved, known_beforehand
from ..endpoint import Endpoint

if TYPE_CHECKING:
    from ..runtime import Rng

inf = float("inf")

TTL_MIN_S = 1.0
"""A TTL below counts as this: one query per name and second at most."""
TTL_MAX_S = 86_400.0
"""A TTL beyond counts as this (unbound's cache-max-ttl)."""
JITTER = 0.1
"""A name is asked again up to so much later than its TTL says, as a share of it: processes do not march together."""
MISSING_KEPT_S = 60.0
"""How long the addresses of a name that does not exist any more are kept."""
NEGATIVE_S = (1.0, 30.0)
"""The least and the most that "there is no such name" is believed, whatever its zone says."""
RETRY_MAX_S = 30.0
"""A failed lookup is tried again after so long at most (gRPC's own interval)."""
ADDRESSES_MAX = 4096
"""Addresses of one name; what is beyond is not used. A message of 64 KiB has room for about as many."""
TARGETS_MAX = 256
"""Targets of one SRV name; those beyond, by priority, are not used."""
UNEQUAL = 1000
"""An SRV weight of 0 beside others gets a thousandth of the share of 1: "a very small chance" (RFC 2782)."""


class Target(NamedTuple):
    """An SRV record. A lower `priority` comes first; `weight` from 0 to 65535."""

    priority: int
    weight: int
    port: int
    host: str


class Name(NamedTuple):
    """What is looked up: the addresses of a host, or the SRV records of a service."""

    kind: Literal["host", "srv"]
    name: str


Values = tuple[str, ...] | tuple[Target, ...]


class _State:
    """`values` None: nothing has been heard yet. `settled`: an answer or a failure has been."""

    __slots__ = ("asking", "due_at", "failures", "gone_at", "missing", "settled", "trouble", "values")

    def __init__(self, now: float) -> None:
        self.values: Values | None = None
        self.due_at, self.gone_at = now, float("inf")
        self.failures, self.trouble = 0, ""
        self.asking = self.missing = self.settled = False


class Resolution:
    """The names that are followed. Not thread-safe: whoever uses it from several threads holds a lock."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._questions: dict[Question, None] = {}
        self._names: dict[Name, _State] = {}

    # What is asked

    def follow(self, questions: Iterable[Question], now: float) -> bool:
        """Follow these too; True where one is new."""
        before = len(self._questions)
        self._questions.update(dict.fromkeys(questions))
        self._name_all(now)
        return len(self._questions) > before

    def keep(self, questions: Collection[Question], now: float) -> None:
        """Follow none but these of those that are followed."""
        self._questions = {question: None for question in self._questions if question in questions}
        self._name_all(now)

    def due(self, now: float) -> list[Name]:
        """What is to be looked up now; each is then being asked until one of `found`, `missing`, `failed` says so."""
        due = [name for name, state in self._names.items() if not state.asking and state.due_at <= now]
        for name in due:
            self._names[name].asking = True
        return due

    def wake_at(self) -> float:
        """When there is something to do, if nothing happens before; inf: never."""
        times = [min(inf if state.asking else state.due_at, state.gone_at) for state in self._names.values()]
        return min(times, default=inf)

    # What is answered

    def found(self, name: Name, values: Values, ttl_s: float, now: float) -> None:
        """An answer with at least one value."""
        state = self._names.get(name)
        if state is None:
            return
        state.values = _ordered(values)
        state.gone_at, state.failures, state.trouble, state.missing = inf, 0, "", False
        self._again(state, min(max(ttl_s, TTL_MIN_S), TTL_MAX_S), now)
        if name.kind == "srv":
            self._name_all(now)

    def missing(self, name: Name, ttl_s: float, now: float) -> bool:
        """There is no such name. True where that is news."""
        state = self._names.get(name)
        if state is None:
            return False
        news = not state.missing
        if news:
            state.gone_at = now + (MISSING_KEPT_S if state.values else 0.0)
        state.missing, state.failures, state.trouble = True, 0, "there is no such name"
        self._again(state, min(max(ttl_s, NEGATIVE_S[0]), NEGATIVE_S[1]), now)
        return news

    def failed(self, name: Name, why: str, now: float) -> bool:
        """No answer, or one without a value. True where that is news."""
        state = self._names.get(name)
        if state is None:
            return False
        news, state.trouble = not state.failures, why
        self._again(state, min(2.0**state.failures, RETRY_MAX_S), now)
        state.failures = min(state.failures + 1, 10)
        return news

    # What it means

    def answers(self, now: float) -> dict[Question, Resolved]:
        """What is known of each question that has been answered, or has failed, at least once."""
        for state in self._names.values():
            if state.gone_at <= now:
                state.values, state.gone_at = (), inf
        answers = {}
        for question in self._questions:
            resolved = self._host(question) if question.kind == "dns" else self._service(question)
            if resolved is not None:
                answers[question] = resolved
        return answers

    # Inside

    def _again(self, state: _State, after_s: float, now: float) -> None:
        state.asking, state.settled = False, True
        state.due_at = now + after_s * (1.0 + JITTER * self._rng.random())

    def _name_all(self, now: float) -> None:
        """A state for every name that a question or a target needs, and for no other."""
        needed = [Name("host" if question.kind == "dns" else "srv", question.name) for question in self._questions]
        for name in tuple(needed):
            state = self._names.get(name)
            if state is not None and name.kind == "srv":
                needed += [Name("host", value.host) for value in state.values or () if isinstance(value, Target)]
        wanted = dict.fromkeys(name for name in needed if not (name.kind == "host" and known_beforehand(name.name)))
        self._names = {name: self._names.get(name) or _State(now) for name in wanted}

    def _host(self, question: Question) -> Resolved | None:
        addresses, trouble, missing, settled = self._addresses(question.name)
        if not settled:
            return None
        endpoints = tuple(Endpoint(address, question.port) for address in addresses)
        return Resolved(endpoints) if endpoints else Resolved((), trouble, missing)

    def _service(self, question: Question) -> Resolved | None:
        state = self._names[Name("srv", question.name)]
        targets = [value for value in state.values or () if isinstance(value, Target)]
        if not state.settled:
            return None
        if not targets:
            return Resolved((), state.trouble, state.missing and state.values == ())
        found: dict[tuple[str, int], Endpoint] = {}
        troubles, waiting = [], False
        for target, weight in zip(targets, _weights(targets), strict=True):
            addresses, trouble, _, settled = self._addresses(target.host)
            waiting |= not settled
            troubles += [f"{target.host}: {trouble}"] if trouble else []
            for address in addresses:
                endpoint = Endpoint(address, target.port, weight=weight, priority=target.priority)
                found.setdefault((address, target.port), endpoint)
        if found:
            return Resolved(tuple(found.values()))
        return None if waiting else Resolved((), "; ".join(troubles))

    def _addresses(self, host: str) -> tuple[tuple[str, ...], str, bool, bool]:
        """(addresses, trouble, does it not exist, has it been heard of)."""
        if beforehand := known_beforehand(host):
            return beforehand, "", False, True
        state = self._names[Name("host", host)]
        addresses = tuple(value for value in state.values or () if isinstance(value, str))
        return addresses, state.trouble, state.missing, state.settled


def _ordered(values: Values) -> Values:
    """In an order of their own: a name server rotates its answers, and that is no change."""
    if any(isinstance(value, Target) for value in values):
        return tuple(sorted(value for value in values if isinstance(value, Target)))[:TARGETS_MAX]
    return tuple(sorted(value for value in values if isinstance(value, str)))[:ADDRESSES_MAX]


def _weights(targets: list[Target]) -> list[int]:
    weights = [target.weight for target in targets]
    if 0 not in weights:
        return weights
    return [weight * UNEQUAL or 1 for weight in weights] if any(weights) else [1] * len(weights)
