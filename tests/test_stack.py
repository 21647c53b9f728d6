"""Stack: a filter list as data. Order, absence, editing, and that binding happens once."""

from __future__ import annotations

import asyncio

import pytest

from meshlib.call import Call, Reply
from meshlib.stack import Layer, Stack


def noting(name: str, seen: list[str]) -> Layer:
    async def note(call, service):
        seen.append(f">{name}")
        reply = await service(call)
        seen.append(f"<{name}")
        return reply

    return Layer(name, lambda context: note if context else None, f"{name} is here because")


async def leaf(_call):
    return Reply(200, [])


def run(stack: Stack, context: object = True) -> None:
    asyncio.run(stack.bind(context, leaf)(Call("svc", "GET", b"/")))


def test_the_first_is_the_outermost():
    """Down in order, up in reverse."""
    seen: list[str] = []
    run(Stack("test", (noting("a", seen), noting("b", seen))))
    assert seen == [">a", ">b", "<b", "<a"]


def test_absent_is_not_skipped_but_not_there():
    """With no filter made, binding gives the service itself: no frame of its own."""
    stack = Stack("test", (noting("a", []), noting("b", [])))
    assert stack.bind(None, leaf) is leaf
    assert stack.present(None) == ()
    assert stack.present(True) == ("a", "b")


def test_editing_gives_a_new_stack():
    """before, after, replace, without: by role; the original stays as it was."""
    seen: list[str] = []
    a, b, c = (noting(name, seen) for name in "abc")
    stack = Stack("test", (a, b))
    roles = {
        "before": stack.before("b", c),
        "after": stack.after("b", c),
        "replace": stack.replace("b", c),
        "without": stack.without("a"),
    }
    assert {edit: [layer.role for layer in new] for edit, new in roles.items()} == {
        "before": ["a", "c", "b"],
        "after": ["a", "b", "c"],
        "replace": ["a", "c"],
        "without": ["b"],
    }
    assert [layer.role for layer in stack] == ["a", "b"]


def test_mistakes_have_sentences():
    """A role twice, and a role that is not there."""
    layer = noting("a", [])
    with pytest.raises(ValueError, match="'test' has a role twice"):
        Stack("test", (layer, layer))
    with pytest.raises(KeyError, match="has no 'x'; it has a"):
        Stack("test", (layer,)).without("x")


def test_it_prints_its_reasons():
    """repr has every role with its why."""
    text = repr(Stack("test", (noting("first", []), noting("b", []))))
    assert text == "test\n  first  first is here because\n  b      b is here because"
