"""A process with thousands of pollers: each an asyncio.Protocol that follows the policy as the agent of a process does.

When each polls, and comes back once its connection is lost, PollSchedule says. Each has a loopback address of its own,
127.<service>.x.y, as if it were a machine. Who started the process speaks to it over a pipe: a command, an answer.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from meshlib.discovery.poll_schedule import WAIT_S, PollSchedule
from meshlib.identity.spiffe import dns_name
from meshlib.identity.svid import Svid, TrustBundle
from meshlib.identity.tls import client_context

from .asking import CONTROL
from .config_service import FOLLOWED, SERVICES
from .usage import first_core, open_files_max

AT_ONCE = 64
"""Connections that are being made at once while the herd gathers."""
HANDSHAKE_S = 3.0
"""How long the agent gives a connection to be made (control_link)."""
LOOK_S = 0.02


class Config(NamedTuple):
    """Where the config service is, and who the pollers are: service → (chain, key), empty for plaintext."""

    port: int
    certificates: Mapping[str, tuple[bytes, bytes]]
    bundle: TrustBundle


class Poller(asyncio.Protocol):
    """One process that polls."""

    __slots__ = (
        "_buffer", "_closing", "_have", "_herd", "_instance", "_schedule", "_transport", "_want", "address", "service",
        "waiting",
    )  # fmt: skip

    def __init__(self, herd: Herd, number: int) -> None:
        service, place = number % SERVICES + 1, number // SERVICES
        self.service, self.address = f"app-{service}", f"127.{service}.{place // 250}.{place % 250 + 1}"
        others = [f"app-{(service + step) % SERVICES + 1}.default" for step in (1, 2)]
        self._want = sorted([FOLLOWED, *others])
        self._instance = f"{number:032x}"
        self._herd, self._schedule = herd, PollSchedule()
        self._have: dict[str, list[Any]] = {}
        self._transport: asyncio.Transport | None = None
        self._buffer, self._closing, self.waiting = b"", False, False

    # The connection

    async def connect(self) -> None:
        """Make a connection, and poll; where it fails, again when the schedule says."""
        herd = self._herd
        herd.attempts.append(time.monotonic())
        try:
            await herd.loop.create_connection(
                lambda: self, "127.0.0.1", herd.config.port, local_addr=(self.address, 0), **herd.tls(self.service)
            )
        except (OSError, TimeoutError) as error:
            herd.failures[type(error).__name__] += 1
            self._later()

    def connection_made(self, transport: Any) -> None:
        self._transport, self._buffer, self._closing = transport, b"", False
        self._herd.connected.append(time.monotonic())
        self._poll()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return
        self._transport = None
        self._set_waiting(False)
        if not self._closing:
            self._herd.failures["lost"] += 1
            self._later()

    def _later(self) -> None:
        delay_s = self._schedule.failed(self._herd.loop.time(), self._herd.rng)
        self._herd.loop.call_later(delay_s, self._herd.spawn, self.connect)

    # The poll

    def _poll(self) -> None:
        loop, transport = self._herd.loop, self._transport
        if transport is None or transport.is_closing():
            return
        now = loop.time()
        ready_at = self._schedule.ready_at(now)
        if ready_at > now:
            loop.call_at(ready_at, self._poll)
            return
        self._schedule.begun(now)
        transport.write(self._request())
        self._set_waiting(bool(self._have))

    def _request(self) -> bytes:
        asked = {
            "instance": self._instance, "want": self._want, "have": self._have, "rejected": {}, "serving": False,
            "info": {"python": "3.13.0", "host": "bench", "pid": "4711"}, "wait_s": WAIT_S if self._have else 0.0,
        }  # fmt: skip
        body = json.dumps(asked).encode()
        return _HEAD % len(body) + body

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < (size := int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])):
            return
        assert len(body) == size, "more than was asked for"
        self._buffer = b""
        self._set_waiting(False)
        self._answered(head, body)

    def _answered(self, head: bytes, body: bytes) -> None:
        herd, loop = self._herd, self._herd.loop
        if head.startswith(b"HTTP/1.1 200 "):
            news, reconnect_s = _learned(body)
            self._schedule.answered(reconnect_s)
            if news:
                herd.news.append(time.monotonic())
                self._have = {**self._have, **news}
            else:
                herd.quiet += 1
        else:
            herd.failures[head[:12].decode()] += 1
            self._schedule.failed(loop.time(), herd.rng)
        if b"connection: close" in head:
            self._closing = True
            assert self._transport is not None
            self._transport.close()
            loop.call_at(max(loop.time(), self._schedule.ready_at(loop.time())), herd.spawn, self.connect)
        else:
            self._poll()

    def _set_waiting(self, waiting: bool) -> None:
        self._herd.waiting += waiting - self.waiting
        self.waiting = waiting


class Herd:
    """The pollers of this process. `attempts`, `connected`: when connections were tried and made; `news`: when a reply
    with something new had arrived; monotonic seconds. `quiet`: replies with nothing new.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.loop, self.rng = config, asyncio.get_running_loop(), random.Random()
        self._contexts = {
            name: client_context(Svid.load(*pair), config.bundle, CONTROL) for name, pair in config.certificates.items()
        }
        self.pollers: list[Poller] = []
        self.waiting = self.quiet = 0
        self.attempts: list[float] = []
        self.connected: list[float] = []
        self.news: list[float] = []
        self.failures: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()

    def tls(self, service: str) -> dict[str, Any]:
        """How this service connects: options of `create_connection`."""
        context = self._contexts.get(service)
        if context is None:
            return {}
        return {"ssl": context, "server_hostname": dns_name(CONTROL), "ssl_handshake_timeout": HANDSHAKE_S}

    def spawn(self, work: Any, *args: Any) -> asyncio.Task[Any]:
        task = self.loop.create_task(work(*args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Commands

    async def gather(self, count: int) -> float:
        """`count` more pollers, all of which wait: seconds that it took."""
        began, fresh = time.monotonic(), [Poller(self, len(self.pollers) + number) for number in range(count)]
        self.pollers += fresh
        turn = iter(fresh)

        async def connect() -> None:
            for poller in turn:
                await poller.connect()

        await asyncio.gather(*(connect() for _ in range(AT_ONCE)))
        await self.all_wait()
        return time.monotonic() - began

    async def all_wait(self) -> float:
        """Wait until every poller waits: when that was."""
        while self.waiting < len(self.pollers):
            await asyncio.sleep(LOOK_S)
        return time.monotonic()

    async def forget(self) -> None:
        """Begin to count anew."""
        self.quiet = 0
        for seen in (self.attempts, self.connected, self.news, self.failures):
            seen.clear()

    async def delivered(self) -> list[float]:
        """Wait until every poller has had news since `forget`: when each had."""
        while len(self.news) < len(self.pollers):
            await asyncio.sleep(LOOK_S)
        return list(self.news)

    async def seen(self) -> dict[str, Any]:
        """What was counted since `forget`."""
        return {
            "quiet": self.quiet, "waiting": self.waiting, "attempts": list(self.attempts),
            "connected": list(self.connected), "failures": dict(self.failures),
        }  # fmt: skip


_HEAD = (
    b"POST /v1/poll HTTP/1.1\r\nhost: control\r\naccept: application/json\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


@lru_cache(4096)
def _learned(body: bytes) -> tuple[dict[str, list[Any]], float]:
    """The versions in a reply, and over how long a herd is to come back. Many get the same reply."""
    reply = json.loads(body)
    payloads = [json.loads(fragment["payload"]) for fragment in reply["fragments"]]
    return {one["resource"]: [one["epoch"], one["n"]] for one in payloads}, reply["reconnect_s"]


class HerdProcess:
    """`with HerdProcess(config) as herd: await herd.ask("gather", 1000)`: on the first core."""

    def __init__(self, config: Config) -> None:
        self._config, self._spawn = config, multiprocessing.get_context("spawn")

    def __enter__(self) -> HerdProcess:
        self._pipe, theirs = self._spawn.Pipe()
        self._process = self._spawn.Process(target=_run, args=(theirs, self._config), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    async def ask(self, command: str, *args: Any, within_s: float = 120.0) -> Any:
        """The answer of a command; TimeoutError."""
        self._pipe.send((command, args))
        return await asyncio.to_thread(self._answer, command, within_s)

    def _answer(self, command: str, within_s: float) -> Any:
        if not self._pipe.poll(within_s):
            raise TimeoutError(f"the pollers have not come to the end of {command!r} within {within_s:.0f} s")
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid


def _run(pipe: Connection, config: Config) -> None:
    import uvloop

    first_core()
    open_files_max()
    uvloop.run(_serve(pipe, config))


async def _serve(pipe: Connection, config: Config) -> None:
    herd, ended = Herd(config), asyncio.Event()

    async def obey(command: str, args: tuple[Any, ...]) -> None:
        try:
            answer = await getattr(herd, command)(*args)
        except Exception as error:
            answer = error
        pipe.send(answer)

    def read() -> None:
        try:
            herd.spawn(obey, *pipe.recv())
        except (EOFError, OSError):
            ended.set()

    herd.loop.add_reader(pipe.fileno(), read)
    await ended.wait()
