"""Addresses: what is one, what is not, and which are this machine."""

from __future__ import annotations

import pytest

from meshlib.config.endpoints import is_loopback, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("Web-1.shop.example:65535", ("web-1.shop.example", 65_535)),
        ("my_host:80", ("my_host", 80)),
        ("[::1]:8080", ("::1", 8080)),
        ("[2001:DB8::1]:443", ("2001:db8::1", 443)),
        ("a:00080", ("a", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    """host:port, with brackets around IPv6; the host comes in lower case, without brackets."""
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "bad",
    [
        "", "host", ":80", "::1:80", "[::1]", "[::1:80", "[1.2.3.4]:80", "[fe80::1%eth0]:80", "1.2.3:80",
        "256.1.1.1:80", "a b:80", "http://a:80", "-a:80", "a..b:80", "x" * 254 + ":80", "a/b:80", "ä:80",
    ],
)  # fmt: skip
def test_what_is_no_address(bad: str) -> None:
    """A host is a DNS name or an IP literal, nothing that another reader could take for something else."""
    with pytest.raises(ValueError, match="is not an address: write host:port"):
        parse_address(bad)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "", "http", " 80", "000080", "٣"])
def test_ports(port: str) -> None:
    """A port is 1 to 65535; 0 only where any port will do."""
    with pytest.raises(ValueError, match="a port is a number from 1 to 65535"):
        parse_address(f"a:{port}")
    assert parse_address("a:0", lowest_port=0) == ("a", 0)


def test_loopback() -> None:
    """127.0.0.0/8, ::1 and localhost are this machine; a name that could resolve to anything is not."""
    assert all(map(is_loopback, ["127.0.0.1", "127.255.0.1", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.example", "128.0.0.1"]))
