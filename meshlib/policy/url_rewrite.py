"""Rewriting what the backend sees: the path, and the host. Source: Gateway API HTTPPathModifier, HTTPURLRewriteFilter.

A prefix is made of whole segments, and a slash at its end is ignored, in what was matched and in what takes its place:

| path | matched | in its place | gives |
| --- | --- | --- | --- |
| /foo/bar | /foo or /foo/ | /xyz or /xyz/ | /xyz/bar |
| /foo | /foo | /xyz | /xyz |
| /foo/ | /foo | /xyz | /xyz/ |
| /foo/bar | /foo | '' | /bar |
| /foo/ or /foo | /foo | '' or / | / |

What comes out never begins with two slashes, which some would read as a host. Characters that a request target cannot
have are percent-encoded as UTF-8 (RFC 3987 §3.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from ..call import Call, Reply
    from ..stack import Service

_ASCII = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_HOST_LINE = re.compile(rb"^host:[^\r\n]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PathModifier:
    """What becomes of a path; exactly one is given. `full`: the whole path. `prefix`: what the route's prefix took."""

    full: str | None = None
    prefix: str | None = None

    def apply(self, path: str, matched_prefix: str) -> str:
        """The new path. `path` has no query, and begins with `matched_prefix` without its last slash."""
        if self.full is not None:
            return quote(self.full, _ASCII)
        rest = path[len(matched_prefix.rstrip("/")) :]
        return "/" + (quote((self.prefix or "").rstrip("/"), _ASCII) + rest).lstrip("/")


@dataclass(frozen=True, slots=True)
class UrlRewrite:
    """A filter, above retry: a prefix is replaced once. The query stays. `hostname`: the new Host; it does nothing to a
    gRPC call, whose authority is its channel's.
    """

    hostname: str | None
    path: PathModifier | None

    async def __call__(self, call: Call, service: Service) -> Reply:
        self.rewrite(call)
        return await service(call)

    def rewrite(self, call: Call) -> None:
        """Change the call."""
        if self.path is not None:
            path, mark, query = call.target.partition(b"?")
            new = self.path.apply(path.decode("latin-1"), call.matched_prefix)
            call.target = new.encode("latin-1") + mark + query
        if self.hostname is not None:  # in place: Host is the first field (RFC 9110 §7.2)
            call.lines = _HOST_LINE.sub(b"host: " + self.hostname.encode("ascii"), call.lines, count=1)
