"""grpc-retry-pushback-ms, as gRFC A6 has it."""

from __future__ import annotations

import pytest

from meshlib.policy.pushback import NEVER, pushback_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"0", 0.0),
        (b"10", 0.01),
        (b"86400000", 86_400.0),
        (b"-1", NEVER),
        (b"-500", NEVER),
        (b"", NEVER),
        (b"10.5", NEVER),
        (b" 10", NEVER),
        (b"soon", NEVER),
        (b"9" * 11, NEVER),
    ],
)
def test_pushback(value, seconds):
    """A number of milliseconds is when; all else that is said is never; nothing said is nothing."""
    assert pushback_s(value) == seconds
