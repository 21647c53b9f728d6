"""meshlib: a service mesh that is a Python library.

    from meshlib import Mesh

    mesh = Mesh("orders")

    @mesh.get("/orders/{order}")
    async def order(order: str):
        reply = await mesh.client("inventory").get(f"/items/{order}")
        return {"order": order, "stock": reply.json()}

    mesh.run()

Names are loaded when they are first used: importing meshlib loads neither a server nor gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import MeshConfig, load_config
    from .errors import (
        ConfigError,
        DeadlineExceeded,
        IdentityError,
        MeshError,
        NoHealthyEndpoint,
        PermissionDenied,
        Problem,
        Rejected,
        TransportError,
        UnknownService,
    )
    from .explanation import Explanation, explain
    from .identity.spiffe import SpiffeId
    from .interop.conversion import Conversion, convert
    from .mesh import Mesh
    from .served import Served, current

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "errors",
    "Conversion": "interop.conversion",
    "DeadlineExceeded": "errors",
    "Explanation": "explanation",
    "IdentityError": "errors",
    "Mesh": "mesh",
    "MeshConfig": "config",
    "MeshError": "errors",
    "NoHealthyEndpoint": "errors",
    "PermissionDenied": "errors",
    "Problem": "errors",
    "Rejected": "errors",
    "Served": "served",
    "SpiffeId": "identity.spiffe",
    "TransportError": "errors",
    "UnknownService": "errors",
    "convert": "interop.conversion",
    "current": "served",
    "explain": "explanation",
    "load_config": "config",
}

__all__ = [
    "ConfigError",
    "Conversion",
    "DeadlineExceeded",
    "Explanation",
    "IdentityError",
    "Mesh",
    "MeshConfig",
    "MeshError",
    "NoHealthyEndpoint",
    "PermissionDenied",
    "Problem",
    "Rejected",
    "Served",
    "SpiffeId",
    "TransportError",
    "UnknownService",
    "__version__",
    "convert",
    "current",
    "explain",
    "load_config",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'meshlib' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
