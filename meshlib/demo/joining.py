"""The first scene: processes join the mesh by their join tokens, and others by theirs do not.

Who tries to join here, beside the replicas, is a stranger in the demo's own process, with the very code by which every
process joins. One of them is let in: the visitor, who later asks a process something that nobody else could ask it.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPSConnection
from pathlib import Path
from typing import NamedTuple

from meshlib.control_link import ControlRefusal, RemoteAuthority
from meshlib.errors import IdentityError, MeshError
from meshlib.identity.control import ControlSource
from meshlib.identity.join_token import JoinToken

from .census import Member
from .fleet import hosts
from .shop import SERVICES, TRUST_DOMAIN, Shop
from .stage import GIVE_UP_S, Scene, Stage, milliseconds, said

KNOWN_S = 2.0
"""Promised: from the moment all listen until the config service shows all of them, and all that call them know it."""
VISITOR = "visitor"
_UNAUTHORIZED = 401


class Attempt(NamedTuple):
    """Somebody who must not get in. `refused`: is this how it must be refused, and not by some accident?"""

    token: str
    service: str
    brings: JoinToken
    refused: Callable[[Exception], bool]


def join(stage: Stage) -> Scene:
    """Every process gets its identity by a join token, and registers; wrong tokens get nothing."""
    stage.say(f"starting {len(stage.members)} processes in {stage.shop.folder}")
    uses = {service: len(hosts(stage.fleet.of(service))) for service in SERVICES} | {"shopper": 1}
    tokens = {service: stage.control.create_token(service, uses[service]) for service in uses}
    began = time.monotonic()
    stage.fleet.start(stage.fleet.replicas)
    stage.shopper.start()
    listening = time.monotonic()
    names = {member.name for member in stage.members}
    known_s = stage.until(listening, lambda: _know_each_other(stage, names))
    used, registered = stage.control.uses(), len(names & stage.control.ready())
    stage.say("joining with tokens that are not good")
    refused = {attempt.token: _refusal(stage.shop, attempt) for attempt in _attempts(stage, tokens)}
    visitor = _try_to_join(stage.shop, VISITOR, stage.control.create_token(VISITOR, 1))
    good = used == sum(uses.values()) and known_s <= KNOWN_S and visitor is None
    return Scene(
        "join",
        "every process gets its identity by a join token, registers, and is known to its callers "
        f"≤ {KNOWN_S * 1e3:.0f} ms; forged, used and foreign tokens are refused",
        f"{registered} of {len(names)} registered by {used} uses of {len(tokens)} tokens"
        f"{said(known_s, ', known to all after', ', not known to all')}; {_count(refused)} of {len(refused)} refused",
        good and all(refused.values()),
        {
            "processes": len(names), "registered": registered, "tokens": len(tokens), "uses": used,
            "started_ms": milliseconds(listening - began), "known_ms": milliseconds(known_s),
            "refused": refused,
        },
    )  # fmt: skip


def visit(stage: Stage, member: Member, path: str) -> str:
    """What a process answers the visitor, who calls it directly, with mTLS. OSError, also where it is no 200."""
    folder = _folder(stage.shop, VISITOR)
    context = ssl.create_default_context(cafile=str(folder / "bundle.pem"))
    context.check_hostname = False  # a SPIFFE id is no host name
    context.load_cert_chain(folder / "svid.pem")
    connection = HTTPSConnection(member.address, timeout=GIVE_UP_S, context=context)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        text = reply.read().decode()
    finally:
        connection.close()
    if reply.status != 200:
        raise ConnectionError(f"{member.name} answers {path} with {reply.status} {text[:300]}")
    return text


def _know_each_other(stage: Stage, names: set[str]) -> bool:
    """Are all registered, as they and the config service say, and has each been told of all that it follows?"""
    told = all("registered as" in stage.shop.log(name).read_text() for name in names)
    if not told or not names <= stage.control.ready():
        return False
    processes = stage.control.status()["processes"]
    return names <= {one["instance"] for one in processes} and not any(one["behind"] for one in processes)


def _attempts(stage: Stage, tokens: dict[str, JoinToken]) -> list[Attempt]:
    good = tokens["orders"]
    strangers = JoinToken.create(secrets.token_hex(32))
    return [
        Attempt("forged", "orders", replace(good, secret=strangers.secret), _is_unauthorized),
        Attempt("used up", "orders", good, _is_unauthorized),
        Attempt("of another mesh", "orders", strangers, lambda error: isinstance(error, IdentityError)),
        Attempt(
            "of another service", "orders", stage.control.create_token("inventory", 1),
            lambda error: isinstance(error, ValueError),
        ),
    ]  # fmt: skip


def _is_unauthorized(error: Exception) -> bool:
    return isinstance(error, ControlRefusal) and error.status == _UNAUTHORIZED


def _refusal(shop: Shop, attempt: Attempt) -> str:
    """With which words an attempt was refused as it must be; '' where it was not."""
    error = _try_to_join(shop, attempt.service, attempt.brings)
    return str(error).partition("\n")[0] if error is not None and attempt.refused(error) else ""


def _try_to_join(shop: Shop, service: str, token: JoinToken) -> Exception | None:
    """Join as a process of `service` on a host of its own. Why not, or None: it did, and its files are there."""
    shop.write_token("stranger", str(token))
    authority = RemoteAuthority([shop.url], TRUST_DOMAIN, "stranger")
    name = f"{service}.default"
    source = ControlSource(_folder(shop, service), TRUST_DOMAIN, name, authority, shop.token_file("stranger"))
    try:
        source.fetch()
    except (MeshError, OSError, ValueError) as error:
        return error
    return None


def _folder(shop: Shop, service: str) -> Path:
    return shop.folder / "host-of-strangers" / f"{service}.default"


def _count(refused: dict[str, str]) -> int:
    return sum(map(bool, refused.values()))
