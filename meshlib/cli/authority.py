"""`ca`: the certificate authority of the mesh: the config service's, or the local one of `identity: {source: dev}`.

Which of them, mesh.yaml says. The config service is asked as the operator; the local one is a folder of this machine.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .bootstrap import config_option, load_mesh, state_dir_of
from .operator import operator_of, token_option
from .output import as_json, moment, no, print_json, refuse, span, table

if TYPE_CHECKING:
    from ..config import MeshConfig
    from ..identity.roots import Roots

_SERIAL = re.compile("(0x)?[0-9a-fA-F:]{1,60}")


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
@config_option
@click.option("--state-dir", type=click.Path(exists=True, file_okay=False), help="The folder itself, without a file.")
@token_option
@as_json
def rotate(root: bool, config: str | None, state_dir: str | None, token_file: str | None, json: bool) -> None:
    """Let every process take a new certificate. No call fails.

    With --root a new root is made too, which is believed by all before it signs. Of a config service, processes take
    theirs spread over some time; of a local authority (`identity: {source: dev}`), within a second or two.

    \b
    Example:
      meshlib ca rotate --config mesh.yaml
    """
    if config is not None and state_dir is not None:
        raise click.UsageError("--config and --state-dir name the same thing: give one of them")
    if state_dir is not None:
        generation, whose = _rotate_local(Path(state_dir), root), {"state_dir": state_dir}
    elif _is_remote(mesh := load_mesh(config)):
        generation = _asked(mesh, token_file, "POST", "/v1/ca/rotate", {"root": root})["generation"]
        whose = {"mesh": mesh.mesh}
    else:
        folder = state_dir_of(mesh)
        generation, whose = _rotate_local(folder, root), {"state_dir": str(folder)}
    if json:
        print_json({"generation": generation, "rotated": "root" if root else "leaves", **whose})
    else:
        what = "new leaves" if not root else "a new root and new leaves"
        if root and "mesh" in whose:
            what = "a new root is believed; it signs once every process believes it: meshlib ca show"
        click.echo(f"{next(iter(whose.values()))}: generation {generation}, {what}")


@ca.command()
@click.argument("serial")
@config_option
@token_option
@as_json
def revoke(serial: str, config: str | None, token_file: str | None, json: bool) -> None:
    """Revoke the certificate with this SERIAL (hexadecimal), and those that were renewed from it.

    Every process refuses them from then on. Serials are shown by `meshlib status` and `meshlib identity`.

    \b
    Example:
      meshlib ca revoke 5a0f3c
    """
    if not _SERIAL.fullmatch(serial):
        raise click.BadParameter("a serial is a hexadecimal number", param_hint="SERIAL")
    mesh = load_mesh(config)
    if not _is_remote(mesh):
        refuse("a local authority (identity: {source: dev}) revokes nothing; a config service does")
    plain = serial.lower().removeprefix("0x").replace(":", "")
    revoked = _asked(mesh, token_file, "POST", "/v1/ca/revoke", {"serial": plain})["serials"]
    if json:
        print_json({"serials": revoked})
    else:
        click.echo("\n".join(f"certificate {one} is revoked" for one in revoked))


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
    return "\n".join([*lines, *(f"certificate {serial} is revoked" for serial in found["revoked"])])


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
