"""`control`: the config service."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from .bootstrap import config_option, mesh_file
from .output import refuse

NEEDED = ("uvicorn", "tenacity")


@click.command()
@config_option
@click.option("--listen", metavar="HOST:PORT", default="", help="Where to listen. Default: the first of control.urls.")
@click.option(
    "--state-dir", type=click.Path(file_okay=False), help="Default: $MESHLIB_STATE_DIR, the file's state_dir."
)
def control(config: str | None, listen: str, state_dir: str | None) -> None:
    """Run the config service: registry, policy and certificate authority of a mesh.

    It watches mesh.yaml: an edit that is valid is published, one that is not is logged and kept out. On its first
    start it writes the operator's token into the state_dir. SIGTERM ends it within two seconds. The exit code is 2
    where it refuses to start.

    \b
    Example:
      meshlib control --config mesh.yaml --listen 127.0.0.1:7443
    """
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        refuse(f"the config service needs {', '.join(missing)}: install service-meshlib[control]")
    from ..control.server import Settings, run
    from ..control.store import StoreError
    from ..errors import MeshError

    _log_to_stderr()
    file = Path(mesh_file(config))
    settings = Settings(file, listen, _state_dir(file, state_dir))
    try:
        run(settings)
    except (MeshError, StoreError, OSError, ValueError) as error:
        refuse(f"the config service does not start: {error}")


def _state_dir(file: Path, given: str | None) -> Path | None:
    """As it is given, or $MESHLIB_STATE_DIR relative to the file; None: the file says it."""
    if given is not None:
        return Path(given)
    named = os.environ.get("MESHLIB_STATE_DIR")
    return (file if file.is_dir() else file.parent) / named if named else None


def _log_to_stderr() -> None:
    level = os.environ.get("MESHLIB_LOG", "INFO").upper()
    if not isinstance(logging.getLevelName(level), int):
        refuse(f"MESHLIB_LOG={level}: a level is DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
