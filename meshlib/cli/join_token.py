"""`token`: join tokens, by which new processes are let into the mesh.

The token itself goes to stdout or into a file of mode 0600, and nowhere else; what is said about it has its id only.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from .duration import seconds
from .operator import by_operator
from .output import moment, no, print_json, refuse, span, table

if TYPE_CHECKING:
    from .operator import Operator

_ID = re.compile("[0-9a-f]{12}")


def _life(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    """That a token may have, in seconds."""
    from ..control.messages import TOKEN_TTL_S_MAX

    life_s = seconds(text)
    if not 1 <= life_s <= TOKEN_TTL_S_MAX:
        raise click.BadParameter(f"a join token lives from 1s to {span(TOKEN_TTL_S_MAX)}")
    return life_s


def _uses(_context: click.Context, _parameter: click.Parameter, uses: int) -> int:
    """That a token may have."""
    from ..control.messages import USES_MAX

    if not 1 <= uses <= USES_MAX:
        raise click.BadParameter(f"a join token has from 1 to {USES_MAX} uses")
    return uses


def _canonical(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    """The canonical name of a service."""
    from ..config.fields import canonical_name, is_label

    if not all(map(is_label, name.split("."))) or name.count(".") > 1:
        raise click.BadParameter("a service is `name` or `name.namespace`, in lower case")
    return canonical_name(name)


def _id(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    """The id of a token; a whole token is one way to name it."""
    found = text.partition(".")[0]
    if not _ID.fullmatch(found):
        raise click.BadParameter("an id has 12 hexadecimal digits: see `meshlib token list`")
    return found


@click.group()
def token() -> None:
    """Join tokens, by which new processes get their identity.

    \b
    Example:
      meshlib token create orders --out orders.token
    """


@token.command()
@click.argument("service", callback=_canonical)
@click.option("--uses", type=int, callback=_uses, default=1, show_default=True, help="Processes that it admits.")
@click.option(
    "--ttl", metavar="DURATION", callback=_life, default="10m", show_default=True, help="How long it can be used."
)
@click.option("--out", type=click.Path(dir_okay=False), help="Write it to this new file, mode 0600, not to stdout.")
@by_operator
def create(operator: Operator, service: str, uses: int, ttl: float, out: str | None, json: bool) -> None:
    """Make a join token for SERVICE (`name` or `name.namespace`), and print it. It is shown this once.

    Give its file to the process in MESHLIB_TOKEN_FILE. The first process of a host uses it up; the others of the same
    service there need none.

    \b
    Example:
      meshlib token create orders --uses 3 --ttl 1h --out orders.token
    """
    with _new_file(out) as file:
        made = operator.ask("POST", "/v1/tokens", {"service": service, "uses": uses, "ttl_s": ttl})
        if file is not None:
            file.write(f"{made.pop('token')}\n")
    if json:
        print_json({**made, "file": out} if out is not None else made)
        return
    if out is None:
        click.echo(made["token"])
    many = "1 use" if made["uses"] == 1 else f"{made['uses']} uses"
    where = "" if out is None else f"{out}: "
    left = span(made["expires"] - time.time())
    click.echo(f"{where}join token {made['id']} for {made['service']}: {many}, ends in {left}", err=True)


@contextmanager
def _new_file(out: str | None) -> Iterator[TextIO | None]:
    """A new file for this user alone, there before a token is that could be lost, and gone if the block fails."""
    if out is None:
        yield None
        return
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        refuse(f"{out} is there already: remove it, or name another file by --out")
    except OSError as error:
        refuse(f"{out} cannot be written: {error.strerror}")
    try:
        with open(fd, "w", encoding="ascii") as file:
            yield file
    except BaseException as error:
        os.unlink(out)
        if isinstance(error, OSError):
            no(f"meshlib: {out} cannot be written: {error.strerror}; make another token")
        raise


@token.command("list")
@by_operator
def list_(operator: Operator, json: bool) -> None:
    """List the join tokens that can still be used, the first to end first.

    \b
    Example:
      meshlib token list
    """
    found = operator.ask("GET", "/v1/tokens")
    if json:
        print_json(found)
        return
    if not found["tokens"]:
        click.echo("there are no join tokens")
        return
    now = time.time()
    rows = [
        (
            one["id"],
            one["service"],
            f"{one['used']} of {one['uses']}",
            span(one["expires"] - now),
            moment(one["expires"]),
        )
        for one in found["tokens"]
    ]
    click.echo(table(("ID", "SERVICE", "USED", "ENDS IN", "ENDS"), rows))


@token.command()
@click.argument("token_id", metavar="ID", callback=_id)
@by_operator
def revoke(operator: Operator, token_id: str, json: bool) -> None:
    """End the join token with this ID. Who has enrolled with it stays in the mesh: see `meshlib ca revoke`.

    \b
    Example:
      meshlib token revoke 3f9a0c51d2e7
    """
    operator.ask("DELETE", f"/v1/tokens/{token_id}")
    if json:
        print_json({"id": token_id, "revoked": True})
    else:
        click.echo(f"join token {token_id} is revoked")
