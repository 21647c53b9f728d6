"""How a coroutine of the blocking runtime stops in the middle of a call that is already on its way."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


class Park:
    """Awaited by the leaf with a started real call; who drives the coroutine goes on when that is wanted."""

    __slots__ = ("real",)

    def __init__(self, real: Any) -> None:
        self.real = real

    def __await__(self) -> Generator[Park, None, None]:
        yield self


def advance(work: Coroutine[Any, Any, Any]) -> Any:
    """Drive a coroutine to its result, or to where it is parked: then the Park."""
    try:
        parked = work.send(None)
    except StopIteration as stop:
        return stop.value
    if isinstance(parked, Park):
        return parked
    work.close()
    raise RuntimeError("a filter suspended on the blocking runtime: it may await only its service and the runtime")
