"""Per-call policy: what `mesh.policy(...)` says about the calls made inside it. Never above the central ceilings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .call import Schedule

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch
_RESERVED = ("host", "content-length", "transfer-encoding", "connection", "traceparent", "tracestate")
MAX_RETRIES = 10
"""Ceiling of what a call may ask; the policy's own `limits.max_retries` is usually lower."""

HASH_KEY_MAX = 1024
"""Characters of a hash key."""


class CallPolicy:
    """Values asked for by the caller; None where it did not ask. `header_lines` are rendered and checked."""

    __slots__ = ("hash_key", "header_lines", "idempotent", "max_retries", "schedule", "timeout_s")

    def __init__(
        self,
        timeout_s: float | None = None,
        max_retries: int | None = None,
        idempotent: bool | None = None,
        header_lines: bytes = b"",
        schedule: Schedule | None = None,
        hash_key: str | None = None,
    ) -> None:
        self.hash_key = hash_key
        self.timeout_s, self.max_retries = timeout_s, max_retries
        self.idempotent, self.header_lines, self.schedule = idempotent, header_lines, schedule


POLICY: ContextVar[CallPolicy | None] = ContextVar("meshlib.policy", default=None)


@contextmanager
def call_policy(
    *,
    timeout: float | None = None,
    max_retries: int | None = None,
    hash_key: str | None = None,
    idempotent: bool | None = None,
    headers: Mapping[str, str] | None = None,
    schedule: Schedule | None = None,
) -> Iterator[None]:
    """Apply to every call made inside, HTTP and gRPC. An inner policy adds to an outer one and wins where both speak.

    `timeout`: total seconds, > 0. `max_retries`: 0 to 10. `idempotent`: may this be sent twice? `headers` are added to
    each request. `schedule`: when to retry, in the place of the policy's back-off. `hash_key`: calls with the
    same text go to the same backend of a route, in the place of its own `hash_key`; at most 1024 characters. ValueError
    names the argument that is out of range.
    """
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
    if max_retries is not None and not 0 <= max_retries <= MAX_RETRIES:
        raise ValueError(f"max_retries must be 0 to {MAX_RETRIES}, got {max_retries!r}")
    if hash_key is not None and not (isinstance(hash_key, str) and len(hash_key) <= HASH_KEY_MAX):
        raise ValueError(f"hash_key must be a text of at most {HASH_KEY_MAX} characters, got {hash_key!r:.60}")
    outer = POLICY.get() or CallPolicy()
    token = POLICY.set(
        CallPolicy(
            outer.timeout_s if timeout is None else float(timeout),
            outer.max_retries if max_retries is None else max_retries,
            outer.idempotent if idempotent is None else idempotent,
            _merged(outer.header_lines, headers) if headers else outer.header_lines,
            outer.schedule if schedule is None else schedule,
            outer.hash_key if hash_key is None else hash_key,
        )
    )
    try:
        yield
    finally:
        POLICY.reset(token)


def _merged(outer: bytes, headers: Mapping[str, str]) -> bytes:
    """The outer lines, less the names that are given again, and then the new ones."""
    names = {name.lower().encode("latin-1", "replace") for name in headers}
    kept = [line for line in outer.splitlines(keepends=True) if line.partition(b":")[0].lower() not in names]
    return b"".join(kept) + _lines(headers)


def _lines(headers: Mapping[str, str]) -> bytes:
    rendered = b""
    for name, value in headers.items():
        if not _TOKEN(name) or name.lower() in _RESERVED or name.lower().startswith("x-meshlib-"):
            raise ValueError(f"headers: {name!r} is not a header that a call may set")
        if not _VALUE(value):
            raise ValueError(f"headers: the value of {name!r} has characters that a header may not have")
        rendered += f"{name}: {value}\r\n".encode("latin-1")
    return rendered
