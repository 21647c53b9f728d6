"""The other end: three uvicorn servers on the second core, in plaintext and with mTLS, answering 100 bytes of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BODY = json.dumps({"id": 42, "name": "a thing with a name", "stock": [1, 2, 3], "pad": "x" * 20}).encode().ljust(100)
SERVERS = 3
START_WITHIN_S = 20.0


async def app(scope: dict, receive, send) -> None:
    """100 bytes, whatever is asked."""
    if scope["type"] != "http":
        return
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": BODY})


async def serve(folder: Path, number: int) -> None:
    """Two listeners; their ports are written to `folder` when both accept."""
    import uvicorn

    from meshlib.identity.credentials import Credentials
    from meshlib.identity.dev import DevSource

    credentials = Credentials(DevSource(folder / ".meshlib", "bench.dev", "inventory.default"), "bench.dev")
    options = {"log_level": "error", "access_log": False, "http": "httptools", "lifespan": "off", "port": 0}
    options["timeout_keep_alive"] = 120
    servers = [
        uvicorn.Server(uvicorn.Config(app, **options)),
        uvicorn.Server(uvicorn.Config(app, ssl_context_factory=lambda *_: credentials.listener(), **options)),
    ]
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    while not all(server.started for server in servers):
        await asyncio.sleep(0.01)
    ports = [server.servers[0].sockets[0].getsockname()[1] for server in servers]
    ready = folder / f"ports.{number}.part"
    ready.write_text(json.dumps(ports))
    ready.rename(folder / f"ports.{number}")
    await asyncio.gather(*tasks)


@contextmanager
def running(folder: Path) -> Iterator[tuple[list[int], list[int]]]:
    """Start the servers on the second core; gives their plaintext and their mTLS ports."""
    pin = ["taskset", "-c", "1"] if (os.cpu_count() or 1) > 1 else []
    command = [*pin, sys.executable, "-m", "benchmarks.servers", str(folder)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(SERVERS)]
    try:
        give_up = time.monotonic() + START_WITHIN_S
        files = [folder / f"ports.{number}" for number in range(SERVERS)]
        while not all(file.exists() for file in files):
            if time.monotonic() > give_up:
                raise TimeoutError("the servers of the benchmark did not start")
            time.sleep(0.05)
        ports = [json.loads(file.read_text()) for file in files]
        yield [plain for plain, _ in ports], [tls for _, tls in ports]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10)


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
