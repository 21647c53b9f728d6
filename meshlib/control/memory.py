"""What glibc is told about memory, because it is a process with ten thousand TLS connections that come and go.

Each has a block of 256 KiB (uvloop's read buffer), of which a page is used, and some forty small ones of OpenSSL. glibc
gives a large block a mapping of its own, until the first is freed: then it begins to cut them from the heap, where each
keeps 5 KiB more. And what is freed in the heap it keeps: after 10,000 connections were lost, 350 MiB. Elsewhere than on
glibc nothing is done. Source: mallopt(3), malloc_trim(3); figures measured with the herd of FAULTS F29.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 128 * 1024  # malloc.h; the value is the one that glibc begins with


def keep_large_blocks_apart() -> None:
    """Large blocks stay in mappings of their own, for the life of the process."""
    call = _glibc("mallopt")
    if call is not None:
        call(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def give_back() -> None:
    """Return to the system what was freed. Takes some milliseconds; to be called about once a minute."""
    call = _glibc("malloc_trim")
    if call is not None:
        call(0)


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
