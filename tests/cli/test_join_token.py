"""`token`: join tokens made, listed and revoked, at a real config service."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from meshlib.control_link import ControlRefusal, RemoteAuthority
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import leaf_facts

from .config_service import TRUST_DOMAIN, ConfigService, run


def enrolled_as(service: ConfigService, token: JoinToken) -> str:
    """Who a process becomes by a token."""
    csr, _ = make_csr(SpiffeId.for_service(TRUST_DOMAIN, "anybody"))
    issued = RemoteAuthority([service.url], TRUST_DOMAIN, "i1").enrol(token, csr)
    return str(leaf_facts(issued.chain_pem).id)


def test_what_is_printed_is_a_token(service: ConfigService) -> None:
    """stdout is the token and nothing else, so that it can go into a file; what is said of it has its id, no secret."""
    made = run("token", "create", "orders")
    assert made.exit_code == 0
    token = JoinToken.parse(made.stdout)
    assert made.stdout == f"{token}\n"
    assert made.stderr == f"join token {token.id} for orders.default: 1 use, ends in 10m\n"
    assert enrolled_as(service, token) == "spiffe://shop.dev/ns/default/sa/orders"


def test_a_token_can_go_into_a_private_file(service: ConfigService, tmp_path: Path) -> None:
    """--out: mode 0600, and nothing of the secret anywhere else, also with --json."""
    file = tmp_path / "orders.token"
    for arguments in ((), ("--json",)):
        made = run("token", "create", "orders.shop", "--uses", "3", "--ttl", "1h30m", "--out", str(file), *arguments)
        assert made.exit_code == 0
        token = JoinToken.parse(file.read_text())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert token.secret not in made.output
        file.unlink()
    told = json.loads(made.stdout)
    assert (told["service"], told["uses"], told["file"]) == ("orders.shop", 3, str(file))


def test_a_file_that_is_there_is_not_replaced(service: ConfigService, tmp_path: Path) -> None:
    """Exit code 2, and no token is made; nor where the file cannot be written. A refused one leaves no file."""
    file = tmp_path / "orders.token"
    file.write_text("mine")
    for out in (file, tmp_path / "no-such" / "folder"):
        made = run("token", "create", "orders", "--out", str(out))
        assert (made.exit_code, made.stdout) == (2, "")
    assert file.read_text() == "mine"
    assert run("token", "create", "control.meshlib", "--out", str(tmp_path / "new")).exit_code == 1
    assert not (tmp_path / "new").exists()
    assert service.ask("GET", "/v1/tokens") == {"tokens": []}


def test_what_can_be_used_is_listed(service: ConfigService) -> None:
    """A line each, the first to end first, with how much of it is used; no secret."""
    assert run("token", "list").stdout == "there are no join tokens\n"
    first = JoinToken.parse(run("token", "create", "orders", "--uses", "2").stdout)
    run("token", "create", "inventory", "--ttl", "1h")
    enrolled_as(service, first)
    titles, *lines = run("token", "list").stdout.splitlines()
    assert titles.split() == ["ID", "SERVICE", "USED", "ENDS", "IN", "ENDS"]
    assert re.split(" {2,}", lines[0])[:4] == [first.id, "orders.default", "1 of 2", "10m"]
    assert re.split(" {2,}", lines[1])[1:4] == ["inventory.default", "0 of 1", "1h"]
    listed = json.loads(run("token", "list", "--json").stdout)["tokens"]
    assert (listed[0]["id"], listed[0]["used"], listed[0]["uses"]) == (first.id, 1, 2)
    assert first.secret not in run("token", "list", "--json").output


def test_a_revoked_token_is_good_for_nothing(service: ConfigService) -> None:
    """By its id, or by the whole token, of which the secret is not repeated; a second time there is none."""
    for named in (lambda token: token.id, str):
        token = JoinToken.parse(run("token", "create", "orders").stdout)
        revoked = run("token", "revoke", named(token))
        assert (revoked.exit_code, revoked.stdout) == (0, f"join token {token.id} is revoked\n")
        with pytest.raises(ControlRefusal, match="revoked"):
            enrolled_as(service, token)
    again = run("token", "revoke", str(token))
    assert (again.exit_code, token.secret in again.output) == (1, False)
    assert f"there is no join token {token.id}" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("create", "Orders"), "SERVICE"),
        (("create", "a.b.c"), "SERVICE"),
        (("create", "orders", "--uses", "0"), "--uses"),
        (("create", "orders", "--uses", "100001"), "from 1 to 100000 uses"),
        (("create", "orders", "--ttl", "10"), "--ttl"),
        (("create", "orders", "--ttl", "999ms"), "from 1s to 720h"),
        (("create", "orders", "--ttl", "721h"), "from 1s to 720h"),
        (("revoke", "../policy"), "ID"),
    ],
)
def test_wrong_usage_is_said_before_anybody_is_asked(arguments: tuple[str, ...], named: str) -> None:
    """Exit code 2 and what is wrong, without a config service."""
    told = run("token", *arguments)
    assert (told.exit_code, told.stdout) == (2, "")
    assert named in told.stderr


@pytest.mark.parametrize("arguments", [("--uses", "100000"), ("--ttl", "1s"), ("--ttl", "720h")])
def test_the_bounds_of_a_token_are_the_service_s(service: ConfigService, arguments: tuple[str, ...]) -> None:
    """What the command lets through is not refused."""
    assert run("token", "create", "orders", *arguments).exit_code == 0


def test_what_the_service_refuses_is_its_sentence(service: ConfigService) -> None:
    """Exit code 1: the reserved namespace."""
    told = run("token", "create", "control.meshlib")
    assert (told.exit_code, told.stdout) == (1, "")
    assert "config service's own" in told.stderr
