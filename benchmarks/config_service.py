"""A config service in a process of its own, on the second core: started, looked at from outside, ended, started again.

    python -m benchmarks.config_service MESH_YAML HOST:PORT mtls | plain | asyncio

`mtls` is `meshlib control` as it is, `asyncio` the same without uvloop. `plain` is without TLS: there the address says
who asks, 127.<n>.x.y is `app-<n>`. The process ends with its stdin, so it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from meshlib.control.memory import keep_large_blocks_apart
from meshlib.control.protocol import CONNECTIONS_MAX, ControlProtocol
from meshlib.control.server import Settings, run, serve
from meshlib.identity.join_token import JoinToken
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import TrustBundle
from meshlib.transport.headers import PEER

Kind = Literal["mtls", "plain", "asyncio"]

DOMAIN = "bench.dev"
SERVICES = 100
"""`app-1` … `app-100` follow the policy; `app-0` and `inventory` are there too."""
FOLLOWED = "inventory.default"
"""What everybody wants, and what is changed."""
START_WITHIN_S = 20.0
END_WITHIN_S = 10.0


class ConfigService:
    """`with ConfigService(folder, "mtls") as service:` it listens on `port` of any loopback address, with a policy of
    102 services in `folder`.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder, self.kind, self.port = folder, kind, _free_port()
        self.mesh_yaml = folder / "mesh.yaml"
        self.url = f"https://127.0.0.1:{self.port}"
        names = ["inventory", *(f"app-{number}" for number in range(SERVICES + 1))]
        self._document: dict[str, Any] = {
            "version": 1,
            "mesh": "bench",
            "control": {"urls": [self.url]},
            "services": {name: {"timeout": "5s", "endpoints": [{"registry": {}}]} for name in names},
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.change(10.0)

    def __enter__(self) -> ConfigService:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    # What it is told

    def change(self, timeout_s: float) -> float:
        """Edit the policy of FOLLOWED: the monotonic time of the rename that makes it so."""
        self._document["services"]["inventory"]["timeout"] = f"{timeout_s:g}s"
        fresh = self.mesh_yaml.with_suffix(".new")
        fresh.write_text(json.dumps(self._document, indent=1))
        at = time.monotonic()
        fresh.rename(self.mesh_yaml)
        return at

    def operator(self) -> JoinToken:
        """The operator's token."""
        return JoinToken.parse((self.folder / ".meshlib" / "control" / "operator-token").read_text())

    def bundle(self) -> TrustBundle:
        """The roots of the mesh."""
        return TrustBundle(DOMAIN, (self.folder / ".meshlib" / "control" / "ca" / "bundle.pem").read_bytes())

    # Its life

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        pin = ["taskset", "-c", "1"] if (os.cpu_count() or 1) > 1 else []
        arguments = [str(self.mesh_yaml), f"127.0.0.1:{self.port}", self.kind]
        with (self.folder / "control.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*pin, sys.executable, "-m", "benchmarks.config_service", *arguments],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        give_up = time.monotonic() + START_WITHIN_S
        while not self._accepts():
            if time.monotonic() > give_up or self._process.poll() is not None:
                raise TimeoutError(f"the config service did not start:\n{self.log()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(lambda process: process.kill())

    def terminate(self) -> None:
        """SIGTERM, and wait until it is gone."""
        self._end(lambda process: process.terminate())

    def _end(self, how: Any) -> None:
        process, self._process = self._process, None
        if process is not None:
            how(process)
            try:
                process.wait(END_WITHIN_S)
            finally:
                process.kill()
                process.wait()

    def log(self) -> str:
        """The last of what it wrote."""
        return (self.folder / "control.log").read_text()[-4000:]

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        except OSError:
            return False
        return True


class EveryoneIsAMember(ControlProtocol):
    """Plaintext, where the address says who asks."""

    CONNECTIONS_PER_PEER_MAX = CONNECTIONS_MAX
    _known: dict[int, SpiffeId] = {}

    def _opened(self, transport: asyncio.Transport, ssl_object: Any) -> None:
        number = int(self._address.split(".")[1])
        super()._opened(transport, ssl_object)
        if number not in self._known:
            self._known[number] = SpiffeId.for_service(DOMAIN, f"app-{number}")
        assert self.connection is not None
        self.app_state[PEER], self.connection.serial = self._known[number], number + 1
        self._release()
        self.connections.add(self)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(1)


def _main(settings: Settings, kind: str) -> None:
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if kind == "mtls":
        run(settings)
    elif kind == "asyncio":
        asyncio.run(serve(settings))
    else:
        import uvloop

        keep_large_blocks_apart()
        uvloop.run(serve(settings, protocol=EveryoneIsAMember, plaintext=True))


if __name__ == "__main__":
    _main(Settings(Path(sys.argv[1]), sys.argv[2]), sys.argv[3])
