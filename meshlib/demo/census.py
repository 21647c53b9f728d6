"""What the processes say on `/metrics`: the counters of all of them together, those that have ended included.

A process that is about to end is asked once more before; what it served between that and its end is not counted here.
Source: Prometheus text exposition 0.0.4.
"""

from __future__ import annotations

import re
from collections import Counter
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple, Protocol

SCRAPE_WITHIN_S = 2.0
_SAMPLE = re.compile(r"(meshlib_\w+?)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Member(Protocol):
    """A process of the mesh. `admin`: host:port of its probes. `run`: which start of it this is."""

    name: str
    service: str
    admin: str
    address: str
    run: int


class Sample(NamedTuple):
    """One line of an exposition."""

    labels: dict[str, str]
    value: float


Samples = dict[str, list[Sample]]


def parse(text: str) -> Samples:
    """The samples of meshlib's families, by family; buckets of histograms are left out."""
    found: Samples = {}
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is not None and not match[1].endswith("_bucket"):
            found.setdefault(match[1], []).append(Sample(dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


def total(samples: Samples, family: str) -> float:
    """The sum of a family over all its labels."""
    return sum(sample.value for sample in samples.get(family, ()))


def fetch(admin: str, page: str) -> tuple[int, str]:
    """Status and text of an admin page. OSError when nobody answers in time."""
    host, _, port = admin.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=SCRAPE_WITHIN_S)
    try:
        connection.request("GET", page)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    except HTTPException as error:
        raise ConnectionError(f"http://{admin}{page} broke off: {error!r}") from None
    finally:
        connection.close()


class Census:
    """The last samples of every process there has been."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], tuple[Member, Samples]] = {}

    def scrape(self, member: Member) -> Samples:
        """Its samples now, remembered. OSError when it does not answer."""
        try:
            samples = parse(fetch(member.admin, "/metrics")[1])
        except OSError as error:
            raise ConnectionError(f"{member.name} does not answer on http://{member.admin}/metrics: {error}") from None
        self._last[member.name, member.run] = member, samples
        return samples

    def edges(self) -> Counter[tuple[str, str]]:
        """(source, destination) → requests, as the servers counted them."""
        counted: Counter[tuple[str, str]] = Counter()
        for member, samples in self._last.values():
            for labels, value in samples.get("meshlib_served_total", ()):
                counted[labels["source"].removesuffix(".default"), member.service] += int(value)
        return counted

    def retries(self, service: str = "") -> int:
        """Attempts beyond the first, made by the processes of `service`, or by all."""
        return sum(
            int(sample.value)
            for member, samples in self._last.values()
            if service in ("", member.service)
            for sample in samples.get("meshlib_attempts_total", ())
            if sample.labels["reason"] != "first"
        )
