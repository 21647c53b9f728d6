"""Service, Filter, Stack: one abstraction for both ends of every protocol.

    Service = Call → Reply                      (async)
    Filter  = (Call, Service) → Reply           (async)

A Stack is a filter list as data: named, ordered, printable, each layer with the reason for its place. It is bound
once per policy version; a layer whose `make` returns None is absent, not skipped (Finagle removes identity filters at
composition time, starlette builds its middleware once). Sources: "Your server as a function" (Eriksen 2013), tower.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from .call import Call, Reply

Service = Callable[[Call], Awaitable[Reply]]


class Filter(Protocol):
    """A service that is given the next one; it may answer itself, call it once, or (retry) several times."""

    def __call__(self, call: Call, service: Service) -> Awaitable[Reply]:
        """The reply to `call`, or a MeshError."""


@dataclass(frozen=True, slots=True)
class Layer:
    """`role`: the field's name for it. `make(context)` gives the filter, or None: absent. `why`: why it sits here."""

    role: str
    make: Callable[[Any], Filter | None]
    why: str


class Stack:
    """An ordered list of layers, outermost first. Immutable: every change gives a new one."""

    __slots__ = ("layers", "name")

    def __init__(self, name: str, layers: tuple[Layer, ...]) -> None:
        roles = [layer.role for layer in layers]
        if len(set(roles)) != len(roles):
            raise ValueError(f"stack {name!r} has a role twice: {roles}")
        self.name, self.layers = name, layers

    def bind(self, context: Any, service: Service) -> Service:
        """Nest the filters around `service`, once. Binding adds no frame of its own to a call."""
        for layer in reversed(self.layers):
            made = layer.make(context)
            if made is not None:
                service = partial(made, service=service)
        return service

    def present(self, context: Any) -> tuple[str, ...]:
        """The roles that this context has, outermost first: what `explain` and `repr` show of a bound stack."""
        return tuple(layer.role for layer in self.layers if layer.make(context) is not None)

    def before(self, role: str, layer: Layer) -> Stack:
        """A new stack with `layer` just outside `role`."""
        at = self._index(role)
        return Stack(self.name, (*self.layers[:at], layer, *self.layers[at:]))

    def after(self, role: str, layer: Layer) -> Stack:
        """A new stack with `layer` just inside `role`."""
        at = self._index(role) + 1
        return Stack(self.name, (*self.layers[:at], layer, *self.layers[at:]))

    def replace(self, role: str, layer: Layer) -> Stack:
        """A new stack with `layer` in the place of `role`."""
        at = self._index(role)
        return Stack(self.name, (*self.layers[:at], layer, *self.layers[at + 1 :]))

    def without(self, role: str) -> Stack:
        """A new stack without `role`."""
        at = self._index(role)
        return Stack(self.name, (*self.layers[:at], *self.layers[at + 1 :]))

    def _index(self, role: str) -> int:
        for at, layer in enumerate(self.layers):
            if layer.role == role:
                return at
        raise KeyError(f"stack {self.name!r} has no {role!r}; it has {', '.join(layer.role for layer in self.layers)}")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __repr__(self) -> str:
        width = max((len(layer.role) for layer in self.layers), default=0)
        return "\n".join([self.name, *(f"  {layer.role:{width}}  {layer.why}" for layer in self.layers)])
