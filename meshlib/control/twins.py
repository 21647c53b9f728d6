"""Two processes that call themselves the same: each takes the place of the other, and one of them gets no calls.

It may as well be one that was killed and started again elsewhere, which is nobody's mistake: so it is said, not
refused.
"""

from __future__ import annotations

import logging

from .registry import Instance

PAIRS_MAX = 1_000
"""Pairs that were told of and are remembered; beyond, the oldest is forgotten, and told of again."""

_log = logging.getLogger("meshlib.control")


class Twins:
    """Tells of each pair of addresses once."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, frozenset[str]], None] = {}

    def look(self, before: Instance | None, after: Instance) -> None:
        """`after` registers where `before` is registered."""
        if before is None or before.absent or before.draining or before.address == after.address:
            return
        pair = after.service, after.id, frozenset((before.address, after.address))
        if pair in self._told:
            return
        self._told[pair] = None
        if len(self._told) > PAIRS_MAX:
            del self._told[next(iter(self._told))]
        _log.warning(
            "instance %s of %s was at %s and registers at %s: if both run, they replace each other, and each needs a "
            "MESHLIB_INSTANCE of its own", after.id, after.service, before.address, after.address,
        )  # fmt: skip
