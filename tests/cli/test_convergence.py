"""`status`: who has applied what, at a real config service."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pytest

from meshlib.cli import convergence
from meshlib.control import status

from .config_service import MESH, ConfigService, run

CHANGED = MESH + "defaults: {timeout: 3s}\n"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is behind is behind at the first look."""
    monkeypatch.setattr(convergence, "SETTLE_S", 0.0)


def test_all_have_applied(service: ConfigService) -> None:
    """Exit code 0, a line per process: state, last seen, where it is, and the serial by which it can be revoked."""
    with service.process("orders.default", "o-1") as process:
        process.poll("inventory.default")
        told = run("status")
    assert (told.exit_code, told.stderr) == (0, "")
    about, titles, line = told.stdout.splitlines()
    assert re.fullmatch(r"policy \d+ of \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ, from \S+: 1 applied", about)
    assert re.split(" {2,}", titles) == ["SERVICE", "INSTANCE", "STATE", "LAST SEEN", "HOST", "PID", "CERTIFICATE"]
    state = re.split(" {2,}", line)
    assert state[:3] == ["orders.default", "o-1", "applied"]
    assert state[4:] == ["h1", "7", f"{process.svid.serial:x}"]


def test_who_has_not_taken_the_newest_is_behind(service: ConfigService) -> None:
    """Exit code 1, and in what; the others are not; once it has it, exit code 0."""
    with service.process("orders.default", "o-1") as slow, service.process("inventory.default", "i-1") as quick:
        slow.poll("inventory.default")
        service.publish(CHANGED)
        quick.poll()
        told = run("status")
        assert told.exit_code == 1
        assert ": 1 applied, 1 behind\n" in told.stdout
        assert told.stdout.endswith("behind defaults: orders.default/o-1\n")
        assert run("status", "--service", "inventory").exit_code == 0
        assert run("status", "--service", "orders").exit_code == 1
        slow.poll("inventory.default")
        assert run("status").exit_code == 0


def test_a_rejection_is_shown_with_its_reason_once_for_all(service: ConfigService) -> None:
    """Exit code 1; the reason, on lines of its own, with nothing in it that a terminal would obey."""
    why = "services.inventory.timeout: too long\nand a \x1b[31mred\x1b[0m one"
    with service.process("orders.default", "o-1") as first, service.process("orders.default", "o-2") as second:
        for process in (first, second):
            process.poll("inventory.default", reject={"service/inventory.default": why})
        told = run("status")
        data = json.loads(run("status", "--json").stdout)
    assert told.exit_code == 1
    assert ": 2 rejected\n" in told.stdout
    assert told.stdout.splitlines()[-3:] == [
        "rejected service/inventory.default: orders.default/o-1, orders.default/o-2",
        "  services.inventory.timeout: too long",
        r"  and a \x1b[31mred\x1b[0m one",
    ]
    assert [one["ignored"] for one in data["processes"]] == [{"service/inventory.default": why}] * 2


def test_of_many_who_say_the_same_only_some_are_named() -> None:
    """The list of names has a bound."""
    process = {"service": "orders.default", "ignored": {}, "behind": ["trust"]}
    many = [{**process, "instance": f"o-{index}"} for index in range(12)]
    (line,) = convergence._details(many)
    assert line.endswith("orders.default/o-4 and 7 more")


def test_a_service_without_processes_has_not_applied(service: ConfigService) -> None:
    """--service: exit code 1 when nobody of it polls; without it an empty mesh is no fault."""
    assert run("status", "--service", "orders").exit_code == 1
    empty = run("status")
    assert (empty.exit_code, empty.stdout.endswith(": no process polls\n")) == (0, True)


def test_an_edit_that_is_kept_out_is_shown() -> None:
    """What the file says is not in force anywhere, so the answer is no, and its problems are there."""
    problem = {"file": "mesh.yaml", "line": 5, "column": 1, "path": "bogus", "message": "unknown field"}
    found: dict[str, Any] = {
        "policy": {"n": 7, "at": 0.0, "source": "mesh.yaml"},
        "problems": [problem],
        "processes": [],
    }
    assert not convergence._applied(found, None)
    assert click.unstyle(convergence._shown(found)).splitlines()[1:] == [
        "an edit of it is kept out:",
        "  mesh.yaml:5:1: bogus: unknown field",
    ]


class Answers:
    """An operator that is answered these, one after the other, the last for ever."""

    def __init__(self, *states: str) -> None:
        self.states, self.asked = list(states), 0

    def answers(self, *_: Any) -> list[dict[str, Any]]:
        """One page: a process in the next state, or none."""
        self.asked += 1
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        process = {
            "service": "orders.default",
            "instance": "o-1",
            "behind": ["trust"] if state == "behind" else [],
            "ignored": {"trust": "no"} if state == "rejected" else {},
        }
        return [{"problems": [], "processes": [] if state == "nobody" else [process]}]


@pytest.mark.parametrize("states", [("applied",), ("behind", "applied"), ("nobody", "rejected", "behind", "applied")])
def test_wait_ends_when_all_have_applied(states: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again while anybody is behind, has rejected, or nobody of the service is there yet; and no longer."""
    monkeypatch.setattr(convergence, "LOOK_S_MAX", 0.001)
    scripted = Answers(*states)
    found = convergence._settled(scripted, "orders", 60.0)
    assert (scripted.asked, convergence._applied(found, "orders")) == (len(states), True)


def test_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the answer is what it is; without --wait a rejection is not waited out at all."""
    monkeypatch.setattr(convergence, "LOOK_S_MAX", 0.001)
    waited, not_waited = Answers("rejected"), Answers("rejected")
    assert not convergence._applied(convergence._settled(waited, None, 0.05), None)
    assert waited.asked > 1
    convergence._settled(not_waited, None, None)
    assert not_waited.asked == 1


@pytest.mark.parametrize(("given", "seconds"), [("30s", 30.0), ("1m30s", 90.0), ("30", 30.0), ("0.5", 0.5), ("0", 0.0)])
def test_a_wait_has_a_unit_or_is_in_seconds(
    given: str, seconds: float, service: ConfigService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A duration as everywhere, or a plain number."""
    waits: list[float | None] = []
    found = convergence._settled
    monkeypatch.setattr(convergence, "_settled", lambda *asked: waits.append(asked[2]) or found(*asked))
    assert run("status", "--wait", given).exit_code == 0
    assert waits == [seconds]


@pytest.mark.parametrize("given", ["", "soon", "-1", "1d", "nan", "1e9", "inf"])
def test_what_is_no_wait_is_wrong_usage(given: str) -> None:
    """Exit code 2, before anybody is asked."""
    told = run("status", f"--wait={given}")
    assert (told.exit_code, "is not a duration" in told.stderr) == (2, True)


def test_who_was_told_a_moment_ago_gets_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --wait, behind is looked at again before the answer is no."""
    monkeypatch.setattr(convergence, "LOOK_S_MAX", 0.001)
    monkeypatch.setattr(convergence, "SETTLE_S", 60.0)
    scripted = Answers("behind", "behind", "applied")
    assert convergence._applied(convergence._settled(scripted, None, None), None)


def test_more_than_one_answer_holds_are_all_shown(service: ConfigService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are asked for until all are there, each once."""
    monkeypatch.setattr(status, "SHOWN_MAX", 2)
    for index in range(5):
        with service.process("orders.default", f"o-{index}") as process:
            process.poll()
    found = json.loads(run("status", "--json").stdout)
    assert [one["instance"] for one in found["processes"]] == [f"o-{index}" for index in range(5)]
