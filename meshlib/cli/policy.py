"""`check`, `schema`, `explain`: a policy looked at before it is live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .output import NO, as_json, mesh_errors, print_json

if TYPE_CHECKING:
    from ..config import MeshConfig

policy_file = click.argument("file", type=click.Path(exists=True))


@click.command()
@policy_file
@as_json
def check(file: str, json: bool) -> None:
    """Check a mesh.yaml, or a directory of them, and print every problem.

    \b
    Example:
      meshlib check mesh.yaml && git push
    """
    from ..config import load_config

    try:
        config = load_config(file)
    except ConfigError as error:
        _show_problems(file, error, json)
        raise SystemExit(NO) from None
    counts = _counts(config)
    if json:
        print_json({"ok": True, "mesh": config.mesh, **counts, "version": config.version_number, "problems": []})
        return
    said = ", ".join(_many(count, what.removesuffix("s")) for what, count in counts.items())
    click.echo(f"{file}: {click.style('ok', fg='green')}: mesh {config.mesh}, {said}, version {config.version_number}")
    for name, subset in _empty_subsets(config):
        click.echo(f"{file}: note: subset {subset!r} of {name} selects none of its endpoints", err=True)


def _empty_subsets(config: MeshConfig) -> list[tuple[str, str]]:
    """Subsets of services that have endpoints, but none with these labels: calls to them fail until one comes.

    Not those of services that are registered or named: who they are is not in the file.
    """
    return [
        (name, subset)
        for name in config.names()
        for subset, labels in config.services[name].subsets.items()
        if config.endpoints(name)
        and not (config.has_registry(name) or config.questions(name))
        and not any(endpoint.has(labels) for endpoint in config.endpoints(name))
    ]


@click.command()
@as_json
def schema(json: bool) -> None:
    """Print the JSON Schema (2020-12) of mesh.yaml, for editors; it is JSON with and without --json.

    \b
    Example:
      meshlib schema > mesh.schema.json
    """
    from ..config.load import json_schema

    print_json(json_schema())


@click.command()
@policy_file
@click.argument("service", required=False)
@click.option("--method", default="GET", show_default=True, help="Method of the call.")
@click.option("--path", default="/", show_default=True, help="Path of the call; it may have a query.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="A header; give it again for more.")
@click.option("--host", help="Host of the call. Default: the service.")
@click.option("--source", help="Who calls: `name` or `name.namespace`.")
@click.option("--gateway", help="Which gateway, where SERVICE is left out. Default: the first that takes it.")
@click.option("--port", type=int, help="Port of the gateway's listener. Default: any.")
@as_json
def explain(file: str, service: str | None, headers: tuple[str, ...], json: bool, **call: Any) -> None:
    """Say what would happen to a call to SERVICE: its route, backends, timeout, retries, and who decided.

    Without SERVICE: to a request at a gateway.

    The exit code is 1 where no route takes it.

    \b
    Example:
      meshlib explain mesh.yaml inventory --path /items/7 --header x-beta=1 --source orders
      meshlib explain mesh.yaml --host www.shop.example --path /items/7
    """
    from ..explanation import explain as explained

    if not call["path"].startswith("/"):
        raise click.BadParameter(f"{call['path']!r} must begin with /", param_hint="--path")
    with mesh_errors():
        answer = explained(file, service, headers=_header_values(headers), **call)
    if json:
        print_json(answer.to_dict())
    else:
        click.echo(str(answer))
    if answer.status is not None:
        raise SystemExit(NO)


def _show_problems(file: str, error: ConfigError, json: bool) -> None:
    from ..config.problems import MAX_PROBLEMS

    if json:
        fields = ("file", "line", "column", "path", "message")
        listed = [{field: getattr(problem, field) for field in fields} for problem in error.problems]
        whole = [] if listed else [{"file": file, "line": 0, "column": 0, "path": "", "message": str(error)}]
        print_json({"ok": False, "problems": listed or whole})
        return
    click.echo(str(error), err=True)
    shown = len(error.problems) or 1
    count = _many(shown, "problem") if shown <= MAX_PROBLEMS else f"more than {MAX_PROBLEMS} problems"
    click.echo(f"{file}: {click.style(count, fg='red')}", err=True)


def _counts(config: MeshConfig) -> dict[str, int]:
    return {
        "services": len(config.services),
        "endpoints": sum(len(config.endpoints(name)) for name in config.services),
        "routes": sum(len(service.routes) for service in config.services.values())
        + sum(len(gateway.routes) for gateway in config.gateways.values()),
    }


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _header_values(given: tuple[str, ...]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} must be NAME=VALUE", param_hint="--header")
        headers.setdefault(name, []).append(value)
    return headers
