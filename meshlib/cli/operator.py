"""The operator's access to the config service: where it is, with which token, and whom to believe.

    where   $MESHLIB_CONTROL_URLS, then `control.urls` of mesh.yaml
    token   --token-file, $MESHLIB_OPERATOR_TOKEN_FILE, <state_dir>/control/operator-token where this user can read it
    whom    the service control.meshlib of the trust domain, by the root whose hash is in the token (identity.pinned)

A service that does not answer is waited for, a few seconds, and so is the default file: it may be starting. One that
proves to be somebody else is not: the token is not sent to it. Source: kubectl's and consul's order of argument,
environment, default file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from ..errors import IdentityError, MeshError
from .bootstrap import config_option, load_mesh, state_dir_of, urls_of
from .output import as_json, mesh_errors, no, progress, refuse

if TYPE_CHECKING:
    from ..config import MeshConfig
    from ..control_link import ControlLink
    from ..identity.join_token import JoinToken

PATIENCE_S = 5.0
"""How long a config service that does not answer is waited for, in seconds; then it is said to be away."""

AGAIN_S = 0.5
"""The longest wait between two tries, in seconds."""

TOKEN_BYTES_MAX = 4096
"""The longest token file; of a longer one the rest is not read, and it is refused."""

_UNAUTHORIZED = 401

token_option = click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False),
    help="The operator's token. Default: $MESHLIB_OPERATOR_TOKEN_FILE, <state_dir>/control/operator-token.",
)


def by_operator(command: Callable[..., None]) -> Callable[..., None]:
    """A command of the operator: it gets `operator`, and has --config, --token-file and --json."""

    @config_option
    @token_option
    @as_json
    @functools.wraps(command)
    def run(config: str | None, token_file: str | None, **given: Any) -> None:
        with operator_of(load_mesh(config), token_file) as operator:
            command(operator, **given)

    return run


@contextmanager
def operator_of(mesh: MeshConfig, token_file: str | None) -> Iterator[Operator]:
    """The operator of a mesh, for as long as the block. Where nobody can be asked: exit code 2, with what to do."""
    from ..control_link import CONTROL_SERVICE, ControlLink
    from ..identity.pinned import PinnedTls
    from ..identity.spiffe import SpiffeId

    with mesh_errors():
        urls = urls_of(mesh)
    if not urls:
        refuse(
            f"the mesh {mesh.mesh} has no config service to ask: its mesh.yaml has no `control`, and "
            "MESHLIB_CONTROL_URLS is not set"
        )
    file = operator_token_file(mesh, token_file)
    token = _read(file)
    link = ControlLink(urls, PinnedTls(token.root_sha256, SpiffeId.for_service(mesh.trust_domain, CONTROL_SERVICE)))
    try:
        yield Operator(link, token, file)
    finally:
        link.close()


class Operator:
    """Who asks over `link` with the operator's token, which is that of `file`. Made by `operator_of`."""

    def __init__(self, link: ControlLink, token: JoinToken, file: Path) -> None:
        self._link, self._token, self._file = link, token, file

    def ask(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer, which is a JSON object. A refusal or no answer ends the command, exit code 1."""
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        progress_once = functools.cache(progress)
        patiently = Retrying(
            retry=retry_if_exception(_is_away),
            wait=wait_random_exponential(multiplier=0.1, max=AGAIN_S),
            stop=stop_after_delay(PATIENCE_S),
            before_sleep=lambda _: progress_once(f"waiting for {', '.join(self._link.urls)} …"),
            reraise=True,
        )
        try:
            return patiently(self._link.ask, method, path, document, bearer=self._token.bearer)
        except MeshError as error:
            no(f"meshlib: {error}{self._way_out(error)}")

    def answers(
        self, path: str, items: str, name: Callable[[Any], str], service: str | None
    ) -> Iterator[dict[str, Any]]:
        """Every answer to GET `path`, which has a part of its `items` each; `name` of the last says where to go on.

        `service`: of this one only.
        """
        from ..config.fields import canonical_name

        asked = {} if service is None else {"service": canonical_name(service)}
        while True:
            answer = self.ask("GET", f"{path}?{urlencode(asked)}" if asked else path)
            yield answer
            if not answer["more"] or not answer[items]:
                return
            asked["after"] = name(answer[items][-1])

    def _way_out(self, error: MeshError) -> str:
        from ..control_link import ControlRefusal

        current = (
            "The current one is <state_dir>/control/operator-token on its host: copy it, or name it by --token-file."
        )
        if isinstance(error, IdentityError):
            return (
                f"\nIt does not prove the root that the token in {self._file} names, so the token was not sent. Is it "
                f"the token of another mesh, or was the root replaced? {current}"
            )
        if isinstance(error, ControlRefusal):
            return f"\nThe token was that of {self._file}. {current}" if error.status == _UNAUTHORIZED else ""
        return f"\nIs `meshlib control` running at {', '.join(self._link.urls)}, and the way open?"


def operator_token_file(mesh: MeshConfig, given: str | None) -> Path:
    """Where the operator's token is. Exit code 2 where none is known and the default cannot be read, once a service
    that may be starting here for the first time was waited for.
    """
    if given:
        return Path(given)
    if named := os.environ.get("MESHLIB_OPERATOR_TOKEN_FILE"):
        if not os.path.exists(named):  # its value is not shown: it may be the token itself
            refuse("MESHLIB_OPERATOR_TOKEN_FILE names no file that is there; it is the path of the operator's token")
        return Path(named)
    file = state_dir_of(mesh) / "control" / "operator-token"
    if not _comes(file):
        refuse(
            f"there is no operator's token: {file} is not there, or not for this user. The config service writes it on "
            "its own host when it first starts: copy it, and name it by --token-file or MESHLIB_OPERATOR_TOKEN_FILE"
        )
    return file


def _comes(file: Path) -> bool:
    """Can it be read, now or as soon as it is there?"""
    from tenacity import Retrying, retry_if_result, stop_after_delay, wait_random_exponential

    progress_once = functools.cache(progress)
    patiently = Retrying(
        retry=retry_if_result(lambda there: there is None),
        wait=wait_random_exponential(multiplier=0.05, max=AGAIN_S),
        stop=stop_after_delay(PATIENCE_S),
        before_sleep=lambda _: progress_once(f"waiting for {file} …"),
        retry_error_callback=lambda _: False,
    )
    return bool(patiently(_is_readable, file))


def _is_readable(file: Path) -> bool | None:
    """None: it is not there, which another user's folder does not say."""
    try:
        file.stat()
    except FileNotFoundError:
        return None
    except OSError:
        return False
    return os.access(file, os.R_OK)


def _read(file: Path) -> JoinToken:
    from ..identity.join_token import JoinToken

    try:
        with file.open("rb") as opened:
            return JoinToken.parse(opened.read(TOKEN_BYTES_MAX).decode("ascii", "replace"))
    except OSError as error:
        refuse(f"the operator's token cannot be read: {error}")
    except ValueError:
        refuse(f"{file} holds no operator's token; the config service wrote one to <state_dir>/control/operator-token")


def _is_away(error: BaseException) -> bool:
    """Is it worth asking again: did nobody answer, neither the service nor somebody else, and was nothing sent?"""
    from ..control_link import ControlRefusal

    answered = isinstance(error, (ControlRefusal, IdentityError))
    return isinstance(error, MeshError) and not answered and not error.sent
