"""What a process would start with, here and now: which mesh.yaml, which state_dir, which config service.

The same order as in a process (engine): an argument, then the environment, then the file. Nothing is started. A file
whose policy is broken still says where the config service is, and just then somebody wants to ask it: so its bootstrap
part is enough here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError
from .output import no

if TYPE_CHECKING:
    from ..config import MeshConfig

config_option = click.option(
    "--config", type=click.Path(exists=True), help="The mesh.yaml. Default: $MESHLIB_CONFIG, ./mesh.yaml."
)


def mesh_file(config: str | None) -> str:
    """The path of the mesh.yaml that counts; it need not exist."""
    return config or os.environ.get("MESHLIB_CONFIG") or "mesh.yaml"


def load_mesh(config: str | None) -> MeshConfig:
    """The mesh.yaml that counts, or at least its bootstrap part: then a line on stderr says so. Where that is broken
    too, its problems end the command, exit code 1.
    """
    file = mesh_file(config)
    mesh, error = read_mesh(file)
    if mesh is None:
        no(str(error))
    if error is not None:
        click.echo(f"{file} is not valid, and only its bootstrap part is used: meshlib check {file}", err=True)
    return mesh


def read_mesh(file: str) -> tuple[MeshConfig | None, ConfigError | None]:
    """A mesh.yaml, and what is wrong with it: then only its bootstrap part, or None where that is broken too."""
    from ..config import load_bootstrap, load_config

    try:
        return load_config(file), None
    except ConfigError as error:
        try:
            return load_bootstrap(file), error
        except ConfigError:
            return None, error


def state_dir_of(mesh: MeshConfig) -> Path:
    """$MESHLIB_STATE_DIR or the file's, relative to the folder of the file."""
    return mesh.directory / (os.environ.get("MESHLIB_STATE_DIR") or mesh.state_dir)


def urls_of(mesh: MeshConfig) -> tuple[str, ...]:
    """$MESHLIB_CONTROL_URLS or the file's; () where there is no config service. ConfigError for bad ones."""
    from ..config.environment import control_urls

    return control_urls(os.environ) or (mesh.control.urls if mesh.control is not None else ())
