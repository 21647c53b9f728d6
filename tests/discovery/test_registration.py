"""What is told to the registry, and when."""

from __future__ import annotations

import random

from meshlib.discovery.registration import CAP_S, Registration

DOCUMENT = {"instance": "i", "address": "127.0.0.1:1"}


def registered() -> Registration:
    registration = Registration()
    registration.serve(DOCUMENT)
    registration.told("register", DOCUMENT)
    return registration


def test_serving_is_told_once() -> None:
    """Due at once; nothing after it was told."""
    registration = Registration()
    assert registration.due(0.0) == ""
    registration.serve(DOCUMENT)
    assert registration.due(0.0) == "register"
    assert not registration.serving
    registration.told("register", DOCUMENT)
    assert registration.serving
    assert registration.due(1e9) == ""


def test_what_could_not_be_told_is_told_again_within_bounds() -> None:
    """Full jitter below a ceiling that doubles, up to the cap, however often it fails."""
    registration, rng, now = Registration(), random.Random(3), 0.0
    registration.serve(DOCUMENT)
    for _ in range(100):
        registration.failed(now, rng)
        assert registration.due(now + CAP_S) == "register"
    registration.told("register", DOCUMENT)
    assert registration.serving


def test_a_service_that_has_forgotten_is_told_again() -> None:
    """The process's own word wins (F04); one that drains does not come back."""
    registration = registered()
    registration.forgotten()
    assert registration.due(0.0) == "register"
    drained = registered()
    drained.drain(0.0)
    drained.told("drain", DOCUMENT)
    drained.forgotten()
    assert drained.due(0.0) == ""


def test_draining_is_told_at_once() -> None:
    """Also where the registration may still be under way; a process that never served has nothing to take back."""
    registration = registered()
    registration.drain(0.0)
    assert registration.due(0.0) == "drain"
    early = Registration()
    early.serve(DOCUMENT)
    early.drain(0.0)
    assert early.due(0.0) == "drain"
    assert early.leaves_word(0.1)
    idle = Registration()
    idle.drain(0.0)
    assert idle.due(0.0) == ""
    assert not idle.leaves_word(0.1)


def test_a_late_answer_to_a_registration_does_not_undo_a_drain() -> None:
    """`register` was under way when the drain began."""
    registration = registered()
    registration.drain(0.0)
    registration.told("register", DOCUMENT)
    assert registration.due(0.0) == "drain"


def test_who_does_not_hear_the_drain_is_not_told_farewell() -> None:
    """A drain that could not be told for half a second; told, or only just begun, there is a last word."""
    registration = registered()
    registration.drain(10.0)
    assert registration.leaves_word(10.9)
    registration.failed(10.2, random.Random(1))
    assert not registration.leaves_word(10.8)
    registration.told("drain", DOCUMENT)
    assert registration.leaves_word(99.0)
