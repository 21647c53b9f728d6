"""The surroundings of a mesh in memory: scopes whose leaves end at fake services.

Everything above the leaf is production's: routes, deadline, limit, retry, budget, balance, breakers, ejection, metrics,
tracing. What is not there is what is below it: sockets, TLS, connection pools (`connection_pool`, `max_pending`),
identity files, the agent's thread, the exporter of spans. As nobody has a certificate, nobody is asked for one.

A mesh in memory lives in one time, real or a simulation's: breakers and budgets cannot be carried from one clock to
another.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import itertools
import random
import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from ..call import Call, Reply
from ..config import MeshConfig, config_of
from ..engine import Engine
from ..errors import MeshError, TransportError, UnknownService
from ..runtime.blocking import BlockingRuntime
from ..runtime.event_loop import EventLoopRuntime
from ..scopes import LoopScope, ThreadScope
from ..served import SERVED, Served
from ..surroundings import Surroundings
from ..transport import phases, tcp
from ..transport.headers import NO_RETRY, mesh_lines
from ..transport.http1 import render_head
from .fake_service import Answer, FakeRequest, FakeService, Step, answer_from, answer_of
from .faults import Fault
from .simulation import current_simulation

if TYPE_CHECKING:
    from ..endpoint import Endpoint
    from ..plan import BackendPlan
    from ..runtime import Rng, Runtime
    from ..stack import Service


class Fakes(Surroundings):
    """The fake services and faults of one mesh. `seed` of its chance; None: the running simulation's, else 0."""

    def __init__(self, engine: Engine, seed: int | None = None) -> None:
        self._engine = engine
        simulation = current_simulation() if seed is None else None
        self.rng: Rng = random.Random(seed or 0) if simulation is None else simulation.runtime.rng
        self._services: dict[str, FakeService] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._clock: Callable[[], float] | None = None
        self._lock = threading.Lock()

    def service(self, name: str) -> FakeService:
        """The fake that stands for a service, the same one each time. UnknownService as from a call."""
        self._engine.start()
        canonical = self._engine.config.canonical(name, self._engine.namespace)
        if canonical is None:
            plan = self._engine.plan(name)
            raise plan if isinstance(plan, UnknownService) else UnknownService(name)
        if canonical not in self._services:
            self._services[canonical] = FakeService(canonical, lambda: self._engine.config)
        return self._services[canonical]

    def fault(
        self, service: str, *, abort: int | None = None, delay: float = 0.0, refuse: bool = False, percent: float = 100
    ) -> Fault:
        """From now on, `percent` of the attempts to `service` go wrong; see `Fault`."""
        faults = self._faults.setdefault(self.service(service).name, [])
        fault = Fault(abort, delay, refuse, percent, lambda it: faults.remove(it) if it in faults else None)
        faults.append(fault)
        return fault

    def struck(self, service: str) -> list[Fault]:
        """The faults that hit the attempt being made. Thread-safe."""
        faults = self._faults.get(service)
        if not faults:
            return []
        with self._lock:
            return [fault for fault in faults if fault.strikes(self.rng)]

    def put_in_force(self, config: MeshConfig) -> None:
        """Another policy, as when mesh.yaml is edited: what was learned is kept."""
        self._engine.start()
        self._engine.put_in_force(reachable(config))
        self._engine.retire()

    identities = False

    def now(self) -> float:
        """See Surroundings."""
        return super().now() if self._clock is None else self._clock()

    def begin(self, engine: Engine) -> None:
        """See Surroundings."""
        engine.policy = engine.snapshot(reachable(engine.policy.config))
        engine.tracing.rng = self.rng

    def loop_scope(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> LoopScope:
        """See Surroundings."""
        simulation = current_simulation()
        runtime = EventLoopRuntime(self.rng) if simulation is None else simulation.runtime
        self._keep_time(runtime)
        return MemoryLoopScope(engine, loop, runtime, self)

    def thread_scope(self, engine: Engine) -> ThreadScope:
        """See Surroundings."""
        if current_simulation() is not None:
            raise RuntimeError("a simulation has no threads: call through mesh.client, not mesh.sync_client")
        runtime = BlockingRuntime(self.rng)
        self._keep_time(runtime)
        return MemoryThreadScope(engine, runtime, self)

    def _keep_time(self, runtime: Runtime) -> None:
        if self._clock is None:
            self._clock = runtime.now
        elif self._clock is not runtime.now:
            raise RuntimeError("this mesh was used in another time, real or simulated; make a new one for this one")


class MemoryLoopScope(LoopScope):
    """An event loop, or a simulation, without connections."""

    def __init__(self, engine: Engine, loop: Any, runtime: Any, fakes: Fakes) -> None:
        super().__init__(engine, loop)
        self.runtime, self._fakes = runtime, fakes

    def leaf(self, backend: BackendPlan, endpoint: Endpoint) -> Service:
        """See LoopScope."""
        return Wire(self._fakes, self.runtime, self.source, backend, endpoint)

    def retire(self, in_use: Callable[[], Collection[str]]) -> None:
        """There is nothing to let go of."""

    def close_from_anywhere(self) -> None:
        """There is nothing to close."""


class MemoryThreadScope(ThreadScope):
    """Threads without connections."""

    def __init__(self, engine: Engine, runtime: BlockingRuntime, fakes: Fakes) -> None:
        super().__init__(engine)
        self.runtime, self._fakes = runtime, fakes

    def leaf(self, backend: BackendPlan, endpoint: Endpoint) -> Service:
        """See ThreadScope."""
        return Wire(self._fakes, self.runtime, self.source, backend, endpoint)


class Wire:
    """The leaf: one attempt to one endpoint of a fake service. Raises what the real leaf would raise."""

    def __init__(self, fakes: Fakes, runtime: Runtime, source: str, backend: BackendPlan, endpoint: Endpoint) -> None:
        self._fakes, self._runtime, self._endpoint = fakes, runtime, endpoint
        self._service = fakes.service(backend.service)
        self._source = "" if backend.strict else source
        simulation = current_simulation()
        self._note = None if simulation is None else simulation.attempted

    async def __call__(self, call: Call) -> Reply:
        began, address = self._runtime.now(), self._endpoint.address
        if call.attempt_deadline <= began:
            raise phases.expired(call, call.attempt_deadline, "pool", address, sent=False)
        try:
            reply = await self._attempt(call)
        except MeshError as error:
            self._end(call, began, getattr(error, "cause", error.kind))
            raise
        self._end(call, began, str(reply.status))
        return reply

    async def _attempt(self, call: Call) -> Reply:
        lines = mesh_lines(call, self._runtime.now(), self._source)
        head = render_head(call, lines)
        faults = self._fakes.struck(self._service.name)
        for fault in faults:
            await self._pass(call, fault.delay_s)
        if any(fault.refuse for fault in faults):
            raise self._refused()
        for fault in faults:
            if fault.abort is not None:
                return answer_of(fault.abort, None, "injected fault", b"", {}).reply(call.method)
        step = self._service.step_for(self._endpoint)
        if step.failure == "refused":
            raise self._refused()
        request = await self._request(call, head)
        self._service.arrived(request)
        await self._pass(call, self._service.delay_for(self._endpoint))
        return await self._answer(call, step, request)

    async def _answer(self, call: Call, step: Step, request: FakeRequest) -> Reply:
        address = self._endpoint.address
        if step.answer is not None:
            return step.answer.reply(call.method)
        if step.handler is not None:
            return await self._handled(call, partial(step.handler, request))
        if step.failure == "reset":
            raise tcp.broken(address, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), reused=False)
        if step.failure == "closed":
            message = f"{address}: the connection was closed before the response"
            raise TransportError(message, phase="read", cause="closed")
        await self._pass(call, float("inf"))
        raise AssertionError("every attempt has a deadline")

    async def _handled(self, call: Call, handle: Callable[[], Any]) -> Reply:
        """The handler runs as in a server: what it calls inherits deadline, attempt and trace."""
        runtime = self._runtime
        served = Served(
            runtime.now, deadline=call.attempt_deadline, attempt=call.number, trace=call.trace, mirror=call.shadow
        )
        token = SERVED.set(served)
        try:
            answer = await self._result(call, handle)
        finally:
            SERVED.reset(token)
        return answer.reply(call.method, [(NO_RETRY, b"1")] if served.spent and answer.status >= 500 else ())

    async def _result(self, call: Call, handle: Callable[[], Any]) -> Answer:
        try:
            result = handle()
            if inspect.isawaitable(result):
                result = await self._runtime.before(call.attempt_deadline, result)
        except MeshError as error:
            return answer_of(500, None, str(error), b"", {})
        except TimeoutError:
            if self._runtime.now() < call.attempt_deadline:
                raise  # the handler's own
            raise self._expired(call, call.attempt_deadline) from None
        return answer_from(result)

    async def _request(self, call: Call, head: bytes) -> FakeRequest:
        path, _, query = call.target.decode("latin-1").partition("?")
        fields = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line]
        headers = httpx.Headers([(name, value) for name, value in fields])
        body = call.body if isinstance(call.body, bytes) else await _read(call.body.pieces())
        return FakeRequest(
            self._service.name, self._endpoint.address, call.method, path, query, headers, body, call.number,
            self._runtime.now(),
        )  # fmt: skip

    async def _pass(self, call: Call, seconds: float) -> None:
        """Time passes, at most to the end of the attempt, which is then over."""
        if seconds <= 0:
            return
        now = self._runtime.now()
        limit = phases.limit(call, None if call.phases is None else call.phases.read, now)
        await self._runtime.sleep(min(seconds, limit - now))
        if now + seconds >= limit:
            raise self._expired(call, limit)

    def _expired(self, call: Call, limit: float) -> MeshError:
        return phases.expired(call, limit, "read", self._endpoint.address, sent=True)

    def _refused(self) -> MeshError:
        refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return tcp.connect_error(self._endpoint.address, refused)

    def _end(self, call: Call, began: float, outcome: str) -> None:
        if self._note is not None:
            self._note(call, self._service.name, self._endpoint.address, began, outcome)


def reachable(config: MeshConfig) -> MeshConfig:
    """The same policy; a service without endpoints gets one for each of its subsets, or one: `127.0.0.1:<n>`."""
    given: dict[str, Any] = {}
    ports = itertools.count(1)
    for name in config.names():
        if not config.endpoints(name):
            labels = [dict(selector) for selector in config.services[name].subsets.values()] or [{}]
            entries = [{"address": f"127.0.0.1:{next(ports)}", "labels": own} for own in labels]
            given[config.written(name)] = {"endpoints": [{"static": entries}]}
    return config_of(config, {"services": given}) if given else config


async def _read(pieces: Any) -> bytes:
    if hasattr(pieces, "__aiter__"):
        return b"".join([piece async for piece in pieces])
    return b"".join(pieces)
