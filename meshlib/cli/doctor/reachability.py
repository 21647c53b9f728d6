"""Can the config service be reached from here, is it who it must be, and what time does it have?

Each URL is asked for itself, /healthz alone, which needs no credentials. Whom to believe: the roots of an enrolment of
this host, or the root that a token names; without either only the port can be tried. Nothing but that request is sent,
and no byte of it to a peer that proves to be somebody else. Source of the clock: the Date field, RFC 9110 §6.6.1.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from .finding import Finding, ok, problem, warning

TIMEOUT_S = 3.0
"""How long one URL may take to connect, and again to answer, in seconds."""

SKEW_S_MAX = 60.0
"""Clocks that differ by more than this do not believe each other's new certificates: they are backdated so much."""

NOTABLE_S = 5.0
"""A smaller difference is not worth a word: the Date field has whole seconds, and is made about once in one."""


class Anchor(NamedTuple):
    """Whom to believe. `context`: its handshakes succeed with `expected` alone. `by`: what says so, in words."""

    context: ssl.SSLContext
    expected: str
    by: str


def control(urls: Sequence[str], anchor: Anchor | None, wall: Callable[[], float] = time.time) -> Iterator[Finding]:
    """The config service at each of its URLs, and its clock against `wall`, in unix seconds."""
    skew = None
    for url in urls:
        finding, found = _ask(url, anchor, wall)
        yield finding
        skew = found if skew is None else skew
    if skew is not None:
        yield _clock(skew)


def _ask(url: str, anchor: Anchor | None, wall: Callable[[], float]) -> tuple[Finding, float | None]:
    """One URL: what is to be said, and by how many seconds its clock is ahead of ours, if it said."""
    from ...config.bootstrap import parse_control_url

    host, port = parse_control_url(url)
    try:
        if anchor is None:
            socket.create_connection((host, port), TIMEOUT_S).close()
            said = f"{url} can be reached; who it is can be told where there is a token, or an enrolment"
            return warning("config service", said), None
        return _healthz(url, (host, port), anchor, wall)
    except ssl.SSLCertVerificationError as error:
        said = f"{url} is somebody else, by {anchor and anchor.by}: {error.verify_message}"
    except (OSError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        said = f"{url} does not answer ({why}): is `meshlib control` running there, and the way open?"
    return problem("config service", said), None


def _healthz(
    url: str, address: tuple[str, int], anchor: Anchor, wall: Callable[[], float]
) -> tuple[Finding, float | None]:
    connection = http.client.HTTPSConnection(*address, timeout=TIMEOUT_S, context=anchor.context)
    try:
        connection.connect()
        before = wall()
        connection.request("GET", "/healthz")
        reply = connection.getresponse()
        reply.read(1024)
        now = (before + wall()) / 2
    finally:
        connection.close()
    skew = _skew_s(reply.getheader("date", ""), now)
    if reply.status != http.HTTPStatus.OK:
        return problem("config service", f"{url} is {anchor.expected}, and answers {reply.status}: see its log"), skew
    return ok("config service", f"{url} is {anchor.expected}, by {anchor.by}"), skew


def _skew_s(date: str, now: float) -> float | None:
    """By how much a Date field is ahead of `now`; None where it is none."""
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except ValueError:
        return None


def _clock(skew_s: float) -> Finding:
    apart = f"{abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} the config service"
    if abs(skew_s) > SKEW_S_MAX:
        said = f"this machine is {apart}: certificates will not be believed; set it by NTP (timedatectl)"
        return problem("clock", said)
    return ok("clock", f"this machine is {apart}" if abs(skew_s) >= NOTABLE_S else "agrees with the config service")
