"""The steps of a root's rotation: what is believed when, what time asks for, and the state as text."""

from __future__ import annotations

import json

import pytest

from meshlib.identity.roots import PROPAGATION_S, ROOT_RENEW_S, Roots

NOW = 1_800_000_000.0


def test_a_root_is_believed_before_it_signs_and_after() -> None:
    """Newest first; three while one is coming, two when it signs; each step is another generation."""
    first = Roots.create("shop.dev", NOW)
    one = first.signer.certificate_pem
    assert (first.generation, first.bundle_pem) == (1, one)
    coming = first.propose(NOW)
    two = coming.bundle_pem.removesuffix(one)
    assert (coming.generation, coming.signer, coming.bundle_pem) == (2, first.signer, two + one)
    settled = coming.promote(coming)
    assert (settled.generation, settled.signer, settled.bundle_pem) == (3, coming.coming, two + one)
    again = settled.propose(NOW)
    assert again.bundle_pem.endswith(two + one)
    assert again.promote(again).bundle_pem == again.bundle_pem.removesuffix(one)
    leaves = settled.renew_leaves()
    assert (leaves.generation, leaves.bundle_pem) == (4, settled.bundle_pem)


def test_a_step_that_was_taken_is_not_taken_again() -> None:
    """A second proposal joins the first; only the root that was proposed is promoted, and once."""
    first = Roots.create("shop.dev", NOW)
    coming = first.propose(NOW)
    assert coming.propose(NOW + 1) is coming
    settled = coming.promote(coming)
    assert settled.promote(coming) is settled
    other = settled.propose(NOW)
    assert other.promote(coming) is other
    assert coming.promote(first) is coming


def test_what_time_asks_for() -> None:
    """Replaced with 30 days left, promoted when all can have looked, both at once when no leaf is valid any more."""
    first = Roots.create("shop.dev", NOW)
    soon = first.signer.not_after - ROOT_RENEW_S + 1
    assert first.due(soon - 1) is first
    coming = first.due(soon)
    assert coming.signer is first.signer
    assert coming.coming is not None
    assert coming.due(soon + PROPAGATION_S) is coming
    assert coming.due(soon + PROPAGATION_S + 1).signer is coming.coming
    assert coming.due(soon - 3600) is coming  # a clock that went back
    for before in (first, coming):
        late = before.due(NOW + 10 * 365 * 86_400)
        assert late.coming is None
        assert late.signer.not_after > NOW + 10 * 365 * 86_400


def test_it_survives_as_text() -> None:
    """Settled or not: the same roots, the same keys, the same generation."""
    first = Roots.create("shop.dev", NOW)
    for roots in (first, first.propose(NOW), first.propose(NOW).due(NOW + 60)):
        same = Roots.load(roots.dump())
        assert same.dump() == roots.dump()
        assert (same.generation, same.bundle_pem) == (roots.generation, roots.bundle_pem)


@pytest.mark.parametrize("field", ["generation", "signer", "coming", "previous"])
@pytest.mark.parametrize("value", [..., 1.5, [1], {"certificate": "x", "key": "x"}, {"key": 1}])
def test_damaged_text_is_a_sentence(field: str, value: object) -> None:
    """A field that is missing or of another type is a ValueError, never another error."""
    kept = json.loads(Roots.create("shop.dev", NOW).dump())
    if value is ...:
        del kept[field]
    else:
        kept[field] = value
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        Roots.load(json.dumps(kept).encode())
