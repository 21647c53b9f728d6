"""Policy assertions: what holds is silent, what does not is explained."""

from __future__ import annotations

import pytest

from meshlib import UnknownService
from meshlib.testing import assert_route

from .policies import SHOP


def test_what_the_policy_says_holds():
    """Every field at once, of each route, and where no route is."""
    assert_route(
        SHOP, "inventory", path="/items/7", route="main", backends={"inventory/v1": 9, "inventory/v2": 1},
        timeout_s=0.5, retries=2, idempotent=True,
    )  # fmt: skip
    assert_route(SHOP, "inventory", headers={"x-beta": "1"}, backends="inventory/v2", timeout_s=10, retries=1)
    assert_route(SHOP, "inventory", method="POST", path="/items", backends=["inventory/v1", "inventory/v2"])
    assert_route(SHOP, "inventory", method="POST", path="/items", idempotent=False, retries={"retry_on": ["503", "connect_failure", "reset"]})  # fmt: skip
    assert_route(SHOP, "inventory", path="/other", status=404)


def test_a_difference_is_readable():
    """Field, expected, found, who set it, and the whole explanation below."""
    with pytest.raises(AssertionError) as caught:
        assert_route(SHOP, "inventory", path="/items/7", backends={"inventory": 1}, timeout_s=1, retries=2)
    text = str(caught.value)
    assert "backends\n    expected  inventory 100.0000%\n" in text
    assert "found     inventory/v1 90.0000%, inventory/v2 10.0000%" in text
    assert "timeout_s\n    expected  1\n    found     0.5  (" in text
    assert "retries.max_retries" not in text.partition("\n\n")[0]
    assert "GET /items/7 to inventory.default" in text


@pytest.mark.parametrize(
    "expected",
    [
        {"backends": {"inventory/v1": 89, "inventory/v2": 11}},
        {"backends": "inventory/v1"},
        {"backends": ["inventory/v1", "inventory/v3"]},
        {"route": "beta"},
        {"status": 404},
        {"idempotent": False},
        {"retries": 1},
        {"retries": 0},
        {"retries": {"per_try_timeout_s": 1.0}},
        {"timeout_s": 0.6},
    ],
)
def test_each_field_can_fail(expected):
    """An assertion that cannot fail is none."""
    with pytest.raises(AssertionError, match=next(iter(expected))):
        assert_route(SHOP, "inventory", path="/items/7", **expected)


def test_a_question_that_makes_no_sense_is_an_error():
    """Not a passing assertion."""
    with pytest.raises(UnknownService, match="inventory"):
        assert_route(SHOP, "inventroy")
    with pytest.raises(ValueError, match="'retries' is not a part"):
        assert_route(SHOP, "inventory", path="/items", retries={"retries": 1})
    with pytest.raises(ValueError, match="positive sum"):
        assert_route(SHOP, "inventory", path="/items", backends={"inventory": 0})
