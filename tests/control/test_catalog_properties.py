"""The catalog under random changes, failures and restarts, as a process sees it that polls."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshlib.control.catalog import Catalog
from meshlib.control.clock import HybridClock

from .signers import CountingSigner, as_signer

RESOURCES = ["service/a", "service/b", "endpoints/a", "service/never"]
CONTENTS = st.sampled_from([None, {"needs": []}, {"needs": ["b"]}])


class CatalogModel(RuleBasedStateMachine):
    """Changes are put, lost, or cut off by kill -9. `seen`: what a process has, which takes whatever is newer."""

    def __init__(self) -> None:
        super().__init__()
        self.wall, self.stored = 1.0, {}  # type: float, dict[str, Row]
        self.seen: dict[str, tuple[int, Any]] = {}
        self._start()

    def _start(self) -> None:
        last = max((row.n for row in self.stored.values()), default=0)
        self.catalog = Catalog("e", "shop", HybridClock(last, lambda: self.wall), as_signer(CountingSigner()))
        self.catalog.load(self.stored.values())

    @rule(
        contents=st.dictionaries(st.sampled_from(RESOURCES[:3]), CONTENTS),
        ends=st.sampled_from(["put", "cannot store", "killed before", "killed after"]),
    )
    def change(self, contents: dict[str, Any], ends: str) -> None:
        """It is one exactly where the content differs. What was not stored was not visible."""
        differ = {name for name, content in contents.items() if content != self.catalog.content(name)}
        rows = self.catalog.propose(contents)
        assert {row.resource for row in rows} == differ
        if ends in ("put", "killed after"):
            self.stored.update((row.resource, row) for row in rows)
        if ends == "put":
            assert self.catalog.put(rows) == differ
            assert self.catalog.put(rows) == set(), "twice"
        if ends.startswith("killed"):
            self._start()

    @rule(seconds=st.floats(-5.0, 5.0))
    def wall_clock_moves(self, seconds: float) -> None:
        self.wall = max(0.0, self.wall + seconds)

    @rule()
    def poll(self) -> None:
        """A process that takes what is newer has, afterwards, exactly what is published; nothing comes twice."""
        have = {name: ("e", n) for name, (n, _) in self.seen.items()}
        assert self.catalog.has_newer(RESOURCES, have) == bool(self.catalog.newer(RESOURCES, have, 1 << 30))
        for fragment in self.catalog.newer(RESOURCES, have, 1 << 30):
            payload = json.loads(json.loads(fragment)["payload"])
            n, _ = self.seen.get(payload["resource"], (0, None))
            assert payload["n"] > n, "a version went back"
            self.seen[payload["resource"]] = payload["n"], payload["content"]
        for name in RESOURCES:
            assert self.seen[name] == (self.catalog.version(name)[1], self.catalog.content(name))

    @invariant()
    def publishes_what_is_stored(self) -> None:
        """So a restart takes nothing back."""
        for name, row in self.stored.items():
            assert self.catalog.version(name)[1] == row.n
            assert self.catalog.content(name) == json.loads(row.json)


CatalogModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestCatalog(CatalogModel.TestCase):
    """No version goes back, nothing acknowledged is lost, nothing unchanged is new."""
