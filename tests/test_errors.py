"""The error tree: every error of DESIGN, its kind, what it says about sending and retrying."""

from __future__ import annotations

import inspect

import pytest

from meshlib import errors
from meshlib.errors import (
    ConfigError,
    DeadlineExceeded,
    IdentityError,
    MeshError,
    NoHealthyEndpoint,
    PermissionDenied,
    Problem,
    Rejected,
    TransportError,
    UnknownService,
)

KINDS = {
    ConfigError: "config",
    UnknownService: "unknown_service",
    NoHealthyEndpoint: "no_endpoint",
    Rejected: "rejected",
    DeadlineExceeded: "deadline",
    IdentityError: "identity",
    TransportError: "transport",
    PermissionDenied: "denied",
}


def test_the_tree_is_complete():
    """Every class of the module is in the table, with its own kind, directly below MeshError."""
    found = {
        c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, MeshError) and c is not MeshError
    }
    assert {c: c.kind for c in found} == KINDS
    assert all(c.__bases__ == (MeshError,) for c in found)


def test_the_drawing_has_every_error():
    """The tree in the module's docstring names each class and kind."""
    drawing = errors.__doc__ or ""
    assert all(c.__name__ in drawing and kind in drawing for c, kind in KINDS.items())


def test_the_bases_of_every_error():
    """Not retryable, nothing sent, no trail: the safe side unless a class says otherwise."""
    for error in (
        ConfigError("x"),
        UnknownService("x"),
        Rejected("limit", "x"),
        IdentityError("x"),
        PermissionDenied("x"),
    ):
        assert (error.retryable, error.sent, error.trail) == (False, False, None)


@pytest.mark.parametrize(
    ("cause", "sent", "retryable"),
    [
        ("refused", False, True),
        ("reset", False, True),
        ("reset", True, False),
        ("local", False, False),
        ("protocol", True, False),
    ],
)
def test_what_did_not_leave_may_be_tried_elsewhere(cause, sent, retryable):
    """Unless it is the request itself that may not be sent."""
    error = TransportError("x", phase="connect", cause=cause, sent=sent)
    assert (error.retryable, error.sent, error.cause, error.reused) == (retryable, sent, cause, False)


def test_config_error_lists_every_problem_in_the_order_of_the_file():
    """file:line:column: path: sentence, one per line; without a path no empty colon."""
    problems = [
        Problem("mesh.yaml", 3, 5, "services.a.timeout", "must be positive"),
        Problem("mesh.yaml", 9, 1, "", "is odd"),
    ]
    error = ConfigError(problems)
    assert str(error) == "mesh.yaml:3:5: services.a.timeout: must be positive\nmesh.yaml:9:1: is odd"
    assert error.problems == tuple(problems)
    assert ConfigError("no file").problems == ()


def test_unknown_service_suggests():
    """The name, and names that look like it."""
    error = UnknownService("invetory", suggestions=["inventory"])
    assert str(error) == "service 'invetory' is not in the policy of this mesh (did you mean 'inventory'?)"
    assert error.suggestions == ("inventory",)


def test_an_identity_error_has_both_names():
    """Expected and actual, as texts."""
    error = IdentityError("wrong peer", expected="spiffe://a/x", actual=None)
    assert (error.expected, error.actual) == ("spiffe://a/x", None)
