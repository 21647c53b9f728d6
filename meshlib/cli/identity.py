"""`identity`: who a process of this host is, or would be. By the files alone, so it works while nothing else does.

The leaf of a running process is in its memory, and is another than that of the files: of that, `meshlib status` tells.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from .bootstrap import config_option, load_mesh, state_dir_of
from .output import COLOURS, NO, as_json, moment, print_json, refuse, span
from .standing import enrolled, standing_of

if TYPE_CHECKING:
    from .standing import Standing

_NAMES = 10  # width of the column of names


@click.command()
@click.argument("service", required=False)
@config_option
@as_json
def identity(service: str | None, config: str | None, json: bool) -> None:
    """Show who SERVICE ($MESHLIB_SERVICE) is on this host: id, certificate, roots, snapshot, and what is wrong.

    It reads the state_dir, and works while the config service is away. The exit code is 1 when something is wrong.

    \b
    Example:
      meshlib identity orders
    """
    mesh = load_mesh(config)
    named = service or os.environ.get("MESHLIB_SERVICE")
    if not named:
        known = ", ".join(enrolled(state_dir_of(mesh))) or "none has enrolled on this host"
        refuse(f"name a service, or set MESHLIB_SERVICE; in {state_dir_of(mesh)}: {known}")
    now = time.time()
    try:
        standing = standing_of(mesh, named, now)
    except ValueError as error:
        refuse(str(error))
    if json:
        print_json(_data(standing, now))
    else:
        click.echo(_shown(standing, now))
    if standing.problems:
        raise SystemExit(NO)


def _data(standing: Standing, now: float) -> dict[str, Any]:
    certificate = snapshot = None
    if svid := standing.svid:
        certificate = {"serial": f"{svid.serial:x}", "not_before": svid.not_before, "not_after": svid.not_after}
    if standing.snapshot_at:
        resources = {resource: [epoch, n] for resource, epoch, n in standing.resources}
        age_s = round(now - standing.snapshot_at, 3)
        snapshot = {"written": standing.snapshot_at, "age_s": age_s, "resources": resources}
    return {
        "id": standing.id,
        "source": standing.source,
        "folder": str(standing.folder),
        "certificate": certificate,
        "roots": [
            {"sha256": root.sha256, "not_after": root.ends, "is_issuer": root.is_issuer} for root in standing.roots()
        ],
        "snapshot": snapshot,
        "problems": standing.problems,
    }


def _shown(standing: Standing, now: float) -> str:
    lines = [("id", standing.id), ("source", f"{standing.source}, in {standing.folder}")]
    if svid := standing.svid:
        lines.append(("serial", f"{svid.serial:x}"))
        lines.append(("valid", f"{moment(svid.not_before)} to {moment(svid.not_after)}, {_left(svid.not_after, now)}"))
    elif standing.would:
        lines.append(("valid", f"none yet: {standing.would}"))
    for root in standing.roots():
        what = ", issued the certificate" if root.is_issuer else ""
        lines.append(("root", f"sha256 {root.sha256}, {_left(root.ends, now)}{what}"))
    if standing.snapshot_at:
        age = span(now - standing.snapshot_at)
        lines.append(("snapshot", f"written {age} ago, {len(standing.resources)} resources"))
        width = max((len(resource) for resource, *_ in standing.resources), default=0)
        lines += [("", f"{resource:{width}}  {epoch[:8]}  {n}") for resource, epoch, n in standing.resources]
    shown = [f"{name:{_NAMES}}{text}" for name, text in lines]
    word = click.style(f"{'problem':{_NAMES}}", fg=COLOURS["problem"])
    return "\n".join([*shown, *(f"{word}{problem}" for problem in standing.problems)])


def _left(end: float, now: float) -> str:
    return f"{span(end - now)} left" if end > now else f"ended {span(now - end)} ago"
