"""What the operator is shown: services with their instances, processes with what they have. Nothing is changed here.

A mesh has thousands of each, so one answer has at most `SHOWN_MAX` of them, in the order of their names; `after` asks
for the next. The instances are listed where that is not more of them in all, or for the one `service` asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from .catalog import Catalog
from .polls import Process
from .registry import Listed

SHOWN_MAX = 500
"""Services, instances of one service, or processes in one answer, more are asked for with `after`; and resources that
are named of one process."""
QUERY_BYTES_MAX = 1024
"""Bytes of a query string; a longer one is malformed."""
NAME_CHARS_MAX = 256
"""Characters of `service` and `after`; longer ones are malformed: no name is as long."""


class Page(NamedTuple):
    """What part of it is asked for: `service`: of this one only, '' for all; `after`: what sorts behind this."""

    service: str
    after: str


def page_of(query: bytes) -> Page:
    """`service=…&after=…`, or ValueError."""
    if len(query) > QUERY_BYTES_MAX:
        raise ValueError(f"the query has more than {QUERY_BYTES_MAX} bytes")
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="strict", max_num_fields=8)
    asked = dict(pairs)
    if len(asked) != len(pairs) or not asked.keys() <= {"service", "after"}:
        raise ValueError("a query has `service` and `after`, each at most once")
    if any(len(value) > NAME_CHARS_MAX for value in asked.values()):
        raise ValueError(f"`service` and `after` have at most {NAME_CHARS_MAX} characters")
    return Page(asked.get("service", ""), asked.get("after", ""))


def services(catalog: Catalog, listed: Iterable[Listed], page: Page, now: float) -> dict[str, Any]:
    """The answer to GET /v1/services."""
    by_name: dict[str, list[Listed]] = {name: [] for name in catalog.services()}
    in_policy = set(by_name)
    for one in listed:
        by_name.setdefault(one.instance.service, []).append(one)
    names = [page.service] if page.service in by_name else [] if page.service else sorted(by_name)
    shown, more = _cut(name for name in names if page.service or name > page.after)
    if page.service or sum(len(by_name[name]) for name in shown) <= SHOWN_MAX:
        chosen = {name: _chosen(by_name[name], page.after if page.service else "") for name in shown}
    else:
        chosen = {}
    answer = [
        {
            "name": name,
            "policy": name in in_policy,
            "n": catalog.version(f"service/{name}")[1],
            "instances": len(by_name[name]),
            "shown": [_instance(one, now) for one in chosen.get(name, ())],
        }
        for name in shown
    ]
    return {"services": answer, "more": more}


def processes(catalog: Catalog, polling: Iterable[Process], page: Page, now: float) -> dict[str, Any]:
    """`processes`, `polling` and `more` of the answer to GET /v1/status."""
    every = sorted(polling, key=_name)
    asked = (one for one in every if page.service in ("", one.service) and _name(one) > page.after)
    shown, more = _cut(asked)
    return {"processes": [_process(one, catalog, now) for one in shown], "polling": len(every), "more": more}


def _cut(items: Iterable[Any]) -> tuple[list[Any], bool]:
    found = list(islice(items, SHOWN_MAX + 1))
    return found[:SHOWN_MAX], len(found) > SHOWN_MAX


def _chosen(listed: list[Listed], after: str) -> list[Listed]:
    return _cut(one for one in sorted(listed, key=lambda one: one.instance.id) if one.instance.id > after)[0]


def _instance(listed: Listed, now: float) -> dict[str, Any]:
    instance = listed.instance
    return {
        "instance": instance.id,
        "address": instance.address,
        "zone": instance.zone,
        "weight": instance.weight,
        "labels": dict(instance.labels),
        "state": listed.state,
        "lease_s": None if listed.until == math.inf else round(max(0.0, listed.until - now), 1),
    }


def _process(process: Process, catalog: Catalog, now: float) -> dict[str, Any]:
    return {
        "service": process.service,
        "instance": process.instance,
        "serial": f"{process.serial:x}",
        "registered": process.registered,
        **_standing(process, catalog),
        "load": process.load,
        "info": process.info,
        "seen_s": None if process.ended_at == math.inf else round(now - process.ended_at, 1),
    }


def _standing(process: Process, catalog: Catalog) -> dict[str, Any]:
    """What it follows, by what has become of it there."""
    behind, ignored = _behind(process, catalog), process.rejected
    applied = [resource for resource in process.resources if resource not in ignored and resource not in set(behind)]
    return {"applied": applied[:SHOWN_MAX], "behind": behind[:SHOWN_MAX], "ignored": ignored}


def _behind(process: Process, catalog: Catalog) -> list[str]:
    """What has changed since it had everything, or what it had not when it last asked."""
    if not process.since:
        return list(process.behind)
    had: Mapping[str, tuple[str, int]] = dict.fromkeys(process.resources, (catalog.epoch, process.since))
    now = catalog.closure(process.interest.own, process.interest.want)
    return [resource for resource in now if catalog.has_newer((resource,), had)]


def _name(process: Process) -> str:
    return f"{process.service}/{process.instance}"
