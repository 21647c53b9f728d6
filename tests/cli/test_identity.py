"""`identity`: who a process of this host is, as a user types it. What is right and wrong, test_standing says."""

from __future__ import annotations

import json
import re

import pytest

from .config_service import ConfigService, run


def test_it_works_while_the_config_service_is_away(service: ConfigService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aligned lines: id, source, serial, validity, roots; and what is wrong, here that there is no snapshot yet."""
    svid, _ = service.enrol_here("orders.default")
    monkeypatch.setenv("MESHLIB_CONTROL_URLS", "https://127.0.0.1:9")
    told = run("identity", "orders")
    assert (told.exit_code, told.stderr) == (1, "")
    lines = dict(line.split(maxsplit=1) for line in told.stdout.splitlines())
    assert list(lines) == ["id", "source", "serial", "valid", "root", "problem"]
    assert (lines["id"], lines["serial"]) == ("spiffe://shop.dev/ns/default/sa/orders", f"{svid.serial:x}")
    assert re.fullmatch(r"[-0-9]{10} [:0-9]{8}Z to [-0-9]{10} [:0-9]{8}Z, 24h left", lines["valid"])
    assert re.fullmatch(r"sha256 [0-9a-f]{64}, 8760h left, issued the certificate", lines["root"])
    assert service.token.root_sha256 in lines["root"]
    assert {re.search(r"\S ", f"{line[:9]} ").end() <= 10 and line[10] != " " for line in told.stdout.splitlines()} == {
        True
    }


def test_the_same_as_data(service: ConfigService) -> None:
    """--json: one document on stdout, with the same exit code, and no private key."""
    svid, _ = service.enrol_here("orders.default")
    told = run("identity", "orders", "--json")
    data = json.loads(told.stdout)
    assert told.exit_code == 1
    assert data["certificate"] == {
        "serial": f"{svid.serial:x}",
        "not_before": svid.not_before,
        "not_after": svid.not_after,
    }
    assert [root["sha256"] for root in data["roots"]] == [service.token.root_sha256]
    assert (data["snapshot"], len(data["problems"])) == (None, 1)
    assert "PRIVATE" not in told.output


def test_the_service_is_that_of_the_process(service: ConfigService, monkeypatch: pytest.MonkeyPatch) -> None:
    """$MESHLIB_SERVICE; with neither, exit code 2 and who has enrolled here."""
    service.enrol_here("orders.default")
    told = run("identity")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.endswith("/.meshlib: orders.default\n")
    monkeypatch.setenv("MESHLIB_SERVICE", "orders")
    assert run("identity").stdout.startswith("id        spiffe://shop.dev/ns/default/sa/orders\n")
    assert run("identity", "Orders").exit_code == 2
