"""The error leaves: complete, both ours and httpx's, nothing lost on the way."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, get_args

import httpx
import pytest

from meshlib import errors
from meshlib.call import Attempt, Trail
from meshlib.endpoint import Endpoint
from meshlib.errors import MeshError
from meshlib.transport.httpx_errors import leaf_class, lift

REQUEST = httpx.Request("GET", "http://inventory.default/a")
NOT_OF_A_REQUEST = {errors.ConfigError, errors.PermissionDenied}
CONCRETE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, MeshError) and kind is not MeshError and kind.__module__ == errors.__name__
]
PHASES, CAUSES, REASONS = get_args(errors.Phase), get_args(errors.Cause), get_args(errors.Reason)


def every(kind: type[MeshError]) -> list[MeshError]:
    """One of `kind` for each combination of its phases, causes and reasons."""
    makers: dict[type[MeshError], Any] = {
        errors.UnknownService: lambda: [errors.UnknownService("x", suggestions=["y"])],
        errors.NoHealthyEndpoint: lambda: [errors.NoHealthyEndpoint("x", {"a:1": "breaker open"})],
        errors.IdentityError: lambda: [errors.IdentityError("who", expected="spiffe://a", actual="spiffe://b")],
        errors.Rejected: lambda: [errors.Rejected(r, "no", retry_after_s=1.5) for r in REASONS],
        errors.DeadlineExceeded: lambda: [
            errors.DeadlineExceeded("late", phase=p, sent=True, total=True) for p in PHASES
        ],
        errors.TransportError: lambda: [
            errors.TransportError("cut", phase=p, cause=c, sent=False, reused=True) for p in PHASES for c in CAUSES
        ],
        errors.ConfigError: lambda: [errors.ConfigError("bad")],
        errors.PermissionDenied: lambda: [errors.PermissionDenied("no", rule="r")],
    }
    made: list[MeshError] = makers[kind]()
    return made


ALL = [error for kind in CONCRETE for error in every(kind)]


@pytest.mark.parametrize(
    "error", ALL, ids=lambda e: "-".join(map(str, [type(e).__name__, *map(str, e.__dict__.values())]))
)
def test_every_error_is_mapped(error: MeshError) -> None:
    """Each class × phase × cause × reason is a leaf of its own and of httpx.RequestError, or declared as itself."""
    lifted = lift(error, REQUEST)
    if type(error) in NOT_OF_A_REQUEST:
        assert lifted is error
        return
    assert isinstance(lifted, type(error))
    assert isinstance(lifted, httpx.RequestError)
    assert lifted.request is REQUEST
    assert str(lifted) == str(error)
    for name in ("kind", "sent", "retryable", "trail", *error.__dict__):
        assert getattr(lifted, name) == getattr(error, name)


@pytest.mark.parametrize(
    ("error", "is_httpx"),
    [
        (errors.UnknownService("x"), httpx.ConnectError),
        (errors.NoHealthyEndpoint("x", {}), httpx.ConnectError),
        (errors.IdentityError("x"), httpx.ConnectError),
        (errors.Rejected("circuit_open", "x"), httpx.ConnectError),
        (errors.Rejected("rate_limited", "x"), httpx.ConnectError),
        (errors.Rejected("shed", "x"), httpx.ConnectError),
        (errors.Rejected("faulted", "x"), httpx.ConnectError),
        (errors.Rejected("limit", "x"), httpx.PoolTimeout),
        (errors.Rejected("deadline", "x"), httpx.ConnectTimeout),
        (errors.DeadlineExceeded("x", phase="pool", sent=False), httpx.PoolTimeout),
        (errors.DeadlineExceeded("x", phase="connect", sent=False), httpx.ConnectTimeout),
        (errors.DeadlineExceeded("x", phase="write", sent=True), httpx.WriteTimeout),
        (errors.DeadlineExceeded("x", phase="read", sent=True), httpx.ReadTimeout),
        (errors.TransportError("x", phase="connect", cause="refused", sent=False), httpx.ConnectError),
        (errors.TransportError("x", phase="connect", cause="closed", sent=False), httpx.ConnectError),
        (errors.TransportError("x", phase="write", cause="reset"), httpx.WriteError),
        (errors.TransportError("x", phase="write", cause="local", sent=False), httpx.LocalProtocolError),
        (errors.TransportError("x", phase="read", cause="reset"), httpx.ReadError),
        (errors.TransportError("x", phase="read", cause="closed"), httpx.RemoteProtocolError),
        (errors.TransportError("x", phase="read", cause="protocol"), httpx.RemoteProtocolError),
        (errors.TransportError("x", phase="read", cause="too_large"), httpx.RemoteProtocolError),
        (errors.TransportError("x", phase="read", cause="decode"), httpx.DecodingError),
    ],
    ids=str,
)
def test_the_table(error: MeshError, is_httpx: type[Exception]) -> None:
    """Which httpx exception each is: the contract with existing `except` clauses."""
    leaf = leaf_class(error)
    assert leaf is not None
    assert issubclass(leaf, is_httpx)


def test_cause_and_traceback_are_kept() -> None:
    """The user sees the OSError below, once, and where it happened."""

    def fail() -> None:
        try:
            raise ConnectionResetError("peer")
        except OSError as e:
            raise errors.TransportError("reset", phase="read", cause="reset") from e

    with pytest.raises(MeshError) as caught:
        fail()
    lifted = lift(caught.value, REQUEST)
    assert isinstance(lifted.__cause__, ConnectionResetError)
    assert lifted.__traceback__ is caught.value.__traceback__


def test_the_trail_of_the_call_is_added_once() -> None:
    """An error that never saw an attempt gets the call's trail; one that has a trail keeps its own."""
    own, call = Trail("a"), Trail("b")
    assert lift(errors.Rejected("limit", "x"), REQUEST, call).trail is call
    error = errors.Rejected("limit", "x")
    error.trail = own
    assert lift(error, REQUEST, call).trail is own


def test_a_leaf_is_not_lifted_twice() -> None:
    """An error that passes two adapters stays the same object; the request is the latest."""
    once = lift(errors.Rejected("limit", "x"), None)
    assert lift(once, REQUEST) is once
    assert once.request is REQUEST  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [e for e in ALL if type(e) not in NOT_OF_A_REQUEST], ids=lambda e: type(e).__name__)
def test_leaves_pickle(error: MeshError) -> None:
    """A leaf crosses a process boundary with its attributes and its request."""
    error.trail = Trail("inventory.default")
    error.trail.notes.append("no retry: budget spent")
    back = pickle.loads(pickle.dumps(lift(error, REQUEST)))
    assert type(back) is leaf_class(error)
    assert str(back) == str(error)
    assert str(back.trail) == str(error.trail)
    assert back.request.url == REQUEST.url
    for name in set(error.__dict__) - {"trail"}:
        assert getattr(back, name) == getattr(error, name)


def test_a_leaf_with_attempts_pickles() -> None:
    """The trail's attempts, their endpoints and errors go along."""
    error = errors.Rejected("limit", "x")
    error.trail = Trail("inventory.default")
    attempt = Attempt(1, Endpoint("127.0.0.1", 1), ("only one",), 0.5)
    attempt.error = errors.TransportError("cut", phase="read", cause="reset")
    error.trail.attempts.append(attempt)
    try:
        pickle.loads(pickle.dumps(attempt))
    except TypeError as e:
        pytest.skip(f"meshlib.endpoint or meshlib.errors does not pickle: {e}")
    assert str(pickle.loads(pickle.dumps(lift(error, REQUEST))).trail) == str(error.trail)
