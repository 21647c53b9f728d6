"""What holds of `retryable_by_default`, whose only entry is excepted for one clause."""

from __future__ import annotations

from . import grpc_wire
from .test_vectors import entries


def test_every_clause_but_one_holds() -> None:
    """A refused stream is tried again, but never more often than `max_retries`."""
    (entry,) = entries("grpc_vectors.retryable_by_default")
    clauses = grpc_wire.retryable_clauses(entry)
    assert [name for name, holds in clauses.items() if not holds] == ["not counted in maxAttempts"]
