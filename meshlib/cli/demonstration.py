"""`demo`: a real mesh on this machine, and whether it keeps its promises."""

from __future__ import annotations

import click

from .output import REFUSED, as_json

NEEDED = ("rich", "fastapi", "flask", "uvicorn", "a2wsgi", "tenacity", "grpc", "grpc_health")


@click.command()
@click.option("--keep", is_flag=True, envvar="KEEP", help="Leave it running afterwards, until Ctrl-C.  [env: KEEP=1]")
@as_json
def demo(keep: bool, json: bool) -> None:
    """Start a config service and four services as processes, and check under traffic what a mesh promises.

    A canary is shifted, a broken policy refused, a fault injected, certificates are rotated, replicas killed and
    drained, and the config service itself is stopped and killed. It takes about a minute. The exit code is 0 when
    every promise was held.

    \b
    Example:
      meshlib demo --keep
    """
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        click.echo(f"meshlib: the demo needs {', '.join(missing)}: install service-meshlib[demo]", err=True)
        raise SystemExit(REFUSED)
    from ..demo.driver import run

    raise SystemExit(run(keep=keep, as_json=json))
