"""The engine of a mesh: what is in force, and who keeps it so. `Mesh` is its public face.

State, in the order in which it is made by `start`:

    configuration ─ credentials ─ policy in force (a snapshot of compiled plans) ─ scopes (connections) ─ agent

With a config service (`control`) the configuration is only the bootstrap: identity and policy come by the follower, a
start waits for neither, and whoever needs one waits for it in its own way: a call within its deadline, a server within
`control.start_timeout`.

Rules of this file. One reference is swapped when the policy changes, after everything in use has been compiled: a call
in flight ends under the plan it began with. A configuration that is bad at start stops the start; one that turns bad
later is reported, counted, and changes nothing. A forked child begins anew with its first call and touches no
connection of its parent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .agent import Agent
from .config import MeshConfig, followed_or_whole
from .config.bootstrap import BOOTSTRAP
from .config.compose import compose
from .config.effective import effective
from .config.endpoints import parse_address
from .config.environment import check_address, control_urls
from .config.fields import canonical_name, is_label
from .discovery.dns import DnsResolver
from .errors import ConfigError, IdentityError, MeshError, NoHealthyEndpoint, UnknownService
from .follower import FIRST_USE_S, Follower
from .identity.control import check_means
from .identity.credentials import Credentials
from .identity.dev import DevSource
from .identity.spiffe import SpiffeId
from .learned import Learned
from .node_gauges import NodeGauges
from .policy.predicate import Predicates
from .runtime.event_loop import EventLoopRuntime
from .scopes import LoopScope, ThreadScope
from .snapshot import Arriving, Snapshot, candidates
from .surroundings import Surroundings
from .telemetry.metrics import Metrics
from .telemetry.provider import setup_provider
from .telemetry.tracing import Tracing
from .watched_file import WatchedFile

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from .config.questions import Question
    from .identity.credentials import ClientTls
    from .interop.pybreaker import Circuits
    from .plan import ServicePlan

logger = logging.getLogger("meshlib")

ANONYMOUS = "anonymous"
"""The name of a caller that has none; it has no certificate, and `strict` peers refuse it."""
STORAGE_LOOK_S = 0.5
"""How often what breakers keep in a storage is written and read."""
RENEWAL_LOOK_S = 0.5
"""How often the agent asks whether the identity has to be renewed."""
RETIRE_AFTER_S = 2.0
"""An endpoint that has left the policy is let go after so long: one that flaps finds its connections again (F07)."""
RETIRE_WITHIN_S = 10.0
"""It is let go after so long even where the policy changes all the time."""
IN_FORCE_LOOK_S = 0.02
"""How often a start looks whether identity and policy are there."""
EXPECTED_MAX = 4096
"""Names of clients made before the start that are asked for with the first poll; others when they are called."""

INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}").fullmatch
"""What the config service takes for the name of an instance."""

_ENGINES: WeakSet[Engine] = WeakSet()


class Engine:
    """Everything of one mesh in one process. Thread-safe. `service` None: `$MESHLIB_SERVICE`, or anonymous.

    `circuits`: who else is told of the breakers of endpoints, or can hold them open; None: nobody.
    """

    def __init__(
        self,
        service: str | None,
        config: str | os.PathLike[str] | Mapping[str, Any] | MeshConfig | None,
        overrides: Mapping[str, Any],
        circuits: Circuits | None = None,
    ) -> None:
        self.given, self.source_of_config, self.overrides = service, config, dict(overrides)
        self.circuits, self.predicates = circuits, Predicates(logger.warning)
        self.closed = False
        self.surroundings = Surroundings()
        self._expected: dict[str, None] = {}
        self._made_in = os.getpid()
        self.reset()
        _ENGINES.add(self)

    def reset(self) -> None:
        """As if it had never started; nothing is closed."""
        self.started = False
        self.loops: dict[int, LoopScope] = {}
        self.threads: ThreadScope | None = None
        self.credentials: Credentials | None = None
        self.metrics = Metrics()
        self.instance = self._instance()
        self._lock = threading.RLock()
        self._agent: Agent | None = None
        self.file: WatchedFile | None = None
        self.follower: Follower | None = None
        self.resolver: DnsResolver | None = None
        self._in_force = False
        self._storage_agent: Agent | None = None
        self.provider: TracerProvider | None = None
        self._learned = Learned(EventLoopRuntime().lock, None if self.circuits is None else self.circuits.node)
        self._renewal_due, self._retire_due, self._retire_by = 0.0, math.inf, math.inf
        self._gauges = NodeGauges(self.metrics, lambda: self.surroundings.now())

    def _instance(self) -> str:
        """The name of this process among those of its service. A forked child is another one."""
        given, own = os.environ.get("MESHLIB_INSTANCE", ""), uuid.uuid4().hex
        return f"{given}-{own[:8]}" if given and os.getpid() != self._made_in else given or own

    # Life

    def start(self) -> None:
        """Read, check, compile, identify. Idempotent. ConfigError lists every problem; nothing is then started.

        With a config service it does not wait for it: see `wait_in_force`.
        """
        if self.started:
            return
        with self._lock:
            if self.started:
                return
            self._check_open()
            config = self._read()
            self.service = self._own_name()
            self.namespace = self.service.partition(".")[2]
            self.anonymous = self.service == canonical_name(ANONYMOUS)
            self.trust_domain = config.trust_domain
            self.state_dir = config.directory / (os.environ.get("MESHLIB_STATE_DIR") or config.state_dir)
            self.tracing = Tracing(config.telemetry.tracing.sample, EventLoopRuntime().rng)
            self.policy = self.snapshot(config)
            self.surroundings.begin(self)
            self.started = True

    def begin_outside(self) -> None:
        """Identity, span export, and the agent that keeps both and the policy up to date."""
        config = self.policy.config
        self.provider = setup_provider(self.service, self.instance)
        nameservers = [parse_address(address) for address in config.dns.nameservers]
        self.resolver = DnsResolver(nameservers, EventLoopRuntime().rng, self._resolved)
        if config.control is None:
            self.identify(config)
            source = self._source()
            self.file = WatchedFile(
                self, self._read, None if isinstance(source, Mapping | MeshConfig) else Path(source)
            )
            self._in_force = True
        else:
            self._follow(config, control_urls(os.environ) or config.control.urls)
        self._agent = Agent(self._tick)
        if self.circuits is not None and self.circuits.stored:
            # An agent of its own: a storage that hangs must not keep certificates from being renewed.
            self._storage_agent = Agent(partial(self._exchange, self.circuits), STORAGE_LOOK_S)

    def _follow(self, config: MeshConfig, urls: tuple[str, ...]) -> None:
        if self.anonymous:
            raise ConfigError(
                "a process that follows a config service needs a name: Mesh('orders'), or MESHLIB_SERVICE, and a join "
                "token of that service in MESHLIB_TOKEN_FILE"
            )
        token_file = os.environ.get("MESHLIB_TOKEN_FILE")
        folder = self.state_dir / self.service
        try:
            check_means(folder, Path(token_file) if token_file else None, self.service)
        except (OSError, ValueError) as error:
            raise ConfigError(f"identity: {error}") from error
        if not INSTANCE(self.instance):
            raise ConfigError(
                f"MESHLIB_INSTANCE={self.instance}: up to 128 letters, digits, dots, hyphens, underscores"
            )
        if advertise := os.environ.get("MESHLIB_ADVERTISE"):
            check_address("MESHLIB_ADVERTISE", advertise)
        nothing = compose(config, urls[0], {}, {})
        self.policy = self.snapshot(nothing, frozenset())
        self.follower = Follower(self, config, urls, folder, Path(token_file) if token_file else None)
        for given in self._expected:
            self.follower.want(candidates(given, self.namespace))
        self.follower.start()

    def wait_in_force(self) -> None:
        """Return once identity and policy are there. ConfigError, which says what is missing and why, after
        `control.start_timeout`.
        """
        give_up = self.give_up_at()
        while not self.in_force:
            self.check_in_time(give_up)
            time.sleep(IN_FORCE_LOOK_S)

    def give_up_at(self) -> float:
        """Until when a start waits for identity and policy, in monotonic seconds."""
        control = self.policy.config.control
        return time.monotonic() + (0.0 if control is None else control.start_timeout)

    def check_in_time(self, give_up: float) -> None:
        """ConfigError when it is too late."""
        if time.monotonic() >= give_up or self.closed:
            raise ConfigError(self.missing())

    def missing(self) -> str:
        """What of identity and policy is not there, and why; '' where both are."""
        if self.in_force or self.follower is None:
            return ""
        what = "policy" if self.credentials is not None else "identity"
        return f"there is no {what} yet: {self.follower.why_away() or 'the policy of this service has not arrived'}"

    @property
    def in_force(self) -> bool:
        """Are identity and policy there?"""
        named = self.credentials is not None or not self.policy.strict
        return (self._in_force and named) or not self.surroundings.identities

    def close(self) -> None:
        """Stop the agent and close every connection that this thread may close. Idempotent."""
        with self._lock:
            if self.closed:
                return
            self.closed, self.started = True, False
            loops, self.loops = self.loops, {}
            threads, self.threads = self.threads, None
        if self.follower is not None:
            self.follower.stop()  # first: the agent may be waiting for an answer on its connections
        for thread in (self.resolver, self._agent, self._storage_agent):
            if thread is not None:
                thread.stop()
        if self.provider is not None:
            self.provider.shutdown()
        for scope in loops.values():
            scope.close_from_anywhere()
        if threads is not None:
            threads.close()

    async def aclose(self) -> None:
        """The same, also waiting for this event loop's connections to be gone."""
        loop = asyncio.get_running_loop()
        mine = self.loops.get(id(loop))
        if self._agent is None and self.provider is None:
            self.close()
        else:
            await asyncio.to_thread(self.close)  # it joins threads, and may send the last spans
        if mine is not None and mine.loop is loop:
            await mine.aclose()

    def after_fork(self) -> None:
        """In a child: forget connections, threads and what was learned, without a byte to anybody."""
        for scope in self.loops.values():
            scope.abandon()
        if self.threads is not None:
            self.threads.abandon()
        if self.follower is not None:
            self.follower.abandon()
        self.reset()

    # Who we are, and what we are told

    @property
    def config(self) -> MeshConfig:
        """The configuration in force."""
        return self.policy.config

    @property
    def strict(self) -> bool:
        """Does this service answer only callers with a verified identity?"""
        return self.policy.strict and self.surroundings.identities

    def client_tls(self, service: str) -> ClientTls:
        """How to reach `service` over mTLS. IdentityError where there is no identity: never plaintext instead."""
        if self.credentials is None:
            raise IdentityError(f"{service!r} is strict, and this process has no identity to call it with")
        return self.credentials.client(SpiffeId.for_service(self.trust_domain, service))

    def _source(self) -> str | os.PathLike[str] | Mapping[str, Any] | MeshConfig:
        given = self.source_of_config
        return (os.environ.get("MESHLIB_CONFIG") or "mesh.yaml") if given is None else given

    def _read(self) -> MeshConfig:
        config, error = followed_or_whole(self._source(), self.overrides or None)
        if error is not None:
            logger.error("%s\nOf this file only how to reach the config service is used: its policy is followed", error)
        return config

    def _own_name(self) -> str:
        name = self.given or os.environ.get("MESHLIB_SERVICE") or ANONYMOUS
        parts = name.split(".")
        if len(parts) > 2 or not all(map(is_label, parts)):
            raise ConfigError(f"Mesh({name!r}): a service is named `name` or `name.namespace`, in lower case")
        return canonical_name(name)

    def identify(self, config: MeshConfig) -> None:
        """Get a `dev` identity where the policy needs one and there is none yet. ConfigError says why there is none."""
        if self.credentials is not None or not self.surroundings.identities or not self._needs_identity(config):
            return
        source = DevSource(self.state_dir, self.trust_domain, self.service)
        try:
            self.identified(Credentials(source, self.trust_domain, anonymous=self.anonymous))
        except (OSError, ValueError) as error:
            raise ConfigError(f"identity: {error}") from error

    def identified(self, credentials: Credentials) -> None:
        """The process has an identity from now on."""
        self.credentials = credentials
        self.metrics.gauge("meshlib_certificate_expiry_seconds", {}, credentials.expires_in_s)

    def _needs_identity(self, config: MeshConfig) -> bool:
        names = (self.service, *config.names())
        return any(effective(config, name).mtls == "strict" for name in names)

    # What the agent does

    def _tick(self) -> None:
        now = time.monotonic()
        for source in (self.file, self.follower):
            if source is not None:
                source.tick()
        if now >= self._retire_due:
            self.retire()
        if self.credentials is not None and now >= self._renewal_due:
            self._renewal_due = now + RENEWAL_LOOK_S
            self.credentials.refresh()

    def _exchange(self, circuits: Circuits) -> None:
        with self._lock:
            nodes = self._learned.nodes()
        circuits.exchange(nodes, self._learned.lock)

    def put_in_force(self, config: MeshConfig, known: Collection[str] | None = None, *, quiet: bool = False) -> None:
        """Compile everything that is in use, then swap one reference. `known`: see Snapshot. `quiet`: say nothing."""
        fixed = [name for name in BOOTSTRAP if getattr(config, name) != getattr(self.policy.config, name)]
        if fixed:
            logger.warning("mesh.yaml: %s will be in force when this process starts again", ", ".join(fixed))
        with self._lock:
            if self.resolver is not None:
                self.resolver.keep({question for name in config.names() for question in config.questions(name)})
                config = config.with_resolved(self.resolver.answers())
            old = self.policy
            new = self.snapshot(config, known, old)
            for name in old.names():
                new.plan(name)
            new.complete(self._show_nodes)
            self.policy, self._in_force = new, True
            self._show_nodes()
            self._retire_later(time.monotonic())
        logger.log(logging.DEBUG if quiet else logging.INFO, "policy %s is in force", new.version)

    def _resolved(self, _answers: object) -> None:
        """Name servers have said something new."""
        with self._lock:
            if self.started and not self.closed:
                self.put_in_force(self.policy.config, self.policy.known, quiet=True)

    def _resolve(self, questions: Collection[Question]) -> None:
        if self.resolver is not None:
            self.resolver.follow(questions)

    def _retire_later(self, now: float) -> None:
        """`RETIRE_AFTER_S` after the last change, so that what comes back is found; though it never stops changing."""
        if self._retire_due == math.inf:
            self._retire_by = now + RETIRE_WITHIN_S
        self._retire_due = min(now + RETIRE_AFTER_S, self._retire_by)

    def retire(self) -> None:
        """Let go of what was learned about, and the connections to, endpoints that the policy does not have."""
        self._retire_due = math.inf
        with self._lock:
            self.policy.retain()
            self._show_nodes()
            if self.threads is not None:
                self.threads.retire(self.policy.addresses())
            scopes = [*self.loops.values()]
        for scope in scopes:
            scope.retire(self.addresses)

    def snapshot(
        self, config: MeshConfig, known: Collection[str] | None = None, before: Snapshot | None = None
    ) -> Snapshot:
        """What `config` means to this process. `before`: the one whose place it takes, and whose plans it may keep."""
        compiled = self._show_nodes if before is None else lambda: None
        asked = None if known is None else self._follow_too
        resolve = self._resolve if self.surroundings.identities else None
        return Snapshot(config, self.service, self._learned, self._lock, compiled, known, asked, before, resolve)

    def _follow_too(self, services: Collection[str]) -> None:
        if self.follower is not None:
            self.follower.want(services)

    # What a call asks

    def plan(self, given: str) -> ServicePlan | UnknownService | Arriving:
        """The plan of a service under the policy in force, by the name that was given."""
        return self.policy.plan(given)

    def expect(self, given: str) -> None:
        """A service is going to be called: follow it, now or from the start."""
        if self.follower is not None:
            self.follower.want(candidates(given, self.namespace))
        elif len(self._expected) < EXPECTED_MAX:
            self._expected.setdefault(given)

    def patience_s(self) -> float:
        """How long a first call waits for its service to arrive, in seconds."""
        return FIRST_USE_S if self.follower is None else self.follower.patience_s

    def unknown(self, given: str) -> MeshError:
        """Why a service that was waited for has not arrived."""
        service = self.config.canonical(given, self.namespace)
        if service is not None and (questions := self.config.questions(service)):
            return NoHealthyEndpoint(service, {str(each): "no name server has answered yet" for each in questions})
        return UnknownService(given) if self.follower is None else self.follower.unknown(given)

    def addresses(self) -> set[str]:
        """The endpoints that calls may reach at this moment."""
        with self._lock:
            return self.policy.addresses()

    def scope_of_loop(self) -> LoopScope:
        """The connections of the running event loop; starts the mesh on first use."""
        loop = asyncio.get_running_loop()
        scope = self.loops.get(id(loop))
        return scope if scope is not None and scope.loop is loop else self._open_loop(loop)

    def scope_of_threads(self) -> ThreadScope:
        """The connections that the threads of this process share; starts the mesh on first use."""
        return self.threads or self._open_threads()

    def _open_loop(self, loop: asyncio.AbstractEventLoop) -> LoopScope:
        self.start()
        with self._lock:
            self._check_open()
            for key in [key for key, scope in self.loops.items() if scope.loop.is_closed()]:
                self.loops.pop(key).discard()
            scope = self.loops[id(loop)] = self.surroundings.loop_scope(self, loop)
        return scope

    def _open_threads(self) -> ThreadScope:
        self.start()
        with self._lock:
            self._check_open()
            if self.threads is None:
                self.threads = self.surroundings.thread_scope(self)
            return self.threads

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("this Mesh is closed; make a new one")

    def _show_nodes(self) -> None:
        self._gauges.show(self._learned.nodes())


def _after_fork() -> None:
    for engine in list(_ENGINES):
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork)
