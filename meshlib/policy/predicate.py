"""Predicates: functions of the application that decide with a route, by the name that the policy has for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Request

    Predicate = Callable[[Request], bool]

REPORTED_MAX = 256
"""Names that are reported once each; more are not reported at all."""


class Predicates:
    """By name. One that is not registered, or that raises, takes nothing, and is reported once: `report(sentence)`."""

    __slots__ = ("_by_name", "_report", "_reported")

    def __init__(self, report: Callable[[str], None]) -> None:
        self._by_name: dict[str, Predicate] = {}
        self._report, self._reported = report, set[str]()

    def register(self, name: str, predicate: Predicate) -> None:
        """From now on `name` is this function. ValueError where it is another one already."""
        if self._by_name.setdefault(name, predicate) is not predicate:
            raise ValueError(f"there is a predicate {name!r} already; a name has one")

    def holds(self, name: str, request: Request) -> bool:
        """Does the predicate take the request? Never raises."""
        predicate = self._by_name.get(name)
        if predicate is None:
            self._once(name, f"a route asks for the predicate {name!r}, which is not registered: it takes no call")
            return False
        try:
            return bool(predicate(request))
        except Exception as error:  # the application's own code, in the middle of a call
            self._once(name, f"the predicate {name!r} raised {type(error).__name__}: {error}; its route takes no call")
            return False

    def _once(self, name: str, sentence: str) -> None:
        if name not in self._reported and len(self._reported) < REPORTED_MAX:
            self._reported.add(name)
            self._report(sentence)
