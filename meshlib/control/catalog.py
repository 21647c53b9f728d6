"""What is published: of each resource the version, the content, and the signed bytes that all pollers share.

1.  A change is proposed (it gets its version), stored by the caller, and only then put: nobody sees what a crash could
    take back. A version is a number of `HybridClock`: of one resource it never goes back, and content that does not
    change keeps it, over restarts too. Another epoch is another store: then everything is new.
2.  A fragment is built and signed once per version, when it is first asked for. 10,000 pollers get the same bytes.
3.  A service that is not there is published too, as null: so its callers learn it at once, and learn when it comes. One
    that never was costs nothing: all of these have one version, FIRST. One that is gone has a version of its own;
    beyond GONE_MAX the older half become like those that never were, at the version of the newest among them.
4.  Whoever wants a service needs what its routes name, and what the routes of those name: the closure. It is the same
    for all processes of a service, and is worked out once until a service changes.

Sources: Envoy xDS (a version per resource, ack and nack), Consul (an index that never goes back).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .clock import FIRST, HybridClock

if TYPE_CHECKING:
    from ..identity.signature import Signer

GONE_MAX = 4_096
"""Services and endpoint lists that are gone and remembered. One more, and the older half are forgotten: processes that
want one of those get its null once more."""

FRAGMENTS_MAX = 256
"""Fragments of one reply: each may have to be signed, while everybody else waits. The rest comes with the next poll."""

NULLS_MAX = 4_096
"""Signed nulls that are kept for names in no policy. One more, and they are signed anew as they are asked for."""

CLOSURE_SERVICES_MAX = 4_096
"""Services of one closure. Those beyond, the farthest along the routes, are not sent to the process."""

CLOSURES_MAX = 500_000
"""Resources in all closures that are kept. Beyond, they are worked out anew as they are asked for."""

Have = Mapping[str, tuple[str, int]]
"""What a process has: resource → (epoch, n)."""

_NULL = "null"


class Row(NamedTuple):
    """One version of one resource, as it is stored. `json`: the content, compact, with sorted keys, in ASCII."""

    resource: str
    n: int
    json: str


class Catalog:
    """Everything that one store (`epoch`, random hex) publishes for one mesh. One thread at a time."""

    def __init__(self, epoch: str, mesh: str, clock: HybridClock, signer: Signer) -> None:
        self.epoch, self.mesh = epoch, mesh
        self._clock, self._signer = clock, signer
        self._rows: dict[str, Row] = {}
        self._gone: dict[str, int] = {}
        self._never = FIRST
        self._needs: dict[str, tuple[str, ...]] = {}
        self._signed: dict[str, bytes] = {}
        self._signed_nulls: dict[str, bytes] = {}
        self._closures: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._closed = 0

    def load(self, rows: Iterable[Row]) -> None:
        """What the store has, before anything else."""
        for row in rows:
            self._publish(row)
        if len(self._gone) >= GONE_MAX:  # the store has perhaps forgotten others, all older than these
            self._never = next(iter(self._gone.values()))

    def resigned(self, signer: Signer) -> None:
        """From now on `signer` signs. Versions stay: who has a fragment does not get it again."""
        if signer is self._signer:
            return
        self._signer = signer
        self._signed.clear()
        self._signed_nulls.clear()

    def propose(self, contents: Mapping[str, Any]) -> list[Row]:
        """New versions of those resources of `contents` that differ from what is published; None: no such service.

        Nothing is visible yet: the caller stores them, then calls `put`, or forgets them. One proposal is under way at
        a time: another would be compared with what is over soon. ValueError, TypeError: not plain data.
        """
        changed = {
            resource: text for resource, content in contents.items() if self._differs(resource, text := _json(content))
        }
        n = self._clock.next() if changed else 0
        return [Row(resource, n, text) for resource, text in changed.items()]

    def put(self, rows: Iterable[Row]) -> set[str]:
        """Publish what is stored. Returns the resources that are now newer: not those that were put newer before."""
        visible = {row.resource for row in rows if self._publish(row)}
        if any(resource.startswith("service/") for resource in visible):
            self._forget_closures()
        return visible

    def newer(self, resources: Iterable[str], have: Have, max_bytes: int) -> list[bytes]:
        """The fragments `{"payload":…,"signature":…}` of those that are newer than `have`, in their order.

        As many as fit into `max_bytes`, at least one, and at most FRAGMENTS_MAX: the others are still newer at the next
        poll.
        """
        fragments: list[bytes] = []
        size = 0
        for resource in resources:
            if self._is_newer(resource, have):
                fragment = self._fragment(resource)
                size += len(fragment)
                if fragments and size > max_bytes:
                    break
                fragments.append(fragment)
                if len(fragments) >= FRAGMENTS_MAX:
                    break
        return fragments

    def has_newer(self, resources: Iterable[str], have: Have) -> bool:
        """Is any newer than `have`: not there, of another epoch, or of a lower n?"""
        return any(self._is_newer(resource, have) for resource in resources)

    def version(self, resource: str) -> tuple[str, int]:
        """(epoch, n). n is 0 for `trust` and `defaults` before they are first published: nobody gets these."""
        return self.epoch, self._n(resource)

    def content(self, resource: str) -> Any:
        """The published content as plain data, the caller's own; None where there is none."""
        row = self._rows.get(resource)
        return None if row is None else json.loads(row.json)

    def services(self) -> list[str]:
        """Canonical names of the services in the published policy, sorted."""
        return sorted(self._needs)

    def closure(self, own: str, want: Sequence[str]) -> tuple[str, ...]:
        """What a process of service `own` gets: `trust`, `defaults`, `service/<own>`, and `service/<x>` and
        `endpoints/<x>` of each x in `want` and of all that their routes need. Canonical names; at most 4,096 services.
        """
        key = (own, *want)
        found = self._closures.get(key)
        if found is None:
            services = [f"{kind}/{name}" for name in self._reached(want) for kind in ("service", "endpoints")]
            found = tuple(dict.fromkeys(["trust", "defaults", f"service/{own}", *services]))
            if self._closed + len(found) > CLOSURES_MAX:
                self._forget_closures()
            self._closed += len(found)
            self._closures[key] = found
        return found

    def _forget_closures(self) -> None:
        self._closures.clear()
        self._closed = 0

    def _reached(self, want: Sequence[str]) -> list[str]:
        """The nearest first."""
        reached = dict.fromkeys(want)
        for name in (queue := list(reached)):
            fresh = [needed for needed in self._needs.get(name, ()) if needed not in reached]
            reached.update(dict.fromkeys(fresh))
            queue.extend(fresh)
            if len(queue) >= CLOSURE_SERVICES_MAX:
                break
        return queue[:CLOSURE_SERVICES_MAX]

    def _differs(self, resource: str, text: str) -> bool:
        row = self._rows.get(resource)
        return text != (_NULL if row is None else row.json)

    def _publish(self, row: Row) -> bool:
        if row.n <= self._n(row.resource):
            return False
        self._rows[row.resource] = row
        self._signed.pop(row.resource, None)
        self._gone.pop(row.resource, None)
        kind, _, name = row.resource.partition("/")
        if row.json == _NULL:
            self._gone[row.resource] = row.n
            self._forget_gone()
        if kind == "service":
            self._needs.pop(name, None)
            if row.json != _NULL:
                self._needs[name] = tuple(json.loads(row.json)["needs"])
        return True

    def _forget_gone(self) -> None:
        if len(self._gone) > GONE_MAX:
            for resource in list(self._gone)[: GONE_MAX // 2]:
                self._never = max(self._never, self._gone.pop(resource))
                del self._rows[resource]
                self._signed.pop(resource, None)
            self._signed_nulls.clear()

    def _n(self, resource: str) -> int:
        row = self._rows.get(resource)
        return row.n if row is not None else self._never if "/" in resource else 0

    def _is_newer(self, resource: str, have: Have) -> bool:
        n, had = self._n(resource), have.get(resource)
        return n > 0 and (had is None or had[0] != self.epoch or had[1] < n)

    def _fragment(self, resource: str) -> bytes:
        """Its bytes, from the one time that they are made."""
        row = self._rows.get(resource)
        known = self._signed_nulls if row is None else self._signed
        fragment = known.get(resource)
        if fragment is None:
            if row is None and len(known) >= NULLS_MAX:
                known.clear()
            fragment = known[resource] = self._sign(row or Row(resource, self._never, _NULL))
        return fragment

    def _sign(self, row: Row) -> bytes:
        head = _json({"resource": row.resource, "epoch": self.epoch, "n": row.n, "mesh": self.mesh})
        payload = f'{head[:-1]},"content":{row.json}}}'
        return _json({"payload": payload, "signature": self._signer.sign(payload.encode())}).encode()


def _json(content: Any) -> str:
    """One text for the same content, whatever the order of its keys."""
    return json.dumps(content, separators=(",", ":"), sort_keys=True, allow_nan=False)
