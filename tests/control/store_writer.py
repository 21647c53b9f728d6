"""A process that writes to a store for ever, to be killed: `python store_writer.py PATH`.

It says a line for each write that was acknowledged, after it was. All numbers of one step are one version, so that half
a write can be seen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from meshlib.control.catalog import Row
from meshlib.control.registry import Instance
from meshlib.control.store import Store

PARTS = ("defaults", "service/a", "service/b", "endpoints/a")
"""What one policy writes."""
PADDING = "x" * 3000
"""So that a write is several pages."""
ENDS = 1e12


def steps(store: Store) -> Iterator[str]:
    """Write, then say what was written."""
    n = store.last_n()
    while True:
        n += 1
        store.add_policy(n, float(n), "test", f"{n}{PADDING}", [Row(part, n, f'"{n}{PADDING}"') for part in PARTS])
        yield f"policy {n}"
        n += 1
        instance = Instance(f"i{n}", "a.default", f"10.0.0.1:{n}", PADDING, 1, {"n": str(n)})
        gone = [("a.default", f"i{n - 60}")]
        store.save([Row("endpoints/a", n, f'"{n}"'), Row("registered", n, f'"i{n}"')], [instance], gone)
        yield f"instance {n}"
        store.add_token(f"t{n}", PADDING, service="a.default", uses=1, expires=ENDS, now=ENDS - 60)
        yield f"token {n}"
        store.redeem(f"t{n}", PADDING, f"key {n}", n, 0.0)
        yield f"redeemed {n}"
        store.add_leaf(n, "a.default", ENDS, 0.0, token=f"t{n}", instance=f"i{n}")
        yield f"leaf {n}"
        store.revoke(n, float(n), 0.0)
        yield f"revoked {n}"


if __name__ == "__main__":
    for line in steps(Store.open(sys.argv[1])):
        print(line, flush=True)
