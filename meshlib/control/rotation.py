"""When a new root may begin to sign: once nobody is left who could miss it.

    everybody who polls says that it has the `trust` with the new root, and everybody who is registered polls ─▶ at once
    otherwise: some have not come back yet, or are cut off from here and called all the same ─▶ after ROTATION_WAIT_S

Before anybody could have come back after a start, it is not known who there is. Time is counted from when the root was
published by this process, by the monotonic clock: how old the root is says nothing of whom it was told. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..identity.roots import Roots
from .polls import Process
from .registry import Key

ROTATION_WAIT_S = 60.0
"""How long a rotation of the root waits for those who do not say that they believe the new one, in seconds: reconnects
are spread over as much."""


class Rotation(NamedTuple):
    """A new root that does not sign yet. `n`: the version of `trust` that has it; `began`: monotonic seconds."""

    roots: Roots
    n: int
    began: float

    def may_end(self, now: float, all_back_at: float, polling: Iterable[Process], registered: Iterable[Key]) -> bool:
        """May it sign? `all_back_at`: until then some may not have come back since the start."""
        if now - self.began >= ROTATION_WAIT_S:
            return True
        if now < all_back_at:
            return False
        believes = {(process.service, process.instance): process.trust >= self.n for process in polling}
        return all(believes.values()) and all(key in believes for key in registered)
