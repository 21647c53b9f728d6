"""The config service: the registry, the policy, the certificates and the polls, as one thing that changes in order.

    register, lease over ─┐
    mesh.yaml, PUT ───────┼─▶ proposed ──▶ stored, one transaction ──▶ published ──▶ those who wait are woken
    rotate, revoke ───────┘   (one change at a time)

All but the disk is confined to the event loop, so nothing here is locked but the order of changes. What registrations
and leases change is collected for `COALESCE_S` and published together, at most once per `PACE_S`. Nothing is answered
before it is stored. Sources: DESIGN §2.5; FAULTS F04, F07, F24, F29.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from ..errors import ConfigError, Problem
from ..identity.authority_file import AuthorityFile
from ..identity.roots import PROPAGATION_S
from ..identity.signature import Signer
from ..identity.svid import Svid, TrustBundle, enrolment_of
from ..runtime import Rng
from .catalog import Catalog
from .clock import HybridClock
from .issuance import Issuer
from .memory import give_back
from .messages import Poll, Register
from .polls import Ended, Interest, Polls, Process
from .protocol import Listening
from .publication import endpoints_content, policy_contents
from .registry import GRACE_S, TTL_S, Instance, Registry
from .rotation import Rotation
from .store import Policy, PolicyChanged, Store, StoreError
from .twins import Twins
from .watch import Read
from .who import Gate, Member
from .writer import Writer

COALESCE_S = 0.1
"""How long changes of the registry are collected before they are published together, in seconds."""
PACE_S = 0.2
"""Changes of the registry are published at most once in so many seconds (F07: five times a second)."""
RETRY_S = 1.0
"""When a publication that the store refused is tried again, in seconds."""
REPLY_BYTES_MAX = 8 * 1024 * 1024
"""Fragments of one reply; the rest comes with the next poll."""
REPLIES_BYTES_MAX = 64 * 1024 * 1024
"""Replies that are kept to be sent to others who have missed the same; beyond, they are made anew."""
REJECTIONS_KEPT, WHY_KEPT = 32, 500
"""Rejections of one process that the status shows, and characters of each reason; the rest is cut."""
RENEWALS_PER_S = 50
"""Leaves a second that processes are to ask for in a rotation; each is a signature and a transaction."""
SPREAD_S_MAX = 600.0
"""The longest time over which processes spread their renewals, in seconds."""
UPKEEP_S = 60.0
"""How often the store is cleaned and the roots' ages are looked at, in seconds."""
CLOCK_STEP_S = 60.0
"""By how much the clocks may part between two upkeeps, in seconds. Beyond, nothing is forgotten for being old."""
BOOTSTRAP = ("control", "identity", "policy_source", "ca", "state_dir")
"""What the config service reads of its mesh.yaml when it starts, and not again."""

_log = logging.getLogger("meshlib.control")


class Equipment(NamedTuple):
    """What this service proves itself with, and whom it no longer believes."""

    svid: Svid
    signer: Signer
    bundle: TrustBundle
    context: ssl.SSLContext | None


class Ending(Exception):
    """A poll at the end of this service. Who is refused comes back in a while of its own; who is answered, at once."""


