"""`ca`: the local certificate authority of `identity: {source: dev}`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .output import as_json, mesh_errors, no, print_json


@click.group()
def ca() -> None:
    """The local certificate authority.

    \b
    Example:
      meshlib ca rotate
    """


@ca.command()
@click.option("--root", is_flag=True, help="Replace the root too; the one before it stays trusted.")
@click.option("--config", type=click.Path(exists=True), help="The mesh.yaml. Default: $MESHLIB_CONFIG, ./mesh.yaml.")
@click.option("--state-dir", type=click.Path(exists=True, file_okay=False), help="The folder itself, without a file.")
@as_json
def rotate(root: bool, config: str | None, state_dir: str | None, json: bool) -> None:
    """Let every process that uses the state_dir take a new certificate; they do within a second, and no call fails.

    With --root the new root is trusted by all before it signs, which takes two seconds.

    \b
    Example:
      meshlib ca rotate --config mesh.yaml
    """
    if config is not None and state_dir is not None:
        raise click.UsageError("--config and --state-dir name the same thing: give one of them")
    from ..identity.dev import rotate_leaves, rotate_root

    folder = Path(state_dir) if state_dir is not None else _state_dir(config)
    try:
        generation = rotate_root(folder) if root else rotate_leaves(folder)
    except (OSError, ValueError) as error:
        no(f"meshlib: {error}")
    if json:
        print_json({"generation": generation, "rotated": "root" if root else "leaves", "state_dir": str(folder)})
    else:
        click.echo(f"{folder}: generation {generation}, {'a new root and ' if root else ''}new leaves")


def _state_dir(config: str | None) -> Path:
    from ..config import load_config

    file = config or os.environ.get("MESHLIB_CONFIG") or "mesh.yaml"
    with mesh_errors():
        mesh = load_config(file)
    return mesh.directory / (os.environ.get("MESHLIB_STATE_DIR") or mesh.state_dir)
