"""A request as routes look at it: host, path, query, cookies."""

from __future__ import annotations

import pytest

from meshlib.policy import request as module
from meshlib.policy.request import bare_host, cookies

from .requests import request


@pytest.mark.parametrize(
    ("target", "path"), [("/a?b=/c", "/a"), ("/a", "/a"), ("/?", "/"), ("/%2e/a", "/%2e/a"), ("/a?b?c", "/a")]
)
def test_the_path_is_as_sent_without_its_query(target, path):
    """Nothing is decoded."""
    assert request("GET", target).path == path


@pytest.mark.parametrize(
    ("field", "host"),
    [
        ("Shop.Example", "shop.example"),
        ("shop.example:8080", "shop.example"),
        ("shop.example.", "shop.example"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("", ""),
    ],
)
def test_the_host_has_no_port_and_no_capitals(field, host):
    """CVE-2021-39155: hosts are compared in lower case; a port is no part of them."""
    assert bare_host(field) == host
    assert request(headers={"host": [field]}).host == host


def test_stems_are_the_first_segments():
    """None, one, two …; empty segments count."""
    assert request("GET", "/a/b").stems == ["", "/a", "/a/b"]
    assert request("GET", "/").stems == ["", "/"]
    assert request("GET", "/a//b/").stems == ["", "/a", "/a/", "/a//b", "/a//b/"]


def test_query_parameters_are_decoded_and_bounded():
    """Several of one name, empty ones, and one past the bound."""
    asked = request("GET", "/?a=1&a=%32&b=x+y&c&=z&&d=%ff")
    assert list(asked.query_params("a")) == ["1", "2"]
    assert list(asked.query_params("b")) == ["x y"]
    assert list(asked.query_params("c")) == [""]
    assert list(asked.query_params("missing")) == []
    many = "&".join(f"p{i}=1" for i in range(module.QUERY_PARAMS_MAX + 1))
    last = module.QUERY_PARAMS_MAX - 1
    assert request("GET", f"/?{many}").query_params(f"p{last}") == ["1"]
    assert not request("GET", f"/?{many}").query_params(f"p{last + 1}")


def test_headers_for_a_predicate():
    """`header` is the first value, in any case of letters."""
    asked = request(headers={"x-a": ["1", "2"]})
    assert asked.header("X-A") == "1"
    assert asked.header("x-b") is None
    assert asked.headers("x-a") == ["1", "2"]


def test_cookies():
    """Of one or several Cookie fields; a name is compared as it is."""
    fields = ["a=1; sid=7;b", "sid=8; SID=9"]
    assert cookies(fields, "sid") == ["7", "8"]
    assert cookies(fields, "b") == []
