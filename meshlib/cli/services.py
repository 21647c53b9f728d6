"""`services`: what the config service has registered: who is what, where, and until when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from .operator import by_operator
from .output import NO, print_json, span, table

if TYPE_CHECKING:
    from .operator import Operator

TITLES = ("SERVICE", "INSTANCE", "ADDRESS", "STATE", "ZONE", "WEIGHT", "LABELS", "LEASE")
"""Of the columns."""


@click.command()
@click.argument("service", required=False)
@by_operator
def services(operator: Operator, service: str | None, json: bool) -> None:
    """List the services of the mesh with their instances, or only SERVICE.

    A lease is held while the process polls, and ends soon after it stopped; an absent instance is still tried, and is
    forgotten when its time is over. The exit code is 1 when there is no such SERVICE.

    \b
    Example:
      meshlib services inventory
    """
    answers = operator.answers("/v1/services", "services", lambda one: str(one["name"]), service)
    found = [_complete(operator, one) for answer in answers for one in answer["services"]]
    if json:
        print_json({"services": found})
    elif found:
        click.echo(table(TITLES, [row for one in found for row in _rows(one)]))
    else:
        click.echo(f"there is no service {service}" if service else "there are no services", err=True)
    if service and not found:
        raise SystemExit(NO)


def _complete(operator: Operator, service: Mapping[str, Any]) -> dict[str, Any]:
    """A service with all of its instances, of which an answer has only so many."""
    shown, count = list(service["shown"]), service["instances"]
    while len(shown) < count:
        after = shown[-1]["instance"] if shown else ""
        answer = operator.ask("GET", "/v1/services?" + urlencode({"service": service["name"], "after": after}))
        more = [instance for one in answer["services"] for instance in one["shown"]]
        if not more:
            break  # some have left in the meantime
        shown += more
    facts = {name: value for name, value in service.items() if name != "shown"}
    return {**facts, "instances": shown}


def _rows(service: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    name = service["name"] if service["policy"] else f"{service['name']} (not in the policy)"
    if not service["instances"]:
        yield name, "-", "-", "nobody", "", "", "", ""
    for one in service["instances"]:
        labels = ",".join(f"{label}={value}" for label, value in sorted(one["labels"].items()))
        yield name, one["instance"], one["address"], one["state"], one["zone"], one["weight"], labels, _lease(one)


def _lease(instance: Mapping[str, Any]) -> str:
    left = instance["lease_s"]
    if left is None:
        return "held"
    return f"{span(left)} left" if instance["state"] == "ready" else f"gone in {span(left)}"
