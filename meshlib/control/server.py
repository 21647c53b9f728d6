"""The config service as a process: its folder, what it refuses to start with, how it listens and how it ends.

    <state_dir>/control/   ca/authority.json · store.sqlite · operator-token · policy-source      all of this user alone

With a mesh.yaml that is broken it begins with the policy that was in force last, and says so; without one it does not
start. Nor where `policy_source` is another than at the last start: then a file would replace what was put, or what was
put a file, and nobody would have said so. SIGTERM: every poll is answered at once, nothing is accepted any more, and
the process is gone within two seconds. kill -9 at any moment loses nothing that was answered: that is the store's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import random
import resource
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..config import MeshConfig, load_bootstrap
from ..config.bootstrap import parse_control_url
from ..config.endpoints import parse_address
from ..errors import ConfigError
from ..identity import private_folder
from ..identity.authority_file import AuthorityFile
from ..identity.join_token import JoinToken
from ..transport.serving import MeshServer
from .api import Api
from .issuance import Issuer
from .memory import keep_large_blocks_apart
from .plane import ControlPlane
from .protocol import CONNECTIONS_MAX, ControlProtocol, Listening
from .store import Store
from .watch import PolicyWatch, Read, parse_policy, read_policy
from .who import Gate

GRACE_S = 0.5
"""How long requests under way may take once the service ends, in seconds, after all polls are answered."""
LAST_S = 1.25
"""When the connections that are still there are cut off, in seconds after the service was told to end."""
FILES_BESIDE = 64
"""Files of the process that are no connections: that many fewer connections than the system allows files."""

_STORE, _OPERATOR_TOKEN, _POLICY_SOURCE = "store.sqlite", "operator-token", "policy-source"

_log = logging.getLogger("meshlib.control")


@dataclass(frozen=True, slots=True)
class Settings:
    """`config`: the mesh.yaml, or a directory of them. `listen`: host:port; '' takes the first of `control.urls`.
    `state_dir`: None takes the file's, or `.meshlib` beside it.
    """

    config: Path
    listen: str = ""
    state_dir: Path | None = None


class _Opened(NamedTuple):
    """What is there before anything is served. `bootstrap`: what the file says of this service itself. `stored`: the
    policy is set by PUT. `broken`: why the file's policy is not in force.
    """

    read: Read
    bootstrap: MeshConfig
    stored: bool
    broken: ConfigError | None
    store: Store
    folder: Path


class ControlServer(MeshServer):
    """MeshServer, which answers every poll the moment that it is told to stop, and waits for nobody after `LAST_S`."""

    plane: ControlPlane | None = None

    def _stop(self, force: bool) -> None:
        if self.plane is not None:
            self.plane.stop_holding()
        super()._stop(force)
        asyncio.get_running_loop().call_later(LAST_S, self._cut_off)

    def _cut_off(self) -> None:
        if self._server is not None:
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()


def run(settings: Settings) -> None:
    """Serve until a signal. ConfigError, StoreError, OSError or ValueError, each with a sentence, where it does not
    start.
    """
    keep_large_blocks_apart()
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    else:
        _log.warning(
            "uvloop is not installed: a process that polls costs 300 KiB here instead of 60 (pip install uvloop)"
        )
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(settings))


async def serve(
    settings: Settings,
    *,
    protocol: type[ControlProtocol] = ControlProtocol,
    plaintext: bool = False,
    on_listening: Callable[[ControlServer], Any] | None = None,
) -> None:
    """The same on the running loop. `plaintext`: for tests and measurements alone."""
    watch_told: list[Callable[[Read | ConfigError], Any]] = []
    watch = PolicyWatch(settings.config, lambda read: watch_told[0](read))
    if settings.listen:
        _given_address(settings.listen)  # a slip is said before anything is made, or waited for
    opened = _open(settings)
    try:
        bind, port = _listen_at(settings.listen, opened.bootstrap)
        plane, tick = _plane(opened, plaintext)
        source = "store" if opened.stored else "file"
        private_folder.replace(opened.folder / _POLICY_SOURCE, f"{source}\n".encode("ascii"))
    except BaseException:
        opened.store.close()
        raise
    loop = asyncio.get_running_loop()
    watch_told.append(lambda read: loop.call_soon_threadsafe(plane.spawn, "the edited policy", plane.edited, read))
    server = ControlServer(
        Api(plane, stored=opened.stored), bind=bind, port=port, propagation_s=0.0, grace_s=GRACE_S, on_tick=tick,
        protocol=protocol, on_listening=lambda _: on_listening and on_listening(server),
    )  # fmt: skip
    server.plane = plane
    try:
        if opened.broken is not None:
            await plane.edited(opened.broken)
        if not opened.stored:
            watch.follow(opened.broken or opened.read)
            watch.start()
        await server.serve()
    finally:
        watch.stop()
        await plane.close()


def _open(settings: Settings) -> _Opened:
    """The folder, the store in it, and the policy to begin with."""
    read, bootstrap, broken = _read(settings.config)
    folder = _folder(settings, bootstrap)
    if broken is not None and not (folder / _STORE).exists():
        raise broken
    private_folder.make_private(folder.parent)
    private_folder.make_private(folder)
    store = Store.open(folder / _STORE)
    try:
        stored = _is_stored(bootstrap, store, folder)
        read = _choose(read, broken, store, stored)
        return _Opened(read, read.config if bootstrap is None else bootstrap, stored, broken, store, folder)
    except BaseException:
        store.close()
        raise


def _read(path: Path) -> tuple[Read | None, MeshConfig | None, ConfigError | None]:
    """The policy of the file, its bootstrap part, and what is wrong with it; None for what cannot be had of it."""
    try:
        read = read_policy(path)
    except ConfigError as error:
        try:
            return None, load_bootstrap(path), error
        except ConfigError:
            return None, None, error
    return read, read.config, None


def _is_stored(bootstrap: MeshConfig | None, store: Store, folder: Path) -> bool:
    """Is the policy set by PUT? By the file; where nothing can be had of it, as at the last start.

    ConfigError where both are known and differ: a file must not replace what was put just by being written otherwise.
    """
    file = folder / _POLICY_SOURCE
    try:
        last = private_folder.read(file).decode("ascii", "replace").strip()
    except FileNotFoundError:
        last = ""
    now = last if bootstrap is None else bootstrap.policy_source
    if not now and (policy := store.policy()) is not None:
        now = parse_policy(policy.document, policy.source).config.policy_source
    if last not in ("", now):
        loses = "the policy that was put last" if last == "store" else "what is edited in mesh.yaml"
        raise ConfigError(
            f"policy_source is {now}, and was {last} when this config service last started: {loses} would not be in "
            f"force any more. Set it back to {last}; or, if that is meant, remove {file}, and start again"
        )
    return now == "store"


def _choose(read: Read | None, broken: ConfigError | None, store: Store, stored: bool) -> Read:
    """The policy to begin with. ConfigError where there is none."""
    last = store.policy()
    if read is not None and not (stored and last):
        return read
    if last is None:
        raise broken or ConfigError("there is no policy")
    if read is None:
        _log.error("mesh.yaml is BROKEN, so the policy that was in force last is it again, version %d", last.n)
    return parse_policy(last.document, last.source)


def _folder(settings: Settings, config: MeshConfig | None) -> Path:
    state_dir = settings.state_dir
    if state_dir is None:
        beside = settings.config if settings.config.is_dir() else settings.config.parent
        state_dir = beside / ".meshlib" if config is None else config.directory / config.state_dir
    return state_dir / "control"


def _listen_at(listen: str, config: MeshConfig) -> tuple[str, int]:
    """Where to listen. The first URL's own address where it is one, else its port on all of this machine's."""
    if listen:
        return _given_address(listen)
    if config.control is None:
        raise ConfigError(
            f"{config.place(())}: there is no `control`, so nobody will come here: add `control: {{urls: "
            '["https://127.0.0.1:7443"]}`, or say where to listen with --listen'
        )
    host, port = parse_control_url(config.control.urls[0])
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = "127.0.0.1" if host == "localhost" else "0.0.0.0"  # noqa: S104 - others know it by that name
    return host, port


def _given_address(listen: str) -> tuple[str, int]:
    try:
        return parse_address(listen, lowest_port=0)
    except ValueError as error:
        raise ConfigError(f"--listen: {error}") from None


def _plane(opened: _Opened, plaintext: bool) -> tuple[ControlPlane, Callable[[], None]]:
    """And what is to be done about once a second."""
    config, store, folder = opened.bootstrap, opened.store, opened.folder
    authority = AuthorityFile(folder / "ca")
    issuer = Issuer(store, authority, config.trust_domain, config.ca.leaf_ttl, config.ca.root_ttl)
    operator, loop = keep_operator_token(folder, issuer, store), asyncio.get_running_loop()
    gate = Gate((operator.id, operator.secret_sha256), loop.time)

    def keep_token() -> None:
        try:
            token = keep_operator_token(folder, issuer, store)
        except (OSError, ValueError) as error:
            _log.error("the operator's token could not be kept: %s", error)
        else:
            gate.operator = (token.id, token.secret_sha256)

    listening = Listening(_connections_max(), plaintext=plaintext)
    plane = ControlPlane(
        opened.read, store, issuer, authority, listening, gate, random.SystemRandom(), after_rotation=keep_token
    )

    def tick() -> None:
        plane.tick()
        if not os.path.exists(folder / _OPERATOR_TOKEN):
            plane.spawn("the operator's token", plane.writer.run, keep_token)

    _log.info(
        "mesh %s: %d services, policy version %d, epoch %s",
        config.mesh, len(plane.catalog.services()), plane.policy.n, store.epoch,
    )  # fmt: skip
    return plane, tick


def keep_operator_token(folder: Path, issuer: Issuer, store: Store) -> JoinToken:
    """The operator's token of the file in `folder`, which is made where there is none, and names the root that all
    believe now. Whoever removes the file gets another one, within seconds where the service runs, and the one before is
    void.
    """
    path = folder / _OPERATOR_TOKEN
    try:
        kept = JoinToken.parse(private_folder.read(path).decode("ascii", "replace"))
    except FileNotFoundError:
        kept = None
    except ValueError as error:
        raise ValueError(f"{path}: {error}; remove the file to get a new token") from None
    token = issuer.create_operator() if kept is None else JoinToken(kept.id, kept.secret, issuer.root_sha256)
    if token != kept:
        private_folder.replace(path, f"{token}\n".encode("ascii"))
    if kept is None:
        _log.warning("the operator's token is in %s: whoever can read it may change this mesh", path)
    elif store.operator() != (token.id, token.secret_sha256):
        store.set_operator(token.id, token.secret_sha256)
    return token


def _connections_max() -> int:
    """As many as the system lets this process have, up to CONNECTIONS_MAX."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            hard = soft
    if hard == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return max(FILES_BESIDE, min(CONNECTIONS_MAX, hard - FILES_BESIDE))
