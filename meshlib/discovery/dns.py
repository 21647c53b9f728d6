"""The thread that asks name servers: an event loop of its own, so that no call and no other loop waits for one.

It looks up what `resolution` says is due, and tells when an answer has changed something. dnspython is imported with
the first question.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config.questions import Question, Resolved
from .resolution import Name, Resolution, Target, Values

if TYPE_CHECKING:
    from ..runtime import Rng

logger = logging.getLogger("meshlib.discovery")

LOOKUP_S = 4.0
"""A lookup takes no longer, whatever the name servers do (FAULTS F11)."""
TRY_S = 1.0
"""How long one name server is waited for before the next is asked, or it once more."""
LOOKUPS_MAX = 64
"""Lookups at the same time; others wait for their turn."""
BATCH_S = 0.02
"""Answers that come within so long are put in force together."""
STOP_WITHIN_S = 1.0
"""How long a stop waits for the thread to end; the thread does not keep a process from ending."""

Answers = Mapping[Question, Resolved]


class DnsResolver:
    """Thread-safe. `nameservers`: (IP address, port) of each; none: those of the system. `changed` is called on its
    thread, with everything that is known, whenever that is something else than before.
    """

    def __init__(self, nameservers: Sequence[tuple[str, int]], rng: Rng, changed: Callable[[Answers], None]) -> None:
        self._nameservers, self._changed = tuple(nameservers), changed
        self._resolution, self._lock = Resolution(rng), threading.Lock()
        self._answers: Answers = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    def answers(self) -> Answers:
        """What is known."""
        return self._answers

    def follow(self, questions: Collection[Question]) -> None:
        """Keep these answered from now on."""
        with self._lock:
            if not self._resolution.follow(questions, time.monotonic()) or self._stopped:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="meshlib-dns", daemon=True)
                self._thread.start()
        self._nudge()

    def keep(self, questions: Collection[Question]) -> None:
        """Let go of every question but these."""
        with self._lock:
            self._resolution.keep(questions, time.monotonic())

    def stop(self) -> None:
        """Ask nothing any more. Idempotent; waits `STOP_WITHIN_S` at most."""
        self._stopped = True
        self._nudge()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_WITHIN_S)

    def _nudge(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:  # closed in this very moment
                return

    # On the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._follow_all())
        except Exception:
            logger.exception("names are not resolved any more; the addresses that are known stay in force")

    async def _follow_all(self) -> None:
        self._wake, self._places = asyncio.Event(), asyncio.Semaphore(LOOKUPS_MAX)
        self._loop = asyncio.get_running_loop()
        lookups: set[asyncio.Task[None]] = set()
        while not self._stopped:
            now = time.monotonic()
            with self._lock:
                due = self._resolution.due(now)
                answers, wake_at = self._resolution.answers(now), self._resolution.wake_at()
            for name in due:
                lookups.add(task := asyncio.create_task(self._look_up(name)))
                task.add_done_callback(lookups.discard)
            if answers != self._answers:
                self._answers = answers
                self._tell(answers)
            try:
                await asyncio.wait_for(self._wake.wait(), None if wake_at == math.inf else max(0.0, wake_at - now))
            except TimeoutError:
                continue
            self._wake.clear()
            await asyncio.sleep(BATCH_S)
        for task in lookups:
            task.cancel()

    def _tell(self, answers: Answers) -> None:
        try:
            self._changed(answers)
        except Exception:
            logger.exception("what name servers said is not in force; the next change is told again")

    async def _look_up(self, name: Name) -> None:
        values: Values | None = ()
        ttl_s, trouble = 0.0, "the name has no such records"
        async with self._places:
            try:
                values, ttl_s = await asyncio.wait_for(self._ask(name), LOOKUP_S)
            except TimeoutError:
                trouble = "no name server has answered in time"
            except ImportError:
                trouble = "dnspython is not installed: pip install 'service-meshlib[dns]'"
            except Exception as error:  # whatever a name server makes of it, the name is asked again later
                trouble = str(error) or type(error).__name__
        now = time.monotonic()
        with self._lock:
            if values:
                self._resolution.found(name, values, ttl_s, now)
                news = False
            elif values is None:
                trouble, news = "there is no such name", self._resolution.missing(name, ttl_s, now)
            else:
                news = self._resolution.failed(name, trouble, now)
        if news:
            logger.warning("%s %s: %s; addresses that are known are kept", *name, trouble)
        self._wake.set()

    async def _ask(self, name: Name) -> tuple[Values | None, float]:
        """What there is, and for how long; None: it is said that there is no such name."""
        from dns.resolver import NXDOMAIN

        try:
            return await self._records(name)
        except NXDOMAIN as error:
            return None, _negative_ttl_s(error)

    async def _records(self, name: Name) -> tuple[Values | None, float]:
        resolver = self._resolver()
        if name.kind == "srv":
            answer = await _answer(resolver, name.name, "SRV")
            targets = tuple(
                Target(each.priority, each.weight, each.port, each.target.to_text(omit_final_dot=True).lower())
                for each in answer.rrset or ()
                if each.target.labels != (b"",)
            )
            return None if answer.rrset and not targets else targets, _ttl_s(answer)
        answer = await _answer(resolver, name.name, "A")
        if not answer.rrset:
            answer = await _answer(resolver, name.name, "AAAA")
        return tuple(each.address for each in answer.rrset or ()), _ttl_s(answer)

    def _resolver(self) -> Any:
        """A new one each time: what the system says may have changed."""
        from dns.asyncresolver import Resolver
        from dns.nameserver import Do53Nameserver

        resolver = Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = [Do53Nameserver(*address) for address in self._nameservers]
        resolver.timeout, resolver.lifetime = TRY_S, LOOKUP_S
        return resolver


async def _answer(resolver: Any, name: str, kind: str) -> Any:
    return await resolver.resolve(name, kind, search=True, raise_on_no_answer=False)


def _ttl_s(answer: Any) -> float:
    return float(answer.chaining_result.minimum_ttl)


def _negative_ttl_s(error: Any) -> float:
    """What the zone says, by its SOA; 0 where it says nothing."""
    ttls = [response.resolve_chaining().minimum_ttl for response in error.responses().values() if response.authority]
    return float(min(ttls, default=0))
