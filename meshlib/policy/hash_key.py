"""The hash key of a call: which of its parts decides where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl

from .request import cookies

if TYPE_CHECKING:
    from ..call import Call

HashKind = Literal["header", "cookie", "query_param", "source"]


@dataclass(frozen=True, slots=True)
class HashKey:
    """`name`: of the header (lower case), cookie or query parameter. `own`: the caller's own name, for `source`."""

    kind: HashKind
    name: str = ""
    own: str = ""

    def of(self, call: Call) -> str | None:
        """The call's key; None where it has no such part: then it is drawn by weight."""
        if self.kind == "header":
            return ",".join(found) if (found := call.header(self.name)) else None
        if self.kind == "cookie":
            return next(iter(cookies(call.header("cookie"), self.name)), None)
        if self.kind == "query_param":
            query = call.target.partition(b"?")[2].decode("latin-1")
            pairs = parse_qsl(query, keep_blank_values=True)
            return next((value for key, value in pairs if key == self.name), None)
        return self._source(call)

    def _source(self, call: Call) -> str:
        served = call.served
        return self.own if served is None else str(served.peer or self.own)
