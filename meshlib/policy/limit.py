"""Circuit breaking by concurrency: no more than so many calls to a service at once. Source: Envoy `circuit_breakers`.

Above it a call is refused at once, typed, before anything is sent: a queue would only hide that the service is down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Rejected

if TYPE_CHECKING:
    from ..call import Call, Reply
    from ..errors import MeshError
    from ..runtime import Lock
    from ..stack import Service


class Limit:
    """`max_requests` ≥ 1 calls in flight to `service`, counted to the end of the body; shared by all its routes.

    `copies`: what is mirrored to `service` beside them, as mirror.py counts it; it takes no places.
    """

    __slots__ = ("copies", "inflight", "lock", "max_requests", "service")

    def __init__(self, service: str, max_requests: int, lock: Lock) -> None:
        self.service, self.max_requests, self.lock = service, max_requests, lock
        self.inflight = self.copies = 0

    async def __call__(self, call: Call, service: Service) -> Reply:
        with self.lock:
            if self.inflight >= self.max_requests:
                raise Rejected(
                    "limit",
                    f"{self.max_requests} calls to {self.service!r} are in flight (circuit_breaker.max_requests)",
                )
            self.inflight += 1
        try:
            reply = await service(call)
        except BaseException:
            self._ended(None)
            raise
        reply.at_end(self._ended)
        return reply

    def _ended(self, _error: MeshError | None) -> None:
        with self.lock:
            self.inflight -= 1
