"""The steps of a root's rotation: what is believed when, what time asks for, and the state as text."""

from __future__ import annotations

import json

import pytest

from meshlib.identity.ca import ROOT_LIFE_S
from meshlib.identity.roots import PROPAGATION_S, ROOT_DROP_S, ROOT_RENEW_S, Roots

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


def test_the_anchor_is_what_everybody_believes() -> None:
    """The signer, and after a rotation the root before it, with its key: whoever slept through one believes it."""
    first = Roots.create("shop.dev", NOW)
    assert first.anchor is first.signer
    coming = first.propose(NOW)
    assert coming.anchor is first.signer
    settled = coming.promote(coming)
    assert settled.anchor is settled.previous is first.signer
    same = Roots.load(settled.dump())
    assert same.anchor.private_key_pem == first.signer.private_key_pem
    again = settled.propose(NOW)
    assert again.promote(again).anchor is settled.signer


def test_a_root_that_does_not_sign_is_dropped_before_its_end() -> None:
    """A day before, in a generation of its own: nothing can be signed by it that would not end at once."""
    first = Roots.create("shop.dev", NOW)
    settled = first.propose(NOW + ROOT_LIFE_S - ROOT_RENEW_S + 1).due(NOW + ROOT_LIFE_S - ROOT_RENEW_S + 10)
    assert settled.previous is first.signer
    drop = first.signer.not_after - ROOT_DROP_S
    assert settled.due(drop) is settled
    dropped = settled.due(drop + 1)
    assert (dropped.generation, dropped.previous, dropped.anchor) == (settled.generation + 1, None, settled.signer)
    assert dropped.bundle_pem == settled.signer.certificate_pem


@pytest.mark.parametrize("life_s", [60.0, 3600.0, 7 * 86_400.0])
def test_roots_of_a_short_life(life_s: float) -> None:
    """Each is believed before it signs and after, however short they live; there is always one that is valid."""
    roots, now, signers = Roots.create("shop.dev", NOW, life_s), NOW, []
    for _ in range(400):
        now += life_s / 40
        roots = roots.due(now, life_s)
        assert roots.signer.not_after > now
        assert roots.anchor.not_after > now
        if roots.signer.certificate_pem not in signers:
            assert not signers or roots.previous is None or roots.previous.certificate_pem == signers[-1]
            signers.append(roots.signer.certificate_pem)
    assert 10 <= len(signers) <= 16
    assert roots.signer.not_after - NOW <= 11.5 * life_s


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
