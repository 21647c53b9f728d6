"""Direct responses: an answer that no backend is asked for. Source: Envoy `direct_response`."""

from __future__ import annotations

from dataclasses import dataclass

from ..call import Call, Reply
from .refusal import reason

_WITHOUT_CONTENT = frozenset((204, 304))


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """A service. `status` from 200 to 599. `body`: text, sent as UTF-8, but not with 204, 205 and 304, which have none,
    nor to HEAD, which is told its length (RFC 9110 §9.3.2, §15.3.5, §15.3.6, §15.4.5).
    """

    status: int
    body: str = ""

    async def __call__(self, call: Call) -> Reply:
        said = reason(self.status)
        if self.status in _WITHOUT_CONTENT:
            return Reply(self.status, [], reason=said)
        body = b"" if self.status == 205 else self.body.encode()
        fields = [(b"content-length", b"%d" % len(body))]
        if body:
            fields.insert(0, (b"content-type", b"text/plain; charset=utf-8"))
        return Reply(self.status, fields, b"" if call.method == "HEAD" else body, reason=said)
