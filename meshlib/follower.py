"""The follower: how one process keeps up with the config service, and tells it that it is there.

    poll thread    asks, is held, takes what came, asks again                      (the poll is the lease)
    tick           registers, drains, asks at once for what a call waits for, writes the snapshot

Two threads because a chore that hangs must not cost the lease, and because a poll that is held cannot be woken: the
config service ends it when the same instance polls once more. Both belong to the process, not to an event loop: an
application that blocks its loop keeps its lease (F31). No call waits for either, but for the first one to a service.

What goes wrong is one log line when it begins and one when it is over, and changes nothing that is in force.
"""

from __future__ import annotations

import contextvars
import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from .config.environment import labels, zone
from .control_link import CALL_TIMEOUT_S, CONTROL_SERVICE, ControlLink, ControlRefusal, RemoteAuthority
from .discovery.fragment import FragmentError, Reply, parse_reply
from .discovery.poll_schedule import WAIT_S, PollSchedule, poll_timeout_s
from .discovery.registration import Registration
from .discovery.snapshot_file import read_snapshot, write_snapshot
from .discovery.subscription import WANTED_MAX
from .errors import MeshError, NoHealthyEndpoint, UnknownService
from .followed_policy import FollowedPolicy
from .identity.control import ControlSource
from .identity.credentials import Credentials
from .identity.spiffe import SpiffeId
from .policy.token_bucket import TokenBucket
from .runtime.blocking import BlockingRuntime, drive
from .transport.tcp import address_towards

if TYPE_CHECKING:
    from pathlib import Path

    from .config import MeshConfig
    from .identity.svid import TrustBundle
    from .runtime import Runtime
    from .telemetry.metrics import Metrics

logger = logging.getLogger("meshlib.control")

KICK_RATE, KICK_BURST = 2.0, 5.0
"""Polls a second, and at once, that are made besides because a call waits for a service it has not called before."""
SAVE_EVERY_S = 1.0
"""The snapshot is written at most once in so many seconds; what comes meanwhile is written then."""
FAREWELL_S = 1.0
"""How long a process that ends waits to be taken off the registry (F33)."""
FRESH_WITHIN_S = 1.0
"""How long a start with a snapshot waits for something newer; for a config service that is away it does not wait."""
FIRST_ANSWER_S = 4.5
"""How long the first call of a process waits for the config service's first answer (F01: it fails typed within 5 s)."""
FIRST_USE_S = 2.0
"""How long the first call to a service waits for it to arrive; never beyond its own deadline."""

NOT_FOUND = 404

_FAILURES = (MeshError, FragmentError, OSError, ValueError)
_DONE = {"register": "registered as", "drain": "draining", "deregister": "deregistered"}


class Owner(Protocol):
    """What the follower needs of the engine."""

    service: str
    instance: str
    metrics: Metrics
    credentials: Credentials | None

    def identified(self, credentials: Credentials) -> None:
        """The process has an identity."""

    def put_in_force(self, config: MeshConfig, known: Collection[str] | None = None, *, quiet: bool = False) -> None:
        """Another policy; `known`: services of which it is known whether they exist, None: of all."""


async def follow(
    runtime: Runtime,
    schedule: PollSchedule,
    poll: Callable[[], Awaitable[Reply]],
    take: Callable[[Reply], None],
    failed: Callable[[Exception], None],
) -> None:
    """The long poll, for ever: ask when it is time, take what came. What `poll` and `take` raise, `failed` is told."""
    while True:
        await runtime.sleep(schedule.ready_at(runtime.now()) - runtime.now())
        schedule.begun(runtime.now())
        try:
            reply = await poll()
            take(reply)
        except NoHealthyEndpoint:
            schedule.postponed(runtime.now(), runtime.rng)
        except Exception as error:  # whatever one reply does must not end the lease
            schedule.failed(runtime.now(), runtime.rng)
            failed(error)
        else:
            schedule.answered(reply.reconnect_s)


