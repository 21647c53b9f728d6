"""Gateways: where traffic from outside comes in, and the routes it takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .fields import HostnamePattern, Name, NotEmpty, Port, Section
from .routes import GatewayRoute

LISTENERS_MAX = 64
"""Listeners of one gateway (Gateway API)."""


class Listener(Section):
    """A port, and the hosts that are served on it. The most specific listener that has the request's host takes it."""

    name: Name = Field(description="Unique in its gateway.")
    protocol: Literal["http", "https"] = Field(
        default="http",
        description="What its clients speak. https: to something in front of it, which forwards HTTP. Built-in: http.",
    )
    port: Port = Field(description="The port that its clients use; where it really listens may be another.")
    hostname: HostnamePattern | None = Field(
        default=None, description="shop.example, or *.shop.example for all below. Built-in: any."
    )


class Gateway(Section):
    """Under its name in `gateways`; `meshlib gateway` runs it."""

    listeners: Annotated[tuple[Listener, ...], NotEmpty] = Field(
        description="Where it listens.", max_length=LISTENERS_MAX, json_schema_extra={"minItems": 1}
    )
    routes: tuple[GatewayRoute, ...] = Field(default=(), description="Rules for its requests; the first that matches.")
