"""The command line. Data goes to stdout, everything else to stderr.

Exit codes: 0 ok; 1 no (an invalid file, no route, a promise broken); 2 wrong usage, or refusing to start. Problems of a
file are printed as `file:line:column: path: sentence`. A command imports what it needs when it runs.
"""

from __future__ import annotations

import platform

import click

from .. import __version__
from .authority import ca
from .control import control
from .convergence import status
from .convert import convert
from .demonstration import demo
from .doctor import doctor
from .gateway import gateway
from .identity import identity
from .join_token import token
from .output import as_json, print_json
from .policy import check, explain, schema
from .services import services


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, message="meshlib %(version)s")
def meshlib() -> None:
    """A service mesh that is a Python library.

    \b
    Example:
      meshlib check mesh.yaml
      meshlib explain mesh.yaml inventory --path /items/7
      meshlib demo
    """


@meshlib.command()
@as_json
def version(json: bool) -> None:
    """Print the version of meshlib and of Python.

    \b
    Example:
      meshlib version
    """
    if json:
        print_json({"meshlib": __version__, "python": platform.python_version()})
    else:
        click.echo(f"meshlib {__version__}, Python {platform.python_version()}")


for command in (check, schema, explain, convert, control, gateway, status, services, token, ca, identity, doctor, demo):
    meshlib.add_command(command)
