"""Splitting by a key: one key goes to the same backend in every process, and a changed weight moves only what it must.

Weighted rendezvous hashing: each backend has the score -w / ln(u), where u in (0, 1) is a hash of salt, backend and
key, and the highest takes the key. A backend's score depends on itself alone: raising one weight moves keys only to it,
lowering one only away from it; raising 5 % to 10 % keeps the first 5 %. Sources: Thaler and Ravishankar 1998,
Mosharaf 2013 ("Weighted rendezvous hashing"), Schindelhauer and Schomaker 2005 (logarithmic method).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from math import log

_SCALE = 2.0**52  # so that u is exact in a float, and neither 0 nor 1


class HashSplit:
    """`weights` ≥ 0, of which one is positive, of the backends `names`; one with weight 0 is never drawn. `salt`: which
    split this is, so that two splits do not send the same keys to their first backends. A name that is there twice is
    two backends.
    """

    __slots__ = ("_backends",)

    def __init__(self, weights: Sequence[int], names: Sequence[str], salt: str) -> None:
        seen: Counter[str] = Counter()
        backends = []
        for index, (weight, name) in enumerate(zip(weights, names, strict=True)):
            seen[name] += 1
            if weight > 0:
                prefix = f"{salt}|{name}|{seen[name]}|".encode()
                backends.append((index, weight, blake2b(prefix, digest_size=8)))
        if not backends:
            raise ValueError(f"a split needs a positive weight, got {list(weights)}")
        self._backends = tuple(backends)

    def draw(self, key: str) -> int:
        """The index of the backend of `key`."""
        if len(self._backends) == 1:
            return self._backends[0][0]
        encoded = key.encode("utf-8", "surrogatepass")
        best, best_score = -1, 0.0
        for index, weight, begun in self._backends:
            hashed = begun.copy()
            hashed.update(encoded)
            u = ((int.from_bytes(hashed.digest(), "big") >> 12) + 0.5) / _SCALE
            score = -weight / log(u)
            if score > best_score:
                best, best_score = index, score
        return best
