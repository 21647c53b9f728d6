"""`doctor`: what is wrong with this machine, one line a finding, each with what to do.

In the order in which it would fail: the machine, mesh.yaml, files, certificate, config service. It changes nothing, and
it sends nothing but GET /healthz.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import ConfigError
from ..bootstrap import config_option, mesh_file, read_mesh, state_dir_of, urls_of
from ..operator import token_option
from ..output import COLOURS, NO, as_json, print_json, span
from .finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from ...config import MeshConfig
    from ..standing import Standing
    from .reachability import Anchor

_SUBJECT = 16


@click.command()
@click.option("--service", help="Whose certificate is looked at. Default: $MESHLIB_SERVICE, or all that enrolled here.")
@config_option
@token_option
@as_json
def doctor(service: str | None, config: str | None, token_file: str | None, json: bool) -> None:
    """Look for what is wrong with this machine, and say what to do. The exit code is 1 where something is.

    \b
    Example:
      meshlib doctor --service orders
    """
    found: list[Finding] = []
    for finding in _examined(config, service, token_file):
        found.append(finding)
        if not json:
            click.echo(_line(finding))
    counts = Counter(finding.level for finding in found)
    if json:
        findings = [{"level": one.level, "subject": one.subject, "said": one.said} for one in found]
        print_json({"problems": counts["problem"], "warnings": counts["warning"], "findings": findings})
    if counts["problem"]:
        raise SystemExit(NO)


def _line(finding: Finding) -> str:
    from ...telemetry.one_line import one_line

    level = click.style(f"{finding.level:9}", fg=COLOURS[finding.level])
    return f"{level}{finding.subject:{_SUBJECT}}{one_line(finding.said)}"


def _examined(config: str | None, service: str | None, given_token: str | None) -> Iterator[Finding]:
    from .machine import machine
    from .private_files import state_dir

    yield from machine(os.environ)
    finding, mesh = _mesh_yaml(config)
    yield finding
    if mesh is None:
        return
    folder = state_dir_of(mesh)
    yield from state_dir(folder)
    join = os.environ.get("MESHLIB_TOKEN_FILE")
    operator = given_token or os.environ.get("MESHLIB_OPERATOR_TOKEN_FILE") or _default_operator_token(folder)
    yield from _tokens(join, operator)
    standings = _standings(mesh, service)
    yield from _certificates(standings)
    yield from _control(mesh, standings, [file for file in (operator, join) if file])


def _mesh_yaml(config: str | None) -> tuple[Finding, MeshConfig | None]:
    file = mesh_file(config)
    if not os.path.exists(file):
        return problem("mesh.yaml", f"{file} is not there: name one by --config, or in MESHLIB_CONFIG"), None
    mesh, error = read_mesh(file)
    if mesh is None or error is not None:
        first, *others = str(error).splitlines()
        rest = f"; {len(others) + 1} problems in all: meshlib check {file}" if others else ""
        return problem("mesh.yaml", f"{first}{rest}"), mesh
    return ok("mesh.yaml", f"{file}: mesh {mesh.mesh}, identity by {mesh.identity.source}"), mesh


def _default_operator_token(folder: Path) -> str | None:
    file = folder / "control" / "operator-token"
    return str(file) if os.access(file, os.R_OK) else None


def _tokens(join: str | None, operator: str | None) -> Iterator[Finding]:
    from .private_files import token_file

    if join:
        yield token_file("join token", Path(join), "`meshlib token create` makes one")
    if operator:
        way_out = "the config service wrote it to <state_dir>/control/operator-token"
        yield token_file("operator token", Path(operator), way_out)


def _standings(mesh: MeshConfig, service: str | None) -> dict[str, Standing | str]:
    """Service → what the files say of it, or what is wrong with its name."""
    from ..standing import enrolled, standing_of

    named = service or os.environ.get("MESHLIB_SERVICE")
    found: dict[str, Standing | str] = {}
    for name in [named] if named else enrolled(state_dir_of(mesh)):
        try:
            found[name] = standing_of(mesh, name, time.time())
        except ValueError as error:
            found[name] = str(error)
    return found


def _certificates(standings: dict[str, Standing | str]) -> Iterator[Finding]:
    for name, standing in standings.items():
        if isinstance(standing, str):
            yield problem("identity", standing)
            continue
        yield from (problem("identity", f"{name}: {said}") for said in standing.problems)
        if standing.problems:
            continue
        if svid := standing.svid:
            left = span(svid.not_after - time.time())
            yield ok("identity", f"{standing.id}, certificate {svid.serial:x}, {left} left")
        elif standing.source == "dev":
            said = f"{standing.id}, by the local authority: whoever can read {standing.folder} is anybody"
            yield warning("identity", said)
        else:
            yield ok("identity", f"{standing.id}: {standing.would}")


def _control(mesh: MeshConfig, standings: dict[str, Standing | str], tokens: list[str]) -> Iterator[Finding]:
    from .reachability import control

    try:
        urls = urls_of(mesh)
    except ConfigError:
        return  # said with the environment
    if urls:
        yield from control(urls, _anchor(mesh, standings, tokens))


def _anchor(mesh: MeshConfig, standings: dict[str, Standing | str], tokens: list[str]) -> Anchor | None:
    """Whom to believe: an enrolment knows the current roots; a token knows one that may have been replaced."""
    from ...control_link import CONTROL_SERVICE
    from ...identity.join_token import JoinToken
    from ...identity.pinned import PinnedTls
    from ...identity.spiffe import SpiffeId
    from ...identity.tls import client_context
    from .private_files import TOKEN_BYTES_MAX
    from .reachability import Anchor

    expected = SpiffeId.for_service(mesh.trust_domain, CONTROL_SERVICE)
    for name, standing in standings.items():
        if not isinstance(standing, str) and standing.bundle:
            return Anchor(client_context(None, standing.bundle, expected), str(expected), f"the roots of {name}")
    for file in tokens:
        try:
            with open(file, "rb") as opened:
                token = JoinToken.parse(opened.read(TOKEN_BYTES_MAX).decode("ascii", "replace"))
        except (OSError, ValueError):
            continue
        return Anchor(PinnedTls(token.root_sha256, expected).context(), str(expected), f"the root in {file}")
    return None
