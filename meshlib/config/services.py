"""A service: its settings, where it listens, its subsets and its routes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .endpoints import Source
from .fields import Duration, Name, RouteOwner, Text, setting
from .routes import Route
from .settings import Settings


class Service(Settings):
    """Under its name, `inventory` or `inventory.stock`, in `services`."""

    owner: Text = Field(default="", description="The team that is asked; it has no effect.")
    protocol: Literal["http", "grpc"] | None = Field(
        default=None, description="What it speaks: http or grpc; calls by the other are refused. Built-in: either."
    )
    endpoints: tuple[Source, ...] = Field(default=(), description="Where it listens: sources, merged in order.")
    subsets: dict[Name, dict[str, Text]] = Field(
        default={}, description="Names for the endpoints that have certain labels."
    )
    allow_routes_from: tuple[RouteOwner, ...] = Field(
        default=(),
        description="Services and gateways (gateway/<name>) whose routes may name this one as a backend. "
        "Built-in: none but itself.",
    )
    stream_idle_timeout: Duration | None = setting(
        "stream_idle_timeout", "Duration between two pieces of a streamed reply."
    )
    routes: tuple[Route, ...] = Field(default=(), description="Rules for its calls; the first that matches wins.")
