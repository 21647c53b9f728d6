"""`ca`: the certificate authority of the mesh: the config service's, or the local one of `identity: {source: dev}`.

Which of them, mesh.yaml says. The config service is asked as the operator; the local one is a folder of this machine.
"""

from __future__ import annotations

import re
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .bootstrap import config_option, load_mesh, state_dir_of
from .operator import operator_of, token_option
from .output import as_json, moment, no, print_json, progress, refuse, span, table

if TYPE_CHECKING:
    from ..config import MeshConfig
    from ..identity.roots import Roots
    from .operator import Operator

SIGNS_WITHIN_S = 120.0
"""How long `rotate --root --wait` waits, in seconds: 60 for who does not say what it believes, and as much again."""
LOOK_S_MAX = 1.0
"""The longest time between two looks, in seconds."""

_SERIAL = re.compile("[0-9a-f]{1,40}")


def _serial(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    """As the config service writes it; it may be given as openssl does, `5A:0F:3C`, or with 0x."""
    plain = text.lower().removeprefix("0x").replace(":", "")
    if not _SERIAL.fullmatch(plain):
        raise click.BadParameter("a serial is a hexadecimal number of at most 40 digits: see `meshlib status`")
    return plain


@click.group()
def ca() -> None:
    """The certificate authority.

    \b
    Example:
      meshlib ca rotate
    """


@ca.command()
@config_option
@token_option
@as_json
def show(config: str | None, token_file: str | None, json: bool) -> None:
    """Show the roots that are believed, which of them signs, and what is revoked.

    \b
    Example:
      meshlib ca show
    """
    mesh = load_mesh(config)
    found = {
        "trust_domain": mesh.trust_domain,
        **(_asked(mesh, token_file, "GET", "/v1/ca") if _is_remote(mesh) else _local(mesh)),
    }
    if json:
        print_json(found)
    else:
        click.echo(_shown(found, time.time()))


@ca.command()
@click.option("--root", is_flag=True, help="Replace the root too; the one before it stays trusted.")
@click.option(
    "--force", is_flag=True, help="With --root: even if the last replacement is so recent that some may miss it."
)
@click.option("--wait", is_flag=True, help=f"With --root: until the new root signs, at most {SIGNS_WITHIN_S:.0f} s.")
@config_option
@click.option("--state-dir", type=click.Path(exists=True, file_okay=False), help="The folder itself, without a file.")
@token_option
@as_json
def rotate(
    root: bool, force: bool, wait: bool, config: str | None, state_dir: str | None, token_file: str | None, json: bool
) -> None:
    """Let every process take a new certificate. No call fails.

    With --root a new root is made too, which is believed by all before it signs. Of a config service, processes take
    theirs spread over some time; of a local authority (`identity: {source: dev}`), within a second or two.

    \b
    Example:
      meshlib ca rotate --config mesh.yaml
      meshlib ca rotate --root --wait
    """
    if config is not None and state_dir is not None:
        raise click.UsageError("--config and --state-dir name the same thing: give one of them")
    if (force or wait) and not root:
        raise click.UsageError("--force and --wait are about a new root: give --root with them")
    if state_dir is not None:
        generation, whose = _rotate_local(Path(state_dir), root), {"state_dir": state_dir}
    elif _is_remote(mesh := load_mesh(config)):
        with operator_of(mesh, token_file) as operator:
            asked = {"root": root, "force": True} if force else {"root": root}
            generation = operator.ask("POST", "/v1/ca/rotate", asked)["generation"]
            if wait:
                generation = _signing(operator)
        whose = {"mesh": mesh.mesh}
    else:
        folder = state_dir_of(mesh)
        generation, whose = _rotate_local(folder, root), {"state_dir": str(folder)}
    if json:
        print_json({"generation": generation, "rotated": "root" if root else "leaves", **whose})
    else:
        what = "new leaves" if not root else "a new root and new leaves"
        if root and "mesh" in whose and not wait:
            what = "a new root is believed; it signs once every process believes it: meshlib ca show"
        click.echo(f"{next(iter(whose.values()))}: generation {generation}, {what}")


def _signing(operator: Operator) -> int:
    """The generation, once the new root signs. Exit code 1 where it does not within SIGNS_WITHIN_S."""
    from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_random_exponential

    progress_once = cache(progress)
    patiently = Retrying(
        retry=retry_if_result(lambda found: found["rotating"]),
        wait=wait_random_exponential(multiplier=0.1, max=LOOK_S_MAX),
        stop=stop_after_delay(SIGNS_WITHIN_S),
        before_sleep=lambda _: progress_once("the new root signs once every process believes it; waiting …"),
    )
    try:
        found: dict[str, Any] = patiently(operator.ask, "GET", "/v1/ca")
    except RetryError:
        no(
            f"meshlib: the new root does not sign yet, after {SIGNS_WITHIN_S:.0f} s; it will once every process "
            "believes it: meshlib ca show"
        )
    return int(found["generation"])


@ca.command()
@click.argument("serial", callback=_serial)
@config_option
@token_option
@as_json
def revoke(serial: str, config: str | None, token_file: str | None, json: bool) -> None:
    """Revoke the certificate with this SERIAL (hexadecimal), with the whole enrolment that it is of.

    That is every certificate that its host and service have got, or will get, by the same use of a join token: the one
    of the enrolment, and all that were renewed from it. So every process of that service on that host is out, and needs
    a new join token. Every other process refuses them from then on. Serials are shown by `meshlib status` and `meshlib
    identity`.

    \b
    Example:
      meshlib ca revoke 5a0f3c
    """
    from ..identity.svid import enrolment_of

    mesh = load_mesh(config)
    if not _is_remote(mesh):
        refuse("a local authority (identity: {source: dev}) revokes nothing; a config service does")
    revoked = _asked(mesh, token_file, "POST", "/v1/ca/revoke", {"serial": serial})["serials"]
    if json:
        print_json({"serials": revoked})
    else:
        lines = [f"certificate {one} is revoked" for one in revoked]
        click.echo("\n".join([*lines, _enrolment_revoked(f"{enrolment_of(int(serial, 16)):x}")]))


def _is_remote(mesh: MeshConfig) -> bool:
    return mesh.identity.source == "control"


def _asked(
    mesh: MeshConfig, token_file: str | None, method: str, path: str, document: dict[str, Any] | None = None
) -> dict[str, Any]:
    with operator_of(mesh, token_file) as operator:
        return operator.ask(method, path, document)


def _shown(found: dict[str, Any], now: float) -> str:
    roots = [
        (root["role"], root["sha256"], moment(root["not_after"]), span(root["not_after"] - now))
        for root in found["roots"]
    ]
    lines = [f"trust domain {found['trust_domain']}, generation {found['generation']}"]
    lines.append(table(("ROOT", "SHA-256", "ENDS", "LEFT"), roots))
    return "\n".join([*lines, *map(_enrolment_revoked, found["revoked"])])


def _enrolment_revoked(enrolment: str) -> str:
    return f"enrolment {enrolment} is revoked: every certificate whose serial begins with it"


def _rotate_local(folder: Path, root: bool) -> int:
    from ..identity.dev import rotate_leaves, rotate_root

    try:
        return rotate_root(folder) if root else rotate_leaves(folder)
    except (OSError, ValueError) as error:
        no(f"meshlib: {error}")


def _local(mesh: MeshConfig) -> dict[str, Any]:
    from ..identity.authority_file import AuthorityFile

    folder = state_dir_of(mesh) / "dev-ca"
    try:
        roots = AuthorityFile(folder).read()
    except FileNotFoundError:
        no(f"meshlib: {folder} holds no authority yet; the first process of the mesh that starts makes one")
    except (OSError, ValueError) as error:
        no(f"meshlib: {error}")
    rotating = roots.coming is not None
    return {"generation": roots.generation, "rotating": rotating, "roots": _believed(roots), "revoked": []}


def _believed(roots: Roots) -> list[dict[str, Any]]:
    """As GET /v1/ca says it."""
    named = (("coming", roots.coming), ("signer", roots.signer), ("previous", roots.previous))
    return [
        {"role": role, "sha256": root.sha256, "not_after": root.not_after} for role, root in named if root is not None
    ]
