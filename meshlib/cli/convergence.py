"""`status`: has every process what the config service has published, and if not, why not.

    applied     it has the newest version of everything that it follows
    behind      something newer was published, and it has not taken it yet
    rejected    it was given something that it cannot use, and says why; what it had before stays in force there

A process that was told a moment ago is behind for a moment: that is no fault. So those that are behind are looked at
again, for at least SETTLE_S, before the answer is no.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from .duration import seconds
from .operator import by_operator
from .output import COLOURS, NO, moment, print_json, progress, span, table

if TYPE_CHECKING:
    from .operator import Operator

NAMED_MAX = 5
"""Processes that are named in one line; of more, how many."""

SETTLE_S = 3.0
"""A process may be behind this long, in seconds: changes are collected, and it asks at most twice a second."""

LOOK_S_MAX = 1.0
"""The longest time between two looks, in seconds."""

TITLES = ("SERVICE", "INSTANCE", "STATE", "LAST SEEN", "HOST", "PID", "CERTIFICATE")
"""Of the columns."""


def _patience(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    return None if text is None else seconds(text, plain=True)


@click.command()
@click.option("--service", help="Only the processes of this service; the exit code is 1 when it has none.")
@click.option(
    "--wait", metavar="DURATION", callback=_patience, help="Wait until all have applied, at most so long: 30s, 2m, 30."
)
@by_operator
def status(operator: Operator, service: str | None, wait: float | None, json: bool) -> None:
    """Show for each process whether it has applied the policy, what it has rejected, and what it is behind in.

    The exit code is 1 when a process has rejected something, stays behind, or when --service has none.

    \b
    Example:
      meshlib status --service inventory --wait 30s
    """
    found = _settled(operator, service, wait)
    if json:
        print_json(found)
    else:
        click.echo(_shown(found))
    if not _applied(found, service):
        raise SystemExit(NO)


def state_of(process: Mapping[str, Any]) -> str:
    """applied, behind or rejected: the worst of its resources."""
    return "rejected" if process["ignored"] else "behind" if process["behind"] else "applied"


def _settled(operator: Operator, service: str | None, wait: float | None) -> dict[str, Any]:
    """The status, once all have applied, or time is up: for who is behind at least SETTLE_S, for all else `wait`."""
    from tenacity import Retrying, retry_if_result, wait_random_exponential

    def worth_waiting(found: Mapping[str, Any]) -> bool:
        waited = time.monotonic() - began
        if wait is not None and waited < wait:
            return not _applied(found, service)
        return waited < SETTLE_S and any(one["behind"] for one in found["processes"])

    began, progress_once = time.monotonic(), cache(progress)
    patiently = Retrying(
        retry=retry_if_result(worth_waiting),
        wait=wait_random_exponential(multiplier=0.1, max=LOOK_S_MAX),
        before_sleep=lambda state: progress_once(_counted(state.outcome.result())) if state.outcome else None,
    )
    return patiently(_look, operator, service)


def _look(operator: Operator, service: str | None) -> dict[str, Any]:
    """Every page of the status as one."""
    pages = list(operator.answers("/v1/status", "processes", _name, service))
    return {**pages[-1], "processes": [process for page in pages for process in page["processes"]], "more": False}


def _name(process: Mapping[str, Any]) -> str:
    return f"{process['service']}/{process['instance']}"


def _applied(found: Mapping[str, Any], service: str | None) -> bool:
    there = bool(found["processes"]) or service is None
    return there and not found["problems"] and all(state_of(process) == "applied" for process in found["processes"])


def _counted(found: Mapping[str, Any]) -> str:
    counts = Counter(map(state_of, found["processes"]))
    said = ", ".join(f"{counts[state]} {state}" for state in ("applied", "behind", "rejected") if counts[state])
    return said or "no process polls"


def _shown(found: Mapping[str, Any]) -> str:
    from ..errors import Problem
    from ..telemetry.one_line import one_line

    policy = found["policy"]
    lines = [f"policy {policy['n']} of {moment(policy['at'])}, from {policy['source']}: {_counted(found)}"]
    if found["problems"]:
        lines.append(click.style("an edit of it is kept out:", fg="red"))
        lines += [f"  {one_line(str(Problem(**problem)))}" for problem in found["problems"]]
    if found["processes"]:
        lines.append(table(TITLES, map(_row, found["processes"])))
    return "\n".join([*lines, *_details(found["processes"])])


def _row(process: Mapping[str, Any]) -> tuple[object, ...]:
    info = process["info"]
    seen = "now" if process["seen_s"] is None else f"{span(process['seen_s'])} ago"
    who = (process["service"], process["instance"], state_of(process), seen)
    return (*who, info.get("host", ""), info.get("pid", ""), process["serial"])


def _details(processes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What is not applied, and why, once for all who say the same."""
    from ..telemetry.one_line import one_line

    by: dict[tuple[str, str, str], list[str]] = {}
    for process in processes:
        for resource, why in process["ignored"].items():
            by.setdefault(("rejected", resource, why), []).append(_name(process))
        for resource in process["behind"]:
            by.setdefault(("behind", resource, ""), []).append(_name(process))
    for (word, resource, why), names in by.items():
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        yield f"{click.style(word, fg=COLOURS[word])} {resource}: {', '.join(names[:NAMED_MAX])}{more}"
        yield from (f"  {one_line(line)}" for line in why.splitlines())