class Follower:
    """Of one process. `bootstrap`: its mesh.yaml. `folder`: its own in the state_dir. `token_file`: of a join token."""

    def __init__(
        self, owner: Owner, bootstrap: MeshConfig, urls: tuple[str, ...], folder: Path, token_file: Path | None
    ) -> None:
        self.urls, self._owner, self._bootstrap, self._folder = urls, owner, bootstrap, folder
        self._runtime, self._now = BlockingRuntime(), time.monotonic
        self._trust_domain = bootstrap.trust_domain
        authority = RemoteAuthority(urls, self._trust_domain, owner.instance, owner.service)
        self._source = ControlSource(folder, self._trust_domain, owner.service, authority, token_file)
        self._policy = FollowedPolicy(
            bootstrap, owner.service, urls[0], owner.metrics, owner.put_in_force, self._believe
        )
        self._schedule, self._kicks = PollSchedule(), TokenBucket(KICK_RATE, KICK_BURST)
        self._registration = Registration()
        self._lock, self._small = threading.RLock(), threading.Lock()
        self._followed: set[str] = set()
        self._asked: list[str] = []
        self._link: ControlLink | None = None
        self._thread: Any = None
        self._wanting = self._telling = self._stopped = False
        self._linked_as = self._seen_as = 0  # generations of our credentials
        self._complaint = ""
        self._save_at, self._publish_at = 0.0, float("inf")
        self.began, self.answered_at, self.away_since, self.trouble = time.time(), 0.0, 0.0, ""
        self._show()

    # Life

    def start(self) -> None:
        """Begin with what the state_dir has, and follow from then on. No network is waited for: the snapshot is in
        force when the config service has not answered within `FRESH_WITHIN_S`, or cannot be reached. Calls wait for it.
        """
        try:
            if self._source.enrolled():
                self._identify()
                self._take_snapshot()
        except Exception as error:  # a disk may hold anything
            logger.warning("the state in %s cannot be used: %s", self._folder, error)
        # In a context of its own: not that of the call which happened to be the first.
        self._thread = contextvars.Context().run(self._runtime.spawn, self._follow())

    async def _follow(self) -> None:
        await follow(self._runtime, self._schedule, self._held, self._take, self._failed)

    def stop(self) -> None:
        """Be taken off the registry, within `FAREWELL_S`, and end. Idempotent."""
        with self._small:
            stopped, self._stopped = self._stopped, True
            link = self._link
            # Who does not hear what is being told would not hear the last word either.
            hears = not self.away_since and not self._telling
            farewell = hears and self._registration.leaves_word(self._now())
        if stopped:
            return
        if self._thread is not None:
            self._thread.cancel()
        if link is not None:
            if farewell:
                self._tell(link, "deregister", FAREWELL_S)
            link.close()

    def abandon(self) -> None:
        """After a fork, in the child: let go of the connections without a byte to anybody."""
        if self._link is not None:
            self._link.abandon()

    # What is asked of it

    def want(self, services: Iterable[str]) -> None:
        """Follow these services (canonical names); they are asked for at the next tick. Waits for nothing."""
        with self._small:
            new = [name for name in services if name not in self._followed]
            if new and len(self._followed) < WANTED_MAX:
                self._followed.update(new)
                self._asked += new
                self._wanting = True

    def serve_at(self, address: str) -> None:
        """The process listens on `address`, as `host:port`: register it."""
        own = self._bootstrap.instance
        document = {
            "instance": self._owner.instance,
            "address": address,
            "zone": zone(os.environ) or own.zone,
            "weight": own.weight,
            "labels": labels(os.environ) or dict(own.labels),
        }
        with self._small:
            self._registration.serve(document)

    def drain(self) -> None:
        """Nobody is to be sent here any more. Returns at once; it is told at the next tick."""
        with self._small:
            self._registration.drain(self._now())

    @property
    def patience_s(self) -> float:
        """How long a first call may wait now, in seconds."""
        return FIRST_USE_S if self.answered_at else FIRST_ANSWER_S

    def why_away(self) -> str:
        """Since when the config service is away, and why, as a clause; '' where it is not."""
        urls = ", ".join(self.urls)
        if not self.away_since:
            return "" if self.answered_at else f"the config service {urls} has not answered yet"
        since = time.strftime("%H:%M:%S", time.localtime(self.away_since))
        if self._owner.credentials is None:
            return f"this process has had no identity since {since} (asked: {urls}): {self.trouble}"
        return f"the config service {urls} has been away since {since} ({self.trouble})"

    def unknown(self, service: str) -> UnknownService:
        """Why a service that was waited for has not arrived."""
        why = self.why_away() or f"the config service {', '.join(self.urls)} has not said yet whether there is one"
        return UnknownService(service, f"is not known yet: {why}")

    # The tick, on the agent's thread

    def tick(self) -> None:
        """What is due. May wait for the config service, each time within `CALL_TIMEOUT_S`."""
        now, link = self._now(), self._link
        if now >= self._publish_at:
            self._publish(now)
        if link is None or self._stopped:
            return
        self._look_at_identity()
        with self._small:
            what = self._registration.due(now)
            kick = self._wanting and bool(self.answered_at) and not self._schedule.failures and self._kicks.take(now)
            self._wanting = self._wanting and not kick
        if what:
            self._tell(link, what, CALL_TIMEOUT_S)
        if kick:
            self._kick()
        if self._policy.unsaved and now >= self._save_at:
            self._save(now)

    def _look_at_identity(self) -> None:
        """A new leaf: let the poll that is held end, so that the next is by a connection that shows it."""
        credentials = self._owner.credentials
        if credentials is not None and credentials.generation != self._seen_as:
            self._seen_as = credentials.generation
            if self._seen_as != self._linked_as:
                self._want_again()

    def _want_again(self) -> None:
        with self._small:
            self._wanting = True

    def _kick(self) -> None:
        try:
            self._take(drive(self._poll(0.0)))
        except _FAILURES as error:
            self._want_again()
            logger.debug("a poll for what a call waits for: %s", error)

    def _tell(self, link: ControlLink, what: str, timeout_s: float) -> None:
        with self._small:
            document, self._telling = self._registration.document, True
        try:
            address = self._told(link, what, document, timeout_s)
        except _FAILURES as error:
            with self._small:
                self._registration.failed(self._now(), self._runtime.rng)
            self._complain(f"the config service could not be told to {what} this process: {error}")
        else:
            with self._small:
                self._registration.told(what, document)
            self._complaint = ""
            logger.info("%s %s", _DONE[what], address)
        finally:
            self._telling = False

    def _told(self, link: ControlLink, what: str, document: dict[str, Any], timeout_s: float) -> str:
        """Tell it; the address of this process for others, or here."""
        told = {"instance": document["instance"]}
        if what == "register":
            told = {**document, "address": self._reachable(document["address"])}
        try:
            link.ask("POST", f"/v1/{what}", told, timeout_s=timeout_s)
        except ControlRefusal as refusal:
            if what == "register" or refusal.status != NOT_FOUND:
                raise  # what is not registered need not be taken back
        return str(told.get("address", document["address"]))

    def _reachable(self, address: str) -> str:
        """`address` as others reach it: by the way to the first config service that there is a way to."""
        for url in self.urls[:-1]:
            try:
                return address_towards(address, url)
            except OSError:
                continue
        return address_towards(address, self.urls[-1])

    def _complain(self, complaint: str) -> None:
        """Once, while it stays the same."""
        if complaint != self._complaint:
            self._complaint = complaint
            logger.warning("%s", complaint)

    def _save(self, now: float) -> None:
        self._policy.unsaved, self._save_at = False, now + SAVE_EVERY_S
        with self._lock:
            signed = self._policy.subscription.signed()
        try:
            write_snapshot(self._folder, signed)
        except TimeoutError:  # a sibling writes just now
            self._policy.unsaved = True
        except (OSError, ValueError) as error:
            self._policy.unsaved = True
            self._complain(f"the snapshot in {self._folder} cannot be written: {error}")

    # The poll

    async def _held(self) -> Reply:
        credentials = self._owner.credentials
        if credentials is None:
            self._identify()
        elif self._link is not None and credentials.generation != self._linked_as:
            with self._lock:
                before, self._link = self._link, None
                self._open_link()
            before.close()
        # Not held after a failure: that it is over is to be known at once.
        return await self._poll(WAIT_S if self.answered_at and not self._schedule.failures else 0.0)

    async def _poll(self, wait_s: float) -> Reply:
        with self._lock, self._small:
            self._policy.subscription.want(self._asked)
            self._asked, serving = [], self._registration.serving
            asked = {
                "instance": self._owner.instance,
                **self._policy.subscription.request(),
                "serving": serving,
                "info": {**_INFO, "pid": str(os.getpid())},
                "wait_s": wait_s,
            }
        link = self._open_link()
        # Not idempotent: what was lost on the way is asked for when the schedule says, not at once; another URL is.
        body = link.call(
            "POST", "/v1/poll", asked, timeout_s=poll_timeout_s(wait_s), max_retries=len(self.urls) - 1,
            idempotent=False,
        )  # fmt: skip
        reply = parse_reply(body)
        if serving and not reply.registered:
            with self._small:
                self._registration.forgotten()
        return reply

    def _open_link(self) -> ControlLink:
        with self._lock:
            if self._stopped:
                raise OSError("this process is ending")
            if self._link is None:
                credentials = self._owner.credentials
                assert credentials is not None
                expected = SpiffeId.for_service(self._trust_domain, CONTROL_SERVICE)
                self._linked_as = credentials.generation
                self._link = ControlLink(self.urls, credentials.client(expected))
            return self._link

    def _identify(self) -> None:
        """Get an identity: from the files, or by the join token. What the source raises says why there is none."""
        self._owner.identified(Credentials(self._source, self._trust_domain))

    def _believe(self, bundle: TrustBundle, generation: int, spread_s: float) -> None:
        """Roots first: what is put in force by the same reply may need them."""
        self._source.trust(bundle, generation, spread_s)
        if self._owner.credentials is not None:
            self._owner.credentials.adopt(bundle)

    def _publish(self, now: float) -> None:
        with self._lock:
            if not self._stopped:
                self._policy.publish(now)
                self._publish_at = self._policy.subscription.next_at()

    def _take(self, reply: Reply) -> None:
        credentials = self._owner.credentials
        assert credentials is not None
        self._policy.verify(reply.signed, credentials.bundle)
        with self._lock:
            if self._stopped:
                return
            self._policy.take(reply, self._now())
            self._publish_at = self._policy.subscription.next_at()
        first, away_s = not self.answered_at, self.away_since and time.time() - self.away_since
        self.answered_at, self.away_since, self.trouble = time.time(), 0.0, ""
        if away_s:
            logger.warning("the config service is back after %.0f s", away_s)
        if first:  # at once: a job may be over before the first tick
            self._save(self._now())
            credentials.refresh()

    def _take_snapshot(self) -> None:
        credentials = self._owner.credentials
        assert credentials is not None
        with self._lock:
            self._policy.take_snapshot(read_snapshot(self._folder), credentials.bundle, self._now())
            self._publish_at = self._now() + FRESH_WITHIN_S

    # What people see

    def _failed(self, error: Exception) -> None:
        self.trouble = str(error).partition("\n")[0] or type(error).__name__
        if not isinstance(error, _FAILURES):
            logger.error("what the config service said could not be taken", exc_info=error)
        if self._stopped or self.away_since:
            return
        self.away_since = time.time()
        self._publish(self._now())
        logger.warning("%s%s", self.why_away(), "; what is in force stays" if self._policy.in_force else "")
        control = self._bootstrap.control
        if not self._policy.in_force and control is not None and control.fallback == "file":
            logger.warning("the policy of the local file is in force until it answers (control.fallback: file)")
            self._owner.put_in_force(self._bootstrap)

    def _show(self) -> None:
        metrics = self._owner.metrics
        metrics.gauge("meshlib_control_up", {}, lambda: float(bool(self.answered_at) and not self.away_since))
        metrics.gauge("meshlib_control_staleness_seconds", {}, lambda: time.time() - (self.answered_at or self.began))


_INFO = {"python": platform.python_version(), "host": socket.gethostname()[:200]}
