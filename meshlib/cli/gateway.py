"""`gateway`: the same engine at the edge, for traffic from outside."""

from __future__ import annotations

import click

from ..errors import ConfigError


@click.command()
@click.option("--config", "config", required=True, type=click.Path(exists=True), help="The mesh.yaml with `gateways`.")
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="host:port; port 0 takes a free one.")
@click.option("--name", default="", help="Which gateway, where the file has several.")
def gateway(config: str, listen: str, name: str) -> None:
    """Serve a gateway: HTTP from outside to the services of the mesh.

    \b
    Example:
      meshlib gateway --config mesh.yaml --listen 127.0.0.1:8080
    """
    import asyncio
    import logging

    from .. import Mesh
    from ..config import load_config
    from ..config.endpoints import parse_address
    from ..gateway import chosen, serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        host, port = parse_address(listen, lowest_port=0)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None
    try:
        name = chosen(load_config(config), name)
        asyncio.run(
            serve(Mesh(name, config), name, host, port, lambda address: click.echo(f"gateway {name} on {address}"))
        )
    except (ConfigError, OSError) as error:
        click.echo(str(error), err=True)
        raise SystemExit(2) from None
