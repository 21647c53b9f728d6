"""What is a SPIFFE id, which service it names, whom a matcher means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.identity.spiffe import (
    ID_BYTES_MAX,
    TRUST_DOMAIN_BYTES_MAX,
    SpiffeId,
    dns_name,
    matches_any,
    matches_id,
    matches_member_of,
    matches_one_of,
)

from .certificates import vectors

labels = st.text("abz019-", min_size=1, max_size=63).filter(lambda text: text.strip("-") == text)


def test_every_decided_vector() -> None:
    """Valid ids parse into their parts and print as they were; every other text is a ValueError with a sentence."""
    cases = [case for case in vectors()["cases"] if case["valid"] is not None]
    assert len(cases) > 250
    for case in cases:
        if case["valid"]:
            parsed = SpiffeId.parse(case["id"])
            assert str(parsed) == case["id"]
            if "trust_domain" in case:
                assert (parsed.trust_domain, parsed.path) == (case["trust_domain"], case["path"])
        else:
            with pytest.raises(ValueError, match=r"SPIFFE|trust domain"):
                SpiffeId.parse(case["id"])


def test_contested_vectors_are_refused() -> None:
    """What the sources leave open is refused, one way for all: ADR 0005. So no second spelling of an id exists."""
    open_cases = [case["id"] for case in vectors()["cases"] if case["valid"] is None]
    assert len(open_cases) == 3
    for text in open_cases:
        with pytest.raises(ValueError, match=r"lower case|at most"):
            SpiffeId.parse(text)


@pytest.mark.parametrize(
    "spelling",
    [
        "SPIFFE://shop.dev/a",
        "spiffe://Shop.dev/a",
        "spiffe://shop.dev/%61",
        " spiffe://shop.dev/a",
        "spiffe://shop.dev/a\n",
    ],
)
def test_another_spelling_is_no_identity(spelling: str) -> None:
    """A text that a lax reader would take for spiffe://shop.dev/a is refused, neither folded nor another identity."""
    with pytest.raises(ValueError, match=r"SPIFFE|trust domain"):
        SpiffeId.parse(spelling)


def test_lengths_at_the_bounds() -> None:
    """2048 and 255 bytes are accepted, one more is not."""
    start = "spiffe://shop.dev/"
    assert len(str(SpiffeId.parse(start + "a" * (ID_BYTES_MAX - len(start))))) == ID_BYTES_MAX
    with pytest.raises(ValueError, match="at most 2048"):
        SpiffeId.parse(start + "a" * (ID_BYTES_MAX - len(start) + 1))
    SpiffeId.parse(f"spiffe://{'a' * TRUST_DOMAIN_BYTES_MAX}/x")
    with pytest.raises(ValueError, match="at most 255"):
        SpiffeId.parse(f"spiffe://{'a' * (TRUST_DOMAIN_BYTES_MAX + 1)}/x")


def test_an_invalid_id_cannot_be_constructed() -> None:
    """The parts are checked too: no code can make an id that parse would refuse."""
    for trust_domain, path in [
        ("Shop.dev", "/a"),
        ("shop.dev", "a"),
        ("shop.dev", "/"),
        ("shop.dev/x", ""),
        ("", "/a"),
    ]:
        with pytest.raises(ValueError, match=r"trust domain|path"):
            SpiffeId(trust_domain, path)


def test_service_names() -> None:
    """name.namespace becomes Istio's path; a bare name is in the namespace default."""
    stock = SpiffeId.for_service("shop.example", "inventory.stock")
    assert str(stock) == "spiffe://shop.example/ns/stock/sa/inventory"
    assert stock.service == "inventory.stock"
    assert str(SpiffeId.for_service("shop.example", "orders")) == "spiffe://shop.example/ns/default/sa/orders"
    assert dns_name(stock) == "inventory.stock.shop.example"


@given(labels, labels)
def test_service_is_the_inverse_of_for_service(name: str, namespace: str) -> None:
    """A service name survives the round trip through text."""
    made = SpiffeId.for_service("shop.dev", f"{name}.{namespace}")
    assert SpiffeId.parse(str(made)).service == f"{name}.{namespace}"


@pytest.mark.parametrize("service", ["", ".", "a.", ".a", "a.b.c", "A", "a_b", "-a", "a/../b", "a" * 64])
def test_what_is_no_service_name(service: str) -> None:
    """Only DNS labels name a service, so that no name can climb out of its place in the path."""
    with pytest.raises(ValueError, match="DNS labels"):
        SpiffeId.for_service("shop.dev", service)


@pytest.mark.parametrize(
    "path",
    ["", "/ns/a/sa", "/ns/a/sa/b/c", "/sa/b/ns/a", "/ns/a/sa/b.c", "/ns/A/sa/b", "/x/ns/a/sa/b"],
)
def test_other_paths_name_no_service(path: str) -> None:
    """In particular /ns/a/sa/b.c must not become b.c.a, another service's name."""
    other = SpiffeId("shop.dev", path)
    assert other.service is None
    with pytest.raises(ValueError, match="no DNS name"):
        dns_name(other)


def test_a_dns_name_must_be_one() -> None:
    """A trust domain that SPIFFE allows and DNS does not gives no DNS SAN, nor does a name beyond 253 bytes."""
    for trust_domain in ("shop_a.dev", "shop..dev", "shop-.dev", ".".join(["a" * 60] * 4)):
        with pytest.raises(ValueError, match="DNS labels"):
            dns_name(SpiffeId.for_service(trust_domain, "inventory.stock"))


def test_matcher_vectors() -> None:
    """The matchers of go-spiffe; no verified id (in the vectors: an empty one) matches nothing."""
    cases = vectors()["matchers"]
    assert len(cases) > 15
    for case in cases:
        arg, actual = case["arg"], SpiffeId.parse(case["id"]) if case["id"] else None
        match case["matcher"]:
            case "any":
                matcher = matches_any()
            case "exact":
                matcher = matches_id(SpiffeId.parse(arg))
            case "one_of":
                matcher = matches_one_of(*map(SpiffeId.parse, arg))
            case _:
                matcher = matches_member_of(arg)
        assert matcher(actual) is case["match"], case
        assert matcher(None) is False
