"""The policy of a mesh that has no config service: a file, looked at, read again when it has changed.

What turns bad later is reported, counted, and changes nothing. The counterpart of `follower`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .agent import FileWatch
from .errors import ConfigError

if TYPE_CHECKING:
    from .config import MeshConfig
    from .snapshot import Snapshot
    from .telemetry.metrics import Metrics

logger = logging.getLogger("meshlib")

AGAIN_S = 1.0
"""An edit that needs an identity which cannot be had is tried again after so long."""
RESOURCE = "mesh.yaml"
"""The label of `meshlib_policy_version` and `meshlib_policy_rejected_total`."""


class Owner(Protocol):
    """What this needs of the engine."""

    policy: Snapshot
    metrics: Metrics

    def identify(self, config: MeshConfig) -> None:
        """Get the identity that a configuration needs, or ConfigError."""

    def put_in_force(self, config: MeshConfig) -> None:
        """Another policy."""


class WatchedFile:
    """`read` gives the configuration, or ConfigError. `given`: the path as given, a file or a directory; None: there is
    none, and only the files that it names are watched.
    """

    def __init__(self, owner: Owner, read: Callable[[], MeshConfig], given: Path | None) -> None:
        self._owner, self._read, self._given = owner, read, given
        self._watch = FileWatch(self._files(owner.policy.config.files))
        self.again_at, self._reported = math.inf, ""
        owner.metrics.gauge("meshlib_policy_version", {"resource": RESOURCE}, lambda: owner.policy.version)
        self._rejections = owner.metrics.counter("meshlib_policy_rejected_total", {"resource": RESOURCE})

    def tick(self) -> None:
        """Read it again if it has changed, or an edit is to be tried again."""
        if self._watch.changed() or time.monotonic() >= self.again_at:
            self.reload()

    def reload(self) -> bool:
        """Read it again and put it in force, or report why not. True when something changed."""
        self.again_at = math.inf
        try:
            config = self._read()
        except ConfigError as error:
            self._watch.follow(self._files((*self._owner.policy.config.files, *error.files)))
            self._rejected(error)
            return False
        self._watch.follow(self._files(config.files))
        if config.version_number == self._owner.policy.version:
            return False
        try:
            self._owner.identify(config)
        except ConfigError as error:
            self.again_at = time.monotonic() + AGAIN_S
            self._rejected(error)
            return False
        self._owner.put_in_force(config)
        self._reported = ""
        return True

    def _files(self, read: Iterable[Path]) -> Iterable[Path]:
        """These, and the path as given: what is a part of a directory need not have been read, if another is broken."""
        return dict.fromkeys([*(() if self._given is None else (self._given,)), *read])

    def _rejected(self, error: ConfigError) -> None:
        if str(error) != self._reported:
            self._reported = str(error)
            self._rejections.add()
            logger.error("the edited mesh.yaml is not used, the last good one stays in force:\n%s", error)
