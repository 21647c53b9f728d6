"""What an engine reaches beyond its own memory; `meshlib.testing` has surroundings that reach nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .scopes import LoopScope, ThreadScope

if TYPE_CHECKING:
    import asyncio

    from .engine import Engine


class Surroundings:
    """Those of production: identity files, spans, a thread, connections."""

    identities = True
    """Is there a network to protect? False: nobody has an identity, and mTLS is off."""

    def now(self) -> float:
        """Monotonic seconds, of the clock that calls run on."""
        return time.monotonic()

    def begin(self, engine: Engine) -> None:
        """The policy is in force; the last step of a start."""
        engine.begin_outside()

    def loop_scope(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> LoopScope:
        """A new scope for an event loop."""
        return LoopScope(engine, loop)

    def thread_scope(self, engine: Engine) -> ThreadScope:
        """A new scope for the threads of the process."""
        return ThreadScope(engine)
