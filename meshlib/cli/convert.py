"""`convert`: the policy of another system as a mesh.yaml."""

from __future__ import annotations

import click

from .output import NO, as_json, mesh_errors, print_json

SYSTEMS = ("gateway-api",)


@click.command()
@click.option("--from", "system", required=True, type=click.Choice(SYSTEMS), help="Whose documents they are.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--strict", is_flag=True, help="Exit code 1 where a field is approximated or dropped.")
@as_json
def convert(system: str, files: tuple[str, ...], strict: bool, json: bool) -> None:
    """Print the mesh.yaml that FILES of another system mean, and, beside it, what became of what is not kept.

    \b
    Example:
      meshlib convert --from gateway-api gateway.yaml routes.yaml > mesh.yaml
    """
    from ..interop.conversion import convert as converted

    with mesh_errors():
        conversion = converted(system, list(files))
    changed = [line for line in conversion.report if line.outcome != "kept"]
    if json:
        lines = [
            {"document": line.document, "field": line.field, "outcome": line.outcome, "why": line.why}
            for line in conversion.report
        ]
        print_json({"mesh": dict(conversion.mesh), "report": lines})
    else:
        click.echo(conversion.to_yaml(), nl=False)
        for line in changed:
            click.echo(str(line), err=True)
        kept = len(conversion.report) - len(changed)
        click.echo(f"{kept} fields kept, {len(changed)} approximated or dropped", err=True)
    if strict and changed:
        raise SystemExit(NO)