class ControlPlane:
    """Made within the running event loop, by which all its times are; `wall` gives unix seconds.

    `read`: the policy to begin with. `after_rotation`: called when another root may be the one that all believe, in
    the thread that may wait for the disk. StoreError, OSError or ValueError where the state cannot be used.
    """

    def __init__(
        self,
        read: Read,
        store: Store,
        issuer: Issuer,
        authority: AuthorityFile,
        listening: Listening,
        gate: Gate,
        rng: Rng,
        wall: Callable[[], float] = time.time,
        after_rotation: Callable[[], Any] = lambda: None,
    ) -> None:
        self.store, self.issuer, self.authority, self.listening, self.gate = store, issuer, authority, listening, gate
        self.mesh, self.trust_domain = read.config.mesh, read.config.trust_domain
        self.wall, self._after_rotation, self._loop = wall, after_rotation, asyncio.get_running_loop()
        self.now = self._loop.time
        self.writer, self.registry, self._twins = Writer(), Registry(), Twins()
        self.polls = Polls(self._loop, rng, TTL_S)
        self.clock = HybridClock(store.last_n(), wall)
        self.catalog = Catalog(store.epoch, self.mesh, self.clock, issuer.signer())
        self.policy = Policy(0, 0.0, "", "")
        self._bootstrap = read.config
        self._edit: Read | ConfigError | None = None
        self.edits_kept_out, self.problems = 0, ()  # type: int, tuple[Problem, ...]
        self.rotation: Rotation | None = None
        self.draining = False
        self._signer_json = ""
        self._changing = asyncio.Lock()
        self._published: asyncio.Future[None] | None = None
        self._next_pace = self._next_upkeep = float("-inf")
        self._own_life = (0.0, 0.0)
        self._all_back_at = self.now() + (0.0 if issuer.is_new else GRACE_S)
        self._clocks = wall(), self.now()
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_it: set[str] = set()
        self._replies: dict[tuple[Interest, tuple[str, ...], int, bool], bytes] = {}
        self._replies_bytes = 0
        self._restore(read)

    def _restore(self, read: Read) -> None:
        """Begin where the store stopped, with the policy `read`. Before anybody is served, so it may wait."""
        self.catalog.load(self.store.resources())
        self.registry.restore(self.store.instances(), self.now())
        known = self.store.policy()
        contents = policy_contents(read.config, self.catalog.services(), self.registry.endpoints)
        trust = self.issuer.trust_content(self._spread_s())
        rows = self.catalog.propose({**contents, "trust": trust} if self._is_news(trust) else contents)
        if known is None or known.document != read.document:
            known = Policy(self.clock.next(), self.wall(), read.source, read.document)
            self.store.add_policy(*known, rows)
        else:
            self.store.save(rows)
        self.policy = known
        self.catalog.put(rows)
        self._equip(self._equipment())
        self._begin_rotation(trust)

    # Polls

    def poll(self, member: Member, asked: Poll) -> tuple[Process, asyncio.Future[Ended] | bytes]:
        """Begin a poll: the process, and the reply, or what the poll waits for. PollsFull. The caller calls `polled`
        when it is over, however it ends.
        """
        interest = self.polls.interest(member.service, asked.want)
        resources = self.catalog.closure(interest.own, interest.want)
        process = Process(asked.instance, member.serial, interest, resources)
        process.registered = self.registry.polling(asked.instance, member.service, self.now())
        try:
            self.polls.begin(process)
        except Exception:
            self.registry.polled(asked.instance, member.service, self.now())
            raise
        try:
            return process, self._held(process, asked)
        except BaseException:
            self.polled(process)
            raise

    def _held(self, process: Process, asked: Poll) -> asyncio.Future[Ended] | bytes:
        resources, epoch = process.resources, self.catalog.epoch
        have = {**asked.have, **{resource: rejection.version for resource, rejection in asked.rejected.items()}}
        told = islice(asked.rejected.items(), REJECTIONS_KEPT)
        process.rejected = {resource: rejection.why[:WHY_KEPT] for resource, rejection in told}
        process.load, process.info = asked.load, asked.info
        trust = asked.have.get("trust", ("", 0))  # not one that it has rejected
        process.trust = trust[1] if trust[0] == epoch else 0
        process.behind = tuple(resource for resource in resources if self.catalog.has_newer((resource,), have))
        if self.draining:
            raise Ending
        if process.behind or (asked.serving and not process.registered):
            return self._reply(process.registered, self.catalog.newer(process.behind, have, REPLY_BYTES_MAX))
        process.since = max(self.catalog.version(resource)[1] for resource in resources)
        return self.polls.wait(process, asked.wait_s)

    def reply(self, process: Process, ended: Ended) -> bytes:
        """The reply to a poll that has waited. Ending."""
        if ended is not Ended.NEWS:
            if self.draining:
                raise Ending
            return self._reply(process.registered, [])
        key = (process.interest, process.resources, process.since, process.registered)
        found = self._replies.get(key)
        if found is None:
            have = dict.fromkeys(process.resources, (self.catalog.epoch, process.since))
            resources = self.catalog.closure(process.interest.own, process.interest.want)
            found = self._reply(process.registered, self.catalog.newer(resources, have, REPLY_BYTES_MAX))
            self._keep_reply(key, found)
        return found

    def polled(self, process: Process) -> None:
        """A poll is over: from now on its lease runs."""
        self.polls.finish(process)
        self.registry.polled(process.instance, process.service, self.now())

    def _reply(self, registered: bool, fragments: list[bytes]) -> bytes:
        signer = self._signer_json if fragments else '""'
        head = (
            f'{{"epoch":"{self.catalog.epoch}","registered":{"true" if registered else "false"},'
            f'"reconnect_s":{self.polls.reconnect_s},"signer":{signer},"fragments":['
        )
        return b"".join((head.encode("ascii"), b",".join(fragments), b"]}"))

    def _keep_reply(self, key: tuple[Interest, tuple[str, ...], int, bool], reply: bytes) -> None:
        self._replies_bytes += len(reply)
        if self._replies_bytes > REPLIES_BYTES_MAX:
            self._forget_replies()
        self._replies[key] = reply

    def _forget_replies(self) -> None:
        self._replies.clear()
        self._replies_bytes = 0

    # The registry

    async def register(self, member: Member, asked: Register) -> None:
        """Register an instance; returns when it is stored. RegistryFull, ValueError, StoreError."""
        instance = Instance(asked.instance, member.service, asked.address, asked.zone, asked.weight, asked.labels)
        before = self.registry.find(asked.instance, member.service)
        self.registry.register(instance, self.now())
        self._twins.look(before, instance)
        self._tell_registered(member, asked.instance, True)
        await self._settled()

    async def drain(self, member: Member, instance: str) -> None:
        """It takes no new calls; returns when that is stored. UnknownInstance, StoreError."""
        self.registry.drain(instance, member.service, self.now())
        await self._settled()

    async def deregister(self, member: Member, instance: str) -> None:
        """It is gone; returns when that is stored. UnknownInstance, StoreError."""
        self.registry.deregister(instance, member.service, self.now())
        self._tell_registered(member, instance, False)
        await self._settled()

    def _tell_registered(self, member: Member, instance: str, registered: bool) -> None:
        process = self.polls.find(member.service, instance)
        if process is not None:
            process.registered = registered

    async def _settled(self) -> None:
        """Returns when what is changed by now is stored and published."""
        await asyncio.shield(self._changed())

    def _changed(self) -> asyncio.Future[None]:
        """See to it that what has changed is soon published; done when it is."""
        if self._published is None:
            self._published = self._loop.create_future()
            self._published.add_done_callback(lambda done: done.cancelled() or done.exception())
            delay_s = max(COALESCE_S, self._next_pace - self.now())
            self._loop.call_later(delay_s, self.spawn, "publication", self._publish)
        return self._published

    async def _publish(self) -> None:
        """Store and publish what has changed in the registry."""
        async with self._changing:
            told, self._published = self._published, None
            services, instances, gone = self.registry.take_changed()
            if services:
                self._next_pace = self.now() + PACE_S
            known = set(self.catalog.services())
            contents = {
                f"endpoints/{name}": endpoints_content(self.registry.endpoints(name), in_policy=name in known)
                for name in services
            }
            rows = self.catalog.propose(contents)
            try:
                if rows or instances or gone:
                    await self.writer.run(self.store.save, rows, instances, gone)
            except Exception as error:
                self.registry.put_back(services, instances, gone)
                self._loop.call_later(RETRY_S, self._changed)
                if told is not None:
                    told.set_exception(error)
                raise
            changed = self.catalog.put(rows)
            if told is not None:
                told.set_result(None)
        self._wake(changed)

    # The policy

    async def publish_policy(self, read: Read, expected: int | None = None) -> int:
        """Put a policy in the place of the last: its version. `expected`: the version that it must be in the place of.
        ConfigError, PolicyChanged, StoreError.
        """
        self._check_mesh(read)
        async with self._changing:
            if expected is not None and expected != self.policy.n:
                raise PolicyChanged(self.policy.n)
            contents = policy_contents(read.config, self.catalog.services(), self.registry.endpoints)
            rows = self.catalog.propose(contents)
            policy = Policy(self.clock.next(), self.wall(), read.source, read.document)
            await self.writer.run(self.store.add_policy, *policy, rows)
            self.policy, self.problems = policy, ()
            changed = self.catalog.put(rows)
        _log.info("policy version %d from %s: %d resources changed", policy.n, read.source, len(changed))
        self._wake(changed)
        return policy.n

    async def edited(self, read: Read | ConfigError) -> None:
        """The watched file has changed: publish it, or say loudly why not, and keep what is in force."""
        self._edit = read
        try:
            if isinstance(read, ConfigError):
                raise read
            await self.publish_policy(read)
        except ConfigError as error:
            self.edits_kept_out += 1
            self.problems = error.problems or (Problem("", 0, 0, "", str(error)),)
            _log.error("an edit of the policy is kept out, version %d stays in force:\n%s", self.policy.n, error)
        except StoreError:
            self._loop.call_later(RETRY_S, self._edit_again, read)
            raise
        else:
            self._say_what_waits(read)

    def _edit_again(self, read: Read | ConfigError) -> None:
        if self._edit is read:
            self.spawn("the edited policy", self.edited, read)

    def _say_what_waits(self, read: Read) -> None:
        """An edit may change more than the policy: that is for the next start."""
        waits = [name for name in BOOTSTRAP if getattr(read.config, name) != getattr(self._bootstrap, name)]
        if waits:
            _log.warning("%s: read when the config service is started again", ", ".join(waits))

    def _check_mesh(self, read: Read) -> None:
        for name, value in (("mesh", self.mesh), ("trust_domain", self.trust_domain)):
            if (found := getattr(read.config, name)) != value:
                message = f"{read.config.place((name,))}: {name}: this config service serves {value!r}, not {found!r}"
                raise ConfigError(f"{message}; that is another mesh, with a state_dir of its own")

    # Trust

    async def rotate(self, root: bool, force: bool = False) -> int:
        """Ask every process for a new leaf; `root`: begin to replace the root, which ends by itself once all believe
        the new one. The new generation. RotationTooSoon, unless `force`.
        """
        if not root:
            generation = await self.writer.ask(self.issuer.rotate_leaves)
            await self.publish_trust()
            return generation
        roots = await self.writer.ask(self.issuer.rotate_root_begin, force)
        await self.publish_trust()
        return int(roots.generation)

    async def revoke(self, serial: int) -> list[int]:
        """Believe no leaf of the enrolment any more that this one belongs to. This one, and those of it that are known
        to be in use. ValueError where there is none.
        """
        enrolment = enrolment_of(serial)
        in_use = {process.serial for process in self.polls if enrolment_of(process.serial) == enrolment}
        await self.writer.ask(partial(self.issuer.revoke, serial, seen=bool(in_use)))
        await self.publish_trust()
        self.polls.end_all({process.serial for process in self.polls if enrolment_of(process.serial) == enrolment})
        return [serial, *sorted(in_use - {serial})]

    async def publish_trust(self) -> None:
        """Publish the roots, the generation and the revoked enrolments as they are now, and take what of our own hangs
        on them anew.
        """
        async with self._changing:
            content = await self.writer.run(self.issuer.trust_content, self._spread_s())
            rows = self.catalog.propose({"trust": content}) if self._is_news(content) else []
            if rows:
                await self.writer.run(self.store.save, rows)
            if rows or self._is_worn():
                self._equip(await self.writer.run(self._equipment))
            changed = self.catalog.put(rows)
            self._begin_rotation(content)
        self._wake(changed)

    def _begin_rotation(self, content: Mapping[str, Any]) -> None:
        """Where a root is coming and the published `content` of `trust` has it: wait from now on for all to have it."""
        coming = self.issuer.coming
        if coming is None or coming.coming is None or self.rotation is not None:
            return
        if coming.coming.certificate_pem.decode() in content["bundle"]:
            self.rotation = Rotation(coming, self.catalog.version("trust")[1], self.now())
            _log.info("a new root is believed from now on; it signs once every process believes it")

    def _is_news(self, content: Mapping[str, Any]) -> bool:
        """Has more changed than how long renewals would be spread?"""
        before = self.catalog.content("trust") or {}
        return any(before.get(name) != content[name] for name in ("bundle", "generation", "revoked"))

    def _equipment(self) -> Equipment:
        """New ones of what this service proves itself with. In the writer's thread, or before there is one."""
        self._after_rotation()
        svid, signer, content = self.issuer.own_svid(), self.issuer.signer(), self.issuer.trust_content(0.0)
        revoked = frozenset(int(enrolment, 16) for enrolment in content["revoked"])
        bundle = TrustBundle(self.trust_domain, content["bundle"].encode(), revoked)
        return Equipment(svid, signer, bundle, self.listening.prepared(svid, bundle))

    def _equip(self, own: Equipment) -> None:
        self.listening.use(own.context)
        self.gate.trust(own.bundle.revoked, own.bundle.key_identifiers())
        self._own_life = own.svid.not_before, (own.svid.not_before + own.svid.not_after) / 2
        self._signer_json = json.dumps(own.signer.chain_pem.decode())
        self.catalog.resigned(own.signer)

    def _is_worn(self) -> bool:
        """Is it time for another leaf of our own? Also where ours begins later than now, since the clock went back."""
        return not self._own_life[0] <= self.wall() < self._own_life[1]

    def _spread_s(self) -> float:
        return min(SPREAD_S_MAX, max(1.0, round(len(self.polls) / RENEWALS_PER_S, 1)))

    async def _end_rotation(self) -> None:
        rotation = self.rotation
        if rotation is not None:
            await self.writer.run(self.issuer.rotate_root_end, rotation.roots)
            await self.publish_trust()
            self.rotation = None
            _log.info("the new root signs")

    def _may_end(self, rotation: Rotation) -> bool:
        now = self.now()
        if now - rotation.began < PROPAGATION_S:
            return False
        return rotation.may_end(now, self._all_back_at, self.polls, self.registry.keys())

    # Time

    def tick(self) -> None:
        """About once a second: let happen what time asks for."""
        now = self.now()
        self.polls.sweep()
        self.registry.expire(now)
        self._changed()  # an absent instance that polls is back, and a lease may have ended
        if self.rotation is not None and self._may_end(self.rotation):
            self._spawn_once("rotation", self._end_rotation)
        elif self._is_worn():
            self._spawn_once("renewal", self.publish_trust)
        if now >= self._next_upkeep:
            self._next_upkeep = now + UPKEEP_S
            self._spawn_once("upkeep", self._upkeep)

    async def _upkeep(self) -> None:
        await self.writer.run(give_back)
        before, self._clocks = self._clocks, (self.wall(), self.now())
        passed_s, ran_s = (after - was for after, was in zip(self._clocks, before, strict=True))
        if abs(passed_s - ran_s) <= CLOCK_STEP_S:
            await self.writer.run(self.store.forget, self._clocks[0])
        await self.writer.run(self.issuer.due)
        await self.publish_trust()

    def spawn(self, name: str, work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Do it beside everything else. What fails is logged."""
        task = self._loop.create_task(self._guarded(name, work(*args)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _spawn_once(self, name: str, work: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        """The same, unless the last one is still at it."""
        if name not in self._at_it:
            self._at_it.add(name)
            self.spawn(name, work)

    async def _guarded(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except StoreError as error:
            _log.error("%s: %s", name, error)
        except Exception:
            _log.exception("%s failed", name)
        finally:
            self._at_it.discard(name)

    def _wake(self, changed: set[str]) -> None:
        if changed:
            self._forget_replies()
            self.polls.wake(changed)

    def stop_holding(self) -> None:
        """The service is about to end: refuse every poll, now, so that the herd spreads its return (see `Ending`)."""
        self.draining = True
        self.polls.close()

    async def close(self) -> None:
        """End what is under way, let go of the store."""
        self.stop_holding()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.writer.close()
        self.store.close()
