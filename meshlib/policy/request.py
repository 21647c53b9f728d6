"""A request as routes look at it: parsed as far as they ask, once, whichever protocol it came by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from .predicate import Predicates

QUERY_PARAMS_MAX = 256
"""Query parameters that are looked at; what comes after them is not matched."""

Values = Callable[[str], Sequence[str]]
"""Every value of a header field, by lower-case name."""


class Request:
    """What is asked for. `path` is as it was sent, without the query; `host` in lower case, without a port, or ''.

    `service`: whose routes are asked. `listener`: the name of the gateway's listener that took it, or ''.
    """

    __slots__ = (
        "_host",
        "_params",
        "_stems",
        "_values",
        "listener",
        "method",
        "path",
        "predicates",
        "query",
        "service",
    )

    def __init__(
        self,
        method: str,
        target: str,
        values: Values,
        predicates: Predicates,
        *,
        service: str = "",
        listener: str = "",
    ) -> None:
        self.method, self._values, self.predicates = method, values, predicates
        self.service, self.listener = service, listener
        self.path, _, self.query = target.partition("?")
        self._host: str | None = None
        self._params: dict[str, list[str]] | None = None
        self._stems: list[str] | None = None

    def headers(self, name: str) -> Sequence[str]:
        """Every value of a header field, by lower-case name."""
        return self._values(name)

    def header(self, name: str) -> str | None:
        """The first value of a header field, by name in any case of letters; None where there is none."""
        return next(iter(self._values(name.lower())), None)

    def query_params(self, name: str) -> Sequence[str]:
        """Every value of a query parameter, decoded."""
        if self._params is None:
            self._params = _parsed(self.query)
        return self._params.get(name, ())

    @property
    def host(self) -> str:
        """The host that was asked for."""
        if self._host is None:
            self._host = bare_host(next(iter(self._values("host")), ""))
        return self._host

    @property
    def stems(self) -> list[str]:
        """The path's first 0, 1, 2 … segments: '', '/a', '/a/b' for /a/b. A prefix takes the path that has it here."""
        if self._stems is None:
            path, at = self.path, self.path.find("/", 1)
            self._stems = [""]
            while at > 0:
                self._stems.append(path[:at])
                at = path.find("/", at + 1)
            self._stems.append(path)
        return self._stems


def bare_host(host: str) -> str:
    """A Host field's host, in lower case, without a port and the dot of the root."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].rstrip(".").lower()


def cookies(values: Sequence[str], name: str) -> list[str]:
    """Every value of a cookie, from the values of the Cookie field (RFC 6265 §4.2)."""
    found = []
    for value in values:
        for pair in value.split(";"):
            key, equals, content = pair.strip(" \t").partition("=")
            if equals and key == name:
                found.append(content)
    return found


def _parsed(query: str) -> dict[str, list[str]]:
    params: dict[str, list[str]] = {}
    for pair in query.split("&", QUERY_PARAMS_MAX)[:QUERY_PARAMS_MAX]:
        key, _, value = pair.partition("=")
        if pair:
            params.setdefault(unquote_plus(key), []).append(unquote_plus(value))
    return params
