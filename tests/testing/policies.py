"""Policies that the tests of meshlib.testing share."""

from __future__ import annotations

from typing import Any

SHOP = """
version: 1
mesh: shop
services:
  inventory:
    subsets: {v1: {version: "1"}, v2: {version: "2"}}
    routes:
      - name: beta
        matches: [{headers: {x-beta: "1"}}]
        backends: [{subset: v2}]
      - name: main
        matches: [{path: {prefix: /items}}]
        backends: [{subset: v1, weight: 90}, {subset: v2, weight: 10}]
        timeout: 500ms
        retries: {max_retries: 2}
"""


def one_service(**settings: Any) -> dict[str, Any]:
    """A mesh with the service `inventory`."""
    return {"version": 1, "mesh": "shop", "services": {"inventory": settings}}


def two_endpoints(**settings: Any) -> dict[str, Any]:
    """The same, at two addresses."""
    return one_service(endpoints=[{"static": ["127.0.0.1:1", "127.0.0.1:2"]}], **settings)
