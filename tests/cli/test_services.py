"""`services`: who is registered, at a real config service."""

from __future__ import annotations

import json
import re

import pytest

from meshlib.control import status

from .config_service import ConfigService, run


def cells(output: str) -> list[list[str]]:
    """The table's lines, cut at its gaps."""
    return [re.split(" {2,}", line) for line in output.splitlines()]


def test_a_line_per_instance_and_one_where_there_is_none(service: ConfigService) -> None:
    """Address, state, zone, weight, labels and lease, aligned; services of the policy that nobody serves too."""
    with service.process("inventory.default", "i-1") as first, service.process("inventory.default", "i-2") as second:
        first.register("10.0.0.1:80", zone="eu-1a", weight=3, labels={"version": "v2", "track": "canary"})
        second.register("10.0.0.2:80", zone="eu-1b")
        listed = run("services")
    assert (listed.exit_code, listed.stderr) == (0, "")
    titles, *rows = cells(listed.stdout)
    assert titles == ["SERVICE", "INSTANCE", "ADDRESS", "STATE", "ZONE", "WEIGHT", "LABELS", "LEASE"]
    assert rows[0][:7] == ["inventory.default", "i-1", "10.0.0.1:80", "ready", "eu-1a", "3", "track=canary,version=v2"]
    assert re.fullmatch(r"1[0-5]s left", rows[0][7])
    assert rows[1][:5] == ["inventory.default", "i-2", "10.0.0.2:80", "ready", "eu-1b"]
    assert rows[2] == ["orders.default", "-", "-", "nobody"]
    starts = {
        line.index(word) for line, word in zip(listed.stdout.splitlines(), ("ADDRESS", "10.", "10."), strict=False)
    }
    assert len(starts) == 1


def test_one_service_by_its_short_name(service: ConfigService) -> None:
    """`inventory` is inventory.default; one that does not exist is exit code 1; --json has the same as data."""
    with service.process("inventory.default", "i-1") as process:
        process.register("10.0.0.1:80")
        found = json.loads(run("services", "inventory", "--json").stdout)["services"]
    assert [(one["name"], one["policy"], [i["address"] for i in one["instances"]]) for one in found] == [
        ("inventory.default", True, ["10.0.0.1:80"])
    ]
    none = run("services", "inventroy")
    assert (none.exit_code, none.stdout, none.stderr) == (1, "", "there is no service inventroy\n")


def test_who_is_not_in_the_policy_is_said_to_be(service: ConfigService) -> None:
    """A process may register as what no policy names: nobody can call it yet."""
    with service.process("payments.default", "p-1") as process:
        process.register("10.0.0.9:80")
        assert "payments.default (not in the policy)  p-1" in run("services").stdout


def test_labels_cannot_speak_to_the_terminal(service: ConfigService) -> None:
    """They are text of strangers: a control character is shown as what it is."""
    with service.process("inventory.default", "i-1") as process:
        process.register("10.0.0.1:80", labels={"note": "\x1b[2J\nroot"})
        assert r"note=\x1b[2J\x0aroot" in run("services").stdout


def test_more_than_one_answer_holds_are_all_listed(service: ConfigService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services, and instances of one service, are asked for until all are there, each once."""
    monkeypatch.setattr(status, "SHOWN_MAX", 2)
    for index in range(5):
        with service.process("inventory.default", f"i-{index}") as process:
            process.register(f"10.0.0.{index + 1}:80")
    with service.process("payments.default", "p-1") as process:
        process.register("10.0.0.9:80")
    found = json.loads(run("services", "--json").stdout)["services"]
    assert [one["name"] for one in found] == ["inventory.default", "orders.default", "payments.default"]
    assert [one["instance"] for one in found[0]["instances"]] == [f"i-{index}" for index in range(5)]
