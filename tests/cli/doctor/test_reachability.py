"""The config service as it is found from a machine: a real one, one that is away, one that is somebody else."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from meshlib.cli.doctor.finding import Finding
from meshlib.cli.doctor.reachability import SKEW_S_MAX, Anchor, control
from meshlib.identity.pinned import PinnedTls

from ..config_service import CONTROL, ConfigService

NOWHERE = "https://127.0.0.1:9"


def anchor(root_sha256: str) -> Anchor:
    """By the hash of a root."""
    return Anchor(PinnedTls(root_sha256, CONTROL).context(), str(CONTROL), "the root in a.token")


@pytest.fixture
def listening() -> Iterator[str]:
    """A port where somebody listens who never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}"


def test_who_it_is_and_what_time_it_has(service: ConfigService) -> None:
    """One line a URL, and one for the clock."""
    identity = f"{service.url} is spiffe://shop.dev/ns/meshlib/sa/control, by the root in a.token"
    assert list(control([service.url], anchor(service.token.root_sha256))) == [
        Finding("ok", "config service", identity),
        Finding("ok", "clock", "agrees with the config service"),
    ]


def test_every_url_is_asked_for_itself(service: ConfigService) -> None:
    """One that is away is a problem also where another answers, whose clock is then the one."""
    findings = list(control([NOWHERE, service.url], anchor(service.token.root_sha256)))
    assert [(one.level, one.subject) for one in findings] == [
        ("problem", "config service"), ("ok", "config service"), ("ok", "clock"),
    ]  # fmt: skip
    assert "does not answer" in findings[0].said


@pytest.mark.parametrize(
    ("ahead_s", "level", "said"),
    [
        (SKEW_S_MAX + 5, "problem", "ahead of the config service"),
        (-SKEW_S_MAX - 5, "problem", "behind the config service"),
        (SKEW_S_MAX - 5, "ok", "s ahead of the config service"),
    ],
)
def test_a_clock_that_differs(service: ConfigService, ahead_s: float, level: str, said: str) -> None:
    """By more than a minute it is a problem, with the way to set it."""
    *_, clock = control([service.url], anchor(service.token.root_sha256), lambda: time.time() + ahead_s)
    assert (clock.level, said in clock.said) == (level, True)


def test_somebody_else_is_a_problem_and_has_no_clock(service: ConfigService) -> None:
    """Another root than the anchor's."""
    (finding,) = control([service.url], anchor("0" * 64))
    assert (finding.level, "is somebody else, by the root in a.token" in finding.said) == ("problem", True)


def test_without_an_anchor_only_the_port_is_tried(listening: str) -> None:
    """Reachable is a warning, since nobody can tell who it is; not reachable a problem."""
    assert [one.level for one in control([listening, NOWHERE], None)] == ["warning", "problem"]


def test_one_that_says_nothing_is_given_up(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the bound."""
    from meshlib.cli.doctor import reachability

    monkeypatch.setattr(reachability, "TIMEOUT_S", 0.05)
    (finding,) = control([listening], anchor("0" * 64))
    assert (finding.level, "does not answer" in finding.said) == ("problem", True)
