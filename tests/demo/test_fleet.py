"""What the logs of the demo's processes tell."""

from __future__ import annotations

from pathlib import Path

from meshlib.demo.fleet import ERRORS_SHOWN, Replica, addresses_in

STARTED = """\
2026-01-01 00:00:00,000 INFO meshlib: admin on http://127.0.0.1:{admin} (/livez /readyz /metrics)
2026-01-01 00:00:00,001 INFO meshlib.transport: listening on 127.0.0.1:{port}
"""
FAILED = """\
Traceback (most recent call last):
  File "x.py", line 1, in call

  File "x.py", line 2, in send
KeyError: 1

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "x.py", line 3, in call
{error}
2026-01-01 00:00:00,002 INFO meshlib: policy 1 is in force
"""


def test_addresses_are_those_of_the_latest_start(tmp_path: Path) -> None:
    """A log goes on where the start before ended; half of it is not enough."""
    log = tmp_path / "a.log"
    log.write_text(STARTED.format(admin=1, port=2))
    begin = log.stat().st_size
    assert addresses_in(log) == ("127.0.0.1:2", "127.0.0.1:1")
    assert addresses_in(log, begin) is None
    second = STARTED.format(admin=3, port=4)
    log.write_text(log.read_text() + second.splitlines()[0])
    assert addresses_in(log, begin) is None
    log.write_text(STARTED.format(admin=1, port=2) + second)
    assert addresses_in(log, begin) == ("127.0.0.1:4", "127.0.0.1:3")


def test_errors_are_the_ends_of_tracebacks(tmp_path: Path) -> None:
    """Each once, and no more than the bound."""
    log = tmp_path / "a.log"
    log.write_text("".join(FAILED.format(error=f"ValueError: {i}") * 2 for i in range(ERRORS_SHOWN + 1)))
    replica = Replica("orders", 1, "", log)
    assert replica.errors() == [f"orders-1: ValueError: {i}" for i in range(ERRORS_SHOWN)]
