"""`gunicorn -k meshlib.transport.gunicorn.PeerWorker app:app`: the same serving path on gunicorn's sockets.

`app` is `mesh.asgi(…)`, `mesh.wsgi(…)`, or a bare ASGI or WSGI application. TLS is the mesh's own, so gunicorn is given
no certificate. gunicorn's graceful timeout is the drain's grace. The master is notified from the server's own loop: a
worker whose loop is stuck is replaced, as gunicorn promises. Source: `uvicorn-worker`, gunicorn's `workers/base.py`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from .serving import PROPAGATION_S, MeshServer

_RESET = ("ABRT", "HUP", "QUIT", "INT", "TERM", "USR1", "USR2", "WINCH", "CHLD")


class PeerWorker(Worker):  # type: ignore[misc]
    """A worker process: one event loop, one MeshServer."""

    server: MeshServer

    def init_signals(self) -> None:
        """The server handles TERM and INT itself; QUIT ends at once; the rest is gunicorn's."""
        for name in _RESET:
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, lambda *_: self.server.stop(force=True))
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        signal.signal(signal.SIGABRT, self.handle_abort)
        signal.siginterrupt(signal.SIGUSR1, False)

    def run(self) -> None:
        """Serve until the master says otherwise, or is gone."""
        grace_s = float(self.cfg.graceful_timeout)
        propagation_s = min(PROPAGATION_S, grace_s / 2)
        self.server = MeshServer(
            self.wsgi,
            sockets=[listener.sock for listener in self.sockets],
            propagation_s=propagation_s,
            grace_s=grace_s - propagation_s,
            on_tick=self._tick,
            max_requests=None if self.max_requests == sys.maxsize else self.max_requests,
        )
        try:
            self.server.run()
        except Exception:
            self.log.exception("the worker failed")
            # A boot error stops the master too: right for what would fail again, not for what ran already.
            sys.exit(1 if self.server.address else Arbiter.WORKER_BOOT_ERROR)

    def _tick(self) -> None:
        self.notify()
        if self.ppid != os.getppid():
            self.log.info("the master is gone: %s ends", self)
            self.server.stop()

    def handle_usr1(self, sig: Any, frame: Any) -> None:
        """Reopen the log files."""
        self.log.reopen_files()
