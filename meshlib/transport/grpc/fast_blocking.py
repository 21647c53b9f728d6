"""The same for threads as fast.py: a unary attempt by one batch of grpc's Cython layer, without grpc's own account of
it (a Condition, a set of what is due, a Future). The rules for its use are those of fast.py (ADR 0025).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from grpc._cython import cygrpc

from .fast import ALLOWED

if TYPE_CHECKING:
    from .call import Metadata
    from .connections import Connection

log = logging.getLogger("meshlib")

_DEADLINE_EXCEEDED = 4


class FastBlockingPath:
    """`ready`: has the probe passed?"""

    def __init__(self, allowed: bool) -> None:
        self.ready, self._allowed = False, allowed

    def probe(self, connection: Connection) -> None:
        """At the first attempt: a call whose deadline has passed must end as such a call does. Never raises."""
        if not self._allowed:
            return
        self._allowed = False
        try:
            call = FastBlockingCall(connection, b"/meshlib.Probe/Probe", b"", -1.0, ())
            said = (call.status(), call.initial_metadata(), call.trailing_metadata(), call.body)
            texts = (call.details(), call.debug_error_string())
            self.ready = said == (_DEADLINE_EXCEEDED, (), (), None) and all(isinstance(t, str) for t in texts)
        except Exception as error:  # whatever it is, the public API is there
            log.debug("gRPC on threads: %r: attempts go by the public API of grpc", error)


FAST_BLOCKING = FastBlockingPath(ALLOWED)


class FastBlockingCall(grpc.Call, grpc.Future):  # type: ignore[misc]
    """An attempt, made and waited for on this thread; it is over when there is one. `body`: None where it failed.
    For who asked `with_call`, it is what grpc's own object is.
    """

    __slots__ = ("_initial", "_status", "body")

    def __init__(
        self, connection: Connection, method: bytes, request: bytes, left: float | None, metadata: Metadata
    ) -> None:
        made = connection.multicallable("unary_unary", method)
        initial, message = cygrpc.ReceiveInitialMetadataOperation(0), cygrpc.ReceiveMessageOperation(0)
        status = cygrpc.ReceiveStatusOnClientOperation(0)
        operations = (
            cygrpc.SendInitialMetadataOperation(metadata, 0),
            cygrpc.SendMessageOperation(request, 0),
            cygrpc.SendCloseFromClientOperation(0),
            initial,
            message,
            status,
        )
        made._channel.segregated_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            made._method,
            None,
            None if left is None else time.time() + left,
            metadata,
            None,
            ((operations, None),),
            None,
            made._registered_call_handle,
        ).next_event()
        self._initial, self._status = initial, status
        self.body: bytes | None = message.message() if status.code() == 0 else None

    def status(self) -> int:
        """The number of its code."""
        number: int = self._status.code()
        return number

    def initial_metadata(self) -> Any:
        """The server's headers."""
        return self._initial.initial_metadata()

    def trailing_metadata(self) -> Any:
        """The server's trailers."""
        return self._status.trailing_metadata()

    def code(self) -> grpc.StatusCode:
        """OK: what failed is told otherwise."""
        return grpc.StatusCode.OK

    def details(self) -> str:
        """What is said of the code."""
        said: str = self._status.details()
        return said

    def debug_error_string(self) -> str:
        """Grpc's own account of a failure."""
        said: str = self._status.error_string()
        return said

    def is_active(self) -> bool:
        """It is over."""
        return False

    def time_remaining(self) -> float | None:
        """Of a call that is over: none."""
        return None

    def cancel(self) -> bool:
        """Too late."""
        return False

    def cancelled(self) -> bool:
        """It was not."""
        return False

    def running(self) -> bool:
        """It is over."""
        return False

    def done(self) -> bool:
        """It is over."""
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Too late for one."""
        return False

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """At once."""
        fn(self)

    def result(self, timeout: float | None = None) -> Any:
        """The serialised answer."""
        return self.body

    def exception(self, timeout: float | None = None) -> None:
        """None."""

    def traceback(self, timeout: float | None = None) -> None:
        """None."""
