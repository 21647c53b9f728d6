"""Header modifiers: Gateway API's conformance cases, on both ways."""

from __future__ import annotations

import pytest

from meshlib.call import Call, HeaderEdit, Reply
from meshlib.policy.header_modifier import HeaderModifier

from .runtimes import on_every_runtime

EDIT = HeaderEdit(
    set=(("x-set", "set"),), add=(("x-add", "added"),), remove=frozenset(("x-remove",))
)  # of the three, on fields that are there and on fields that are not


@on_every_runtime
@pytest.mark.parametrize("there", [True, False])
def test_remove_set_add_on_both_ways(run, there):
    """Names in any case; `set` is in the place of every field, `add` beside them, others stay where they are."""
    seen = []

    async def backend(call):
        seen.append(call.lines)
        return Reply(200, [(b"X-Set", b"0"), (b"X-Add", b"0"), (b"X-Remove", b"0"), (b"other", b"o")] if there else [])

    async def body(_runtime):
        lines = b"Host: a\r\n" + (b"X-Set: 0\r\nx-SET: 1\r\nX-Add: 0\r\nX-Remove: 0\r\n" if there else b"")
        return await HeaderModifier(EDIT, EDIT)(Call("svc", "GET", b"/", lines), backend)

    reply = run(body)
    assert seen == [b"Host: a\r\n" + (b"X-Add: 0\r\n" if there else b"") + b"x-set: set\r\nx-add: added\r\n"]
    kept = [(b"X-Add", b"0"), (b"other", b"o")] if there else []
    assert reply.headers == [*kept, (b"x-set", b"set"), (b"x-add", b"added")]


@on_every_runtime
def test_one_way_alone(run):
    """What is not edited is not touched."""

    async def backend(call):
        return Reply(200, [(b"X-Remove", b"0")], call.lines)

    async def body(_runtime):
        call = Call("svc", "GET", b"/", b"X-Remove: 0\r\n")
        first = await HeaderModifier(None, EDIT)(call, backend)
        second = await HeaderModifier(EDIT, None)(call, backend)
        return first, second

    first, second = run(body)
    assert (first.body, b"X-Remove" in dict(first.headers)) == (b"X-Remove: 0\r\n", False)
    assert (second.body, second.headers) == (b"x-set: set\r\nx-add: added\r\n", [(b"X-Remove", b"0")])
